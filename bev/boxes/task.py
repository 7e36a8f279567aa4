"""3D boxes as one of the tasks on a BEV map: the query head, its proposals, and the perspective head as a training aid.

Papers: BEVFormer v2 (arXiv 2211.10439), section 3.4 for proposals of the perspective head.

Shapes: B batch, N cameras, C channels, h x w cells of a feature level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...core.answers import Detections
from ...core.batch import Batch, BevFeatures
from ...core.errors import ConfigError
from ...core.registries import MODELS
from ..perspective.head import PerspectiveOutputs
from ..protocol import Levels, build, check_classes
from .denoising import RayOutputs
from .head import ExtraQueries, QueryOutputs
from .losses import LearnedLossWeights
from .memory import ObjectMemory, Past, Recalled, Remembered
from .proposals import DenseOutputs


@dataclass(frozen=True)
class BoxOutputs:
    """Outputs of the parts of the box task for a batch; None for a part that is not there."""

    queries: QueryOutputs
    dense: DenseOutputs | None
    mono: PerspectiveOutputs | None
    rays: RayOutputs | None = None
    remembered: list[Remembered] | None = None
    """B, what each sample leaves for its next frame"""


@MODELS.register_module()
class BoxTask(nn.Module):
    """Boxes from the shared BEV map, a TaskHead.

    head: BoxHead. perspective: perspective head; a training aid, and the source of proposals where
        ``perspective_proposals`` is.
    perspective_proposals, bev_proposals: where extra object queries come from (proposals.py); either, both or none.
    hybrid_queries: makes decoder queries of proposals; needed with either, and with the two below.
    ray_denoising: denoising.RayDenoising: queries of labelled objects in training, which hybrid_queries makes as well.
    memory: ObjectMemory, which carries objects from frame to frame; for a model with a streaming memory.
    num_perspective_levels: how many pyramid maps the perspective head takes, finest first.
    learned_loss_weights: weigh the losses of classes and boxes of the queries, of the perspective head and of the dense
        proposals by learned factors (losses.LearnedLossWeights).
    embed_dims, pc_range: of the BEV map, for parts whose config does not state them.

    Raises ConfigError for proposals that have no source or no queries, and for parts on different ranges.
    """

    def __init__(
        self,
        head: dict | nn.Module,
        perspective: dict | nn.Module | None = None,
        perspective_proposals: dict | nn.Module | None = None,
        bev_proposals: dict | nn.Module | None = None,
        hybrid_queries: dict | nn.Module | None = None,
        ray_denoising: dict | nn.Module | None = None,
        memory: dict | nn.Module | None = None,
        num_perspective_levels: int = 5,
        learned_loss_weights: bool = False,
        embed_dims: int = 256,
        pc_range: Sequence[float] = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0),
    ) -> None:
        super().__init__()
        if (perspective_proposals or bev_proposals or ray_denoising or memory) and hybrid_queries is None:
            raise ConfigError(
                "proposals, ray_denoising and memory make decoder queries through hybrid_queries: configure it as well"
            )
        if perspective_proposals and perspective is None:
            raise ConfigError("perspective_proposals come from the perspective head: configure perspective as well")
        self.head = build(head, embed_dims=embed_dims, pc_range=pc_range)
        classes = dict(num_classes=self.head.num_classes)
        self.perspective = build(perspective, in_channels=embed_dims)
        self.perspective_proposals = build(perspective_proposals, pc_range=pc_range, **classes)
        self.bev_proposals = build(bev_proposals, in_channels=embed_dims, pc_range=pc_range, **classes)
        self.hybrid_queries = build(hybrid_queries, channels=embed_dims, **classes)
        self.ray_denoising = build(ray_denoising, pc_range=pc_range, **classes)
        self.memory: ObjectMemory | None = build(memory, channels=embed_dims, pc_range=pc_range, **classes)
        self.num_perspective_levels = num_perspective_levels
        self.loss_balance = None
        if learned_loss_weights:
            groups = ["classes", "boxes"]
            groups += ["perspective"] * (perspective is not None) + ["dense"] * (bev_proposals is not None)
            self.loss_balance = LearnedLossWeights(groups)
        if self.perspective_proposals is not None and not self.perspective.box3d_on:
            raise ConfigError("perspective_proposals need 3D boxes: the perspective head has box3d_on=False")
        for name in ("head", "perspective_proposals", "bev_proposals", "ray_denoising", "memory"):
            part = getattr(self, name)
            if part is not None and part.point_range != tuple(map(float, pc_range)):
                raise ConfigError(
                    f"{name} has pc_range {part.point_range}, but the BEV map {tuple(pc_range)}: leave it out there"
                )

    def pyramid_views(self, batch: Batch) -> list[tuple[int, int]]:
        """(level, camera) of the pyramid maps that ``forward`` reads: none. Raises ConfigError with a perspective head,
        which reads all."""
        if self.perspective is not None:
            raise ConfigError(
                "the perspective head reads all pyramid maps, which are not stored: switch cache_features off"
            )
        return []

    def forward(
        self, features: BevFeatures, levels: Levels, batch: Batch, past: Sequence[Past | None] | None = None
    ) -> BoxOutputs:
        """Only images with labels go through the perspective head, where the batch has labels; else all that exist.

        past: what is remembered of each sample's scene, None for a first frame; None for all: nothing is remembered,
        and nothing is left for a next frame.
        """
        dense = None if self.bev_proposals is None else self.bev_proposals(features.bev)
        learning = any(cameras is not None for cameras in batch.mono)
        mono = None
        if self.perspective is not None and (learning or self.perspective_proposals is not None):
            maps = [level.flatten(0, 1) for level in levels[: self.num_perspective_levels]]
            run = [target is not None for target in self._image_targets(batch)] if learning else None
            if not learning and not batch.all_cameras_valid:
                run = [valid for cameras in batch.camera_valid for valid in cameras]
            mono = self.perspective(maps, run)
        bda = batch.bda if self.training else torch.eye(3, device=batch.bda.device).expand_as(batch.bda)
        recalled = None if past is None or self.memory is None else self.memory.recall(past, bda)
        queries = self.head.decode(features.bev, self._extra_queries(features.bev, dense, mono, batch, recalled))
        remembered = None
        if past is not None and self.memory is not None:
            measured = self.memory.measured(queries, recalled)
            remembered = self.memory.remember(measured, recalled, past, bda, seen=queries)
            queries = measured
        return BoxOutputs(queries, dense, mono, self._rays(features.bev, batch), remembered)

    def _rays(self, bev: Tensor, batch: Batch) -> RayOutputs | None:
        """Answers about places on lines of sight, in training alone; None without an object to learn from."""
        if self.ray_denoising is None or not self.training:
            return None
        rays = self.ray_denoising.queries(batch)
        if rays is None:
            return None
        return RayOutputs(rays, self.head.decode_apart(bev, self.hybrid_queries(bev, rays.proposals)))

    @staticmethod
    def _image_targets(batch: Batch) -> list:
        """Labels of B * N images, None for an image without."""
        num_cameras = batch.images.shape[2]
        return [target for cameras in batch.mono for target in cameras or [None] * num_cameras]

    def _extra_queries(
        self,
        bev: Tensor,
        dense: DenseOutputs | None,
        mono: PerspectiveOutputs | None,
        batch: Batch,
        recalled: Recalled | None,
    ) -> ExtraQueries | None:
        """Decoder queries from the proposals of both sources and from the past, or None where there is nothing."""
        found = []
        if dense is not None:
            peaks = self.bev_proposals.proposals(dense)
            if recalled is not None and self.memory is not None and self.memory.suppress_m:
                peaks = replace(peaks, valid=peaks.valid & ~self.memory.suppressed(peaks, recalled))
            found.append(peaks)
        if self.perspective_proposals is not None:
            where = batch.intrinsics, batch.bev_from_camera, batch.camera_valid, batch.current_lenses
            seen = self.perspective.detect_in_bev(mono, *where)
            found.append(self.perspective_proposals.proposals(*seen, bda=batch.bda if self.training else None))
        queries = [self.hybrid_queries(bev, proposals) for proposals in found]
        if recalled is not None and self.memory is not None:
            own = self.hybrid_queries(bev, recalled.proposals)
            queries.append(replace(own, query=own.query + self.memory.content_of(recalled)))
        if not queries:
            return None
        return ExtraQueries(
            *(torch.cat([getattr(q, f) for q in queries], 1) for f in ("query", "query_pos", "reference", "valid"))
        )

    # ---- training ------------------------------------------------------------------------------------------------

    def check_labels(self, batch: Batch) -> None:
        """Raises ConfigError for a label that is none of the model's classes, or where there is a perspective head but
        no annotated sample comes with labels of single images."""
        check_classes(batch, self.head.num_classes)
        labels = [own for own in batch.gt_labels if own is not None]
        if self.perspective is not None and labels and all(cameras is None for cameras in batch.mono):
            raise ConfigError(
                f"the model has a perspective head, but samples {', '.join(batch.tokens)} come without labels of "
                "single images: give its dataset mono=True and a split with annotations"
            )

    def loss(self, outputs: BoxOutputs, batch: Batch) -> dict[str, Tensor]:
        """Terms of the samples that have boxes; perspective ones end in ``_mono``, dense BEV ones begin with
        ``loss_dense``. Where no sample has any: one zero that keeps every learning parameter in the graph.
        """
        labelled = [b for b, boxes in enumerate(batch.gt_boxes) if boxes is not None]
        if labelled:
            boxes, labels = ([values[b] for b in labelled] for values in (batch.gt_boxes, batch.gt_labels))
            return self._losses(outputs, batch, labelled, boxes, labels)
        # as of a sample without objects: other ranks wait for this one's counts
        logits = outputs.queries.cls_logits
        empty = [logits.new_zeros(0, 9)], [torch.zeros(0, dtype=torch.long, device=logits.device)]
        terms = self._losses(outputs, batch, [0], *empty).values()
        touched = [p.sum() for p in self.parameters() if p.requires_grad]
        return {"loss_boxes_unlabelled": sum([*touched, *terms], logits.sum()) * 0.0}

    def _losses(
        self,
        outputs: BoxOutputs,
        batch: Batch,
        labelled: Sequence[int],
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """The terms of some samples, whose boxes [n, 9] and classes [n] are given."""
        queries, dense = outputs.queries, outputs.dense
        if len(labelled) < queries.cls_logits.shape[1]:
            queries = queries.of_samples(labelled)
            dense = None if dense is None else DenseOutputs(dense.heat[list(labelled)], dense.codes[list(labelled)])
        losses: dict[str, Tensor] = {}
        if self.perspective is not None:
            if outputs.mono is None:
                terms = self.perspective.no_loss(queries.cls_logits.sum())
            else:
                lenses = None if batch.current_lenses is None else batch.current_lenses.flatten(0, 1)
                where = batch.intrinsics.flatten(0, 1)
                terms = self.perspective.loss(outputs.mono, where, self._image_targets(batch), lenses)
            losses |= {f"{name}_mono": value for name, value in terms.items()}
        if dense is not None:
            losses |= self.bev_proposals.loss(dense, boxes, labels)
        losses |= self.head.loss(queries, boxes, labels)
        if self.ray_denoising is not None and self.training:
            losses |= self.ray_denoising.loss(outputs.rays, self.head, outputs.queries.cls_logits)
        if self.memory is not None:
            losses["loss_bbox"] = losses["loss_bbox"] + self.memory.untouched()
        return losses if self.loss_balance is None else self.loss_balance(losses, {n: _group(n) for n in losses})

    # ---- inference -----------------------------------------------------------------------------------------------

    def predict(self, outputs: BoxOutputs, batch: Batch) -> list[Detections]:
        """Detections of each sample, with tracks where objects are remembered."""
        if (remembered := outputs.remembered) is None:
            return self.head.predict(outputs.queries, batch.tokens)
        query_ids, twice = [own.query_ids for own in remembered], [own.twice for own in remembered]
        return self.head.predict(outputs.queries, batch.tokens, query_ids, twice)


def _group(term: str) -> str:
    """The group of a loss term in learned_loss_weights."""
    if term.endswith("_mono"):
        return "perspective"
    if term.startswith("loss_dense"):
        return "dense"
    return "classes" if term.endswith("_cls") else "boxes"
