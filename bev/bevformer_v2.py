"""BEVFormer v2: surround cameras in, 3D boxes out; one or several keyframes, any number of cameras.

Paper: BEVFormer v2 (arXiv 2211.10439), building on BEVFormer (arXiv 2203.17270) and Group DETR (arXiv 2207.13085).
State-dict prefixes are those of the released checkpoints: ``img_backbone.``, ``img_neck.``, ``pts_bbox_head.``,
``fcos3d_bbox_head.`` (spec/bevformer.md section 9). Parts the release lacks have prefixes of their own.

Shapes: B batch, T frames of a clip, N cameras, C channels, H x W padded image, h x w feature cells of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..core.answers import Detections
from ..core.batch import Batch, BevFeatures
from ..core.errors import ConfigError
from ..core.frames import past_lidar_from_current
from .boxes.head import ExtraQueries, QueryOutputs
from .boxes.proposals import DenseOutputs
from .map.gridmask import GridMask
from .map.history import History, PastFrame, evaluation_mode, find_past, prune
from .perspective.head import PerspectiveOutputs

Levels = list[Tensor]
"""Feature maps [B, N, C, h, w], finest first."""


def build(config: dict | nn.Module | None) -> nn.Module | None:
    """A module from its config, or the module itself."""
    return MODELS.build(config) if isinstance(config, dict) else config


@MODELS.register_module()
class BEVFormerV2(BaseModel):
    """A detector from a clip of surround images to boxes in the current LIDAR frame.

    img_backbone, img_neck: image encoder; images [M, 3, H, W] -> maps -> pyramid maps [M, C, h, w].
    pts_bbox_head: BEV encoder, decoder and box branches (head.BEVFormerHead).
    fcos3d_bbox_head: perspective head; a training aid, and the source of proposals where ``perspective_proposals`` is.
    perspective_proposals, bev_proposals: where extra object queries come from (proposals.py); either, both or none.
    hybrid_queries: makes decoder queries of proposals; needed with either.
    frame_offsets: keyframes of a clip relative to the current one, ascending, e.g. (-1, 0).
    num_bev_levels, num_perspective_levels: how many pyramid maps each branch takes, finest first.
    grid_mask: blanks a random grid of the images in training (GridMask, arXiv 2001.04086).
    """

    def __init__(
        self,
        *,
        img_backbone: dict | nn.Module,
        img_neck: dict | nn.Module,
        pts_bbox_head: dict | nn.Module,
        fcos3d_bbox_head: dict | nn.Module | None = None,
        perspective_proposals: dict | nn.Module | None = None,
        bev_proposals: dict | nn.Module | None = None,
        hybrid_queries: dict | nn.Module | None = None,
        frame_offsets: Sequence[int] = (0,),
        num_bev_levels: int = 4,
        num_perspective_levels: int = 5,
        grid_mask: bool = True,
    ) -> None:
        super().__init__()
        self.frame_offsets = tuple(frame_offsets)
        if 0 not in self.frame_offsets or list(self.frame_offsets) != sorted(set(self.frame_offsets)):
            raise ValueError(f"frame_offsets are ascending, distinct and hold 0 (now), got {self.frame_offsets}")
        if (perspective_proposals or bev_proposals) and hybrid_queries is None:
            raise ValueError("proposals become decoder queries through hybrid_queries: configure it as well")
        if perspective_proposals and fcos3d_bbox_head is None:
            raise ValueError("perspective_proposals come from fcos3d_bbox_head: configure it as well")
        self.num_bev_levels, self.num_perspective_levels = num_bev_levels, num_perspective_levels
        self.img_backbone = build(img_backbone)
        self.img_neck = build(img_neck)
        self.pts_bbox_head = build(pts_bbox_head)
        self.fcos3d_bbox_head = build(fcos3d_bbox_head)
        self.perspective_proposals = build(perspective_proposals)
        self.bev_proposals = build(bev_proposals)
        self.hybrid_queries = build(hybrid_queries)
        self.grid_mask = GridMask() if grid_mask else None
        if self.perspective_proposals is not None and not self.fcos3d_bbox_head.box3d_on:
            raise ValueError("perspective_proposals need 3D boxes: fcos3d_bbox_head has box3d_on=False")
        covered = self.pts_bbox_head.transformer.point_range
        for name in ("perspective_proposals", "bev_proposals"):
            source = getattr(self, name)
            if source is not None and source.point_range != covered:
                raise ValueError(
                    f"{name} has pc_range {source.point_range}, but pts_bbox_head {covered}: give both the same"
                )
        fused = self.pts_bbox_head.transformer.frames
        if fused != self.frame_offsets:
            raise ValueError(f"frame_offsets {self.frame_offsets} of the model, but its transformer fuses {fused}")

    # ---- images to features --------------------------------------------------------------------------------------

    def extract_features(self, images: Tensor, flipped: Tensor) -> Levels:
        """Pyramid levels [B, N, C, h, w] of images [B, N, 3, H, W]; those of mirrored samples are mirrored back.

        flipped: [B] bool. Geometry downstream never sees a mirrored image.
        """
        batch = len(images)
        images = images.flatten(0, 1)  # [B * N, 3, H, W]
        if self.training and self.grid_mask is not None:
            images = self.grid_mask(images)
        levels = self.img_neck(self.img_backbone(images))
        mirrored = flipped.view(-1, 1, 1, 1, 1)
        levels = [level.unflatten(0, (batch, -1)) for level in levels]
        if not torch.compiler.is_compiling() and not flipped.any():  # a compiled graph has one path
            return levels
        return [torch.where(mirrored, level.flip(-1), level) for level in levels]

    def encode_clip(self, batch: Batch) -> tuple[Levels, BevFeatures]:
        """Features of the current frame and the BEV map with history fused in, from a whole clip of images.

        Frames other than the current one are encoded as in evaluation and carry no gradient (spec section 6.4).
        """
        clip: list[Levels] = []
        for t in range(len(batch.frame_offsets)):
            present = t == batch.current
            with nullcontext() if present else torch.no_grad(), nullcontext() if present else evaluation_mode(self):
                clip.append(self.extract_features(batch.images[:, t], batch.image_flipped))
        current = clip[batch.current]
        return current, self._encode_bev(clip, batch)

    def _encode_bev(self, clip: list[Levels], batch: Batch) -> BevFeatures:
        head = self.pts_bbox_head
        bev = head.encode(
            [levels[: self.num_bev_levels] for levels in clip],
            batch.image_from_lidar,
            batch.image_size_px,
            tuple(batch.images.shape[-2:]),
            batch.frame_valid,
            batch.current,
            batch.bda if self.training else None,
        )
        return BevFeatures(bev, head.grid)

    # ---- BEV to boxes --------------------------------------------------------------------------------------------

    def _extra_queries(
        self, bev: Tensor, dense: DenseOutputs | None, mono: PerspectiveOutputs | None, batch: Batch
    ) -> ExtraQueries | None:
        """Decoder queries from the proposals of both sources, or None where neither is configured."""
        found = []
        if self.bev_proposals is not None:
            found.append(self.bev_proposals.proposals(dense))
        if self.perspective_proposals is not None:
            seen = self.fcos3d_bbox_head.detect_in_lidar(mono, batch.intrinsics, batch.lidar_from_camera)
            found.append(self.perspective_proposals.proposals(*seen, bda=batch.bda if self.training else None))
        if not found:
            return None
        queries = [self.hybrid_queries(bev, proposals) for proposals in found]
        return ExtraQueries(
            *(torch.cat([getattr(q, f) for q in queries], 1) for f in ("query", "query_pos", "reference", "valid"))
        )

    def _dense(self, bev: Tensor) -> DenseOutputs | None:
        return None if self.bev_proposals is None else self.bev_proposals(bev)

    def _mono(self, levels: Levels, labelled: list[bool] | None = None) -> PerspectiveOutputs:
        """Outputs of the perspective head on the current frame's B * N images, or on the labelled ones of them."""
        return self.fcos3d_bbox_head([level.flatten(0, 1) for level in levels[: self.num_perspective_levels]], labelled)

    # ---- training ------------------------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Named loss terms; perspective ones end in ``_mono``, dense BEV ones begin with ``loss_dense``.

        Raises FloatingPointError if predictions are not finite, naming the layer; ConfigError for a batch of other
        frame offsets than the model's, without labels, with a label that is none of the model's classes, or without
        labels of single images where there is a perspective head.
        """
        self._check_clip(batch)
        self._check_box_labels(batch)
        levels, features = self.encode_clip(batch)
        return self._box_losses(levels, features, batch)

    def _check_clip(self, batch: Batch) -> None:
        if batch.frame_offsets != self.frame_offsets:
            raise ConfigError(
                f"the model learns from frames {self.frame_offsets}, the batch has {batch.frame_offsets}: give its "
                "dataset the same frame_offsets"
            )

    def _check_box_labels(self, batch: Batch) -> None:
        if not batch.gt_boxes:
            raise ConfigError(
                f"samples {', '.join(batch.tokens)} have no labels to learn from: train on a split with annotations"
            )
        highest = max((int(labels.max()) for labels in batch.gt_labels if len(labels)), default=-1)
        if highest >= self.pts_bbox_head.num_classes:
            raise ConfigError(
                f"samples {', '.join(batch.tokens)} have the label {highest}, but the model has "
                f"{self.pts_bbox_head.num_classes} classes: make num_classes the length of the dataset's class list"
            )
        if self.fcos3d_bbox_head is not None and not batch.mono:
            raise ConfigError(
                f"the model has a perspective head (fcos3d_bbox_head), but samples {', '.join(batch.tokens)} come "
                "without labels of single images: give its dataset mono=True and a split with annotations"
            )

    def _box_losses(self, levels: Levels, features: BevFeatures, batch: Batch) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        dense, mono = self._dense(features.bev), None
        if self.fcos3d_bbox_head is not None:
            targets = [target for cameras in batch.mono for target in cameras]
            mono = self._mono(levels, [target is not None for target in targets])
            terms = self.fcos3d_bbox_head.loss(mono, batch.intrinsics.flatten(0, 1), targets)
            losses |= {f"{name}_mono": value for name, value in terms.items()}
        if dense is not None:
            losses |= self.bev_proposals.loss(dense, batch.gt_boxes, batch.gt_labels)
        outs: QueryOutputs = self.pts_bbox_head.decode(
            features.bev, self._extra_queries(features.bev, dense, mono, batch)
        )
        return losses | self.pts_bbox_head.loss(outs, batch.gt_boxes, batch.gt_labels)

    # ---- inference -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, batch: Batch, history: History | None = None) -> tuple[list[Detections], History]:
        """Boxes of the current frames, and the history to pass in with the next batch (see ``encode``)."""
        levels, features, history = self.encode(batch, history)
        return self._detect(levels, features, batch), history

    def encode(self, batch: Batch, history: History | None = None) -> tuple[Levels, BevFeatures, History]:
        """Image features and BEV map of the current frames, and the history to pass in with the next batch.

        A batch with the model's whole clip is encoded as it is. A batch of current frames only takes past ones from
        ``history`` (their image features, spec section 15): the same numbers with one encoder pass per frame.
        Raises ValueError for other frame offsets, a history for a model that looks into the future, or one of images
        that were padded to another size.
        """
        history = dict(history or {})
        if batch.frame_offsets == self.frame_offsets:
            levels, features = self.encode_clip(batch)
        elif batch.frame_offsets == (0,) and self.frame_offsets[-1] == 0:
            levels = self.extract_features(batch.images[:, 0], batch.image_flipped)
            history |= self._remember(levels, batch)
            features = self._encode_bev(*self._recall(levels, batch, history))
            history = prune(history, batch.frames, -self.frame_offsets[0])
        else:
            raise ValueError(
                f"the model looks at frames {self.frame_offsets}; the batch has {batch.frame_offsets}. Give it "
                "the whole clip, or (0,) with a history where no future frame is needed."
            )
        return levels, features, history

    def _detect(self, levels: Levels, features: BevFeatures, batch: Batch) -> list[Detections]:
        mono = self._mono(levels) if self.perspective_proposals is not None else None
        extra = self._extra_queries(features.bev, self._dense(features.bev), mono, batch)
        outs = self.pts_bbox_head.decode(features.bev, extra)
        return self.pts_bbox_head.predict(outs, batch.tokens)

    def _remember(self, levels: Levels, batch: Batch) -> dict[str, PastFrame]:
        if len(self.frame_offsets) == 1:
            return {}
        return {
            frame.token: PastFrame(
                frame,
                tuple(level[b] for level in levels[: self.num_bev_levels]),
                batch.image_from_lidar[b, 0],
                batch.image_size_px[b, 0],
            )
            for b, frame in enumerate(batch.frames)
        }

    def _recall(self, levels: Levels, batch: Batch, history: History) -> tuple[list[Levels], Batch]:
        """The clip's features and the batch as it would be with all frames loaded."""
        levels = levels[: self.num_bev_levels]
        clip, matrices, sizes, valid = [], [], [], []
        for offset in self.frame_offsets:
            if offset == 0:
                past = [None] * len(batch.frames)
            else:
                past = [find_past(history, frame, -offset) for frame in batch.frames]
            for frame, p in zip(batch.frames, past):
                if p is not None and any(feats.shape != level.shape[1:] for feats, level in zip(p.feats, levels)):
                    raise ValueError(
                        f"sample {frame.token}: the features of sample {p.frame.token} before it are "
                        f"{list(p.feats[0].shape)}, its own {list(levels[0].shape[1:])}: a scene needs the same "
                        "cameras and, in every batch, the same padded image size (do not mix rigs in a batch)"
                    )
            valid.append(torch.tensor([offset == 0 or p is not None for p in past], device=levels[0].device))
            clip.append(
                [
                    torch.stack([level[b] if p is None else p.feats[i] for b, p in enumerate(past)])
                    for i, level in enumerate(levels)
                ]
            )
            matrices.append(
                torch.stack(
                    [
                        batch.image_from_lidar[b, 0] if p is None else self._seen_from(batch, b, p)
                        for b, p in enumerate(past)
                    ]
                )
            )
            sizes.append(
                torch.stack([batch.image_size_px[b, 0] if p is None else p.image_size_px for b, p in enumerate(past)])
            )
        return clip, replace(
            batch,
            frame_offsets=self.frame_offsets,
            frame_valid=torch.stack(valid, 1),
            image_from_lidar=torch.stack(matrices, 1),
            image_size_px=torch.stack(sizes, 1),
        )

    @staticmethod
    def _seen_from(batch: Batch, b: int, past: PastFrame) -> Tensor:
        """[N, 4, 4]: points of sample b's current LIDAR frame to pixels of a past frame's images."""
        motion = torch.from_numpy(past_lidar_from_current(batch.frames[b], past.frame)).to(past.image_from_lidar.device)
        return (past.image_from_lidar.double() @ motion).to(past.image_from_lidar.dtype)

    # ---- MMEngine ------------------------------------------------------------------------------------------------

    def forward(self, batch: Batch, mode: str = "loss") -> dict[str, Tensor] | list[Detections]:
        """``loss`` in training; ``predict`` without history. Other modes raise ValueError."""
        if mode == "loss":
            return self.loss(batch)
        if mode == "predict":
            return self.predict(batch)[0]
        raise ValueError(f"mode is 'loss' or 'predict', got {mode!r}")
