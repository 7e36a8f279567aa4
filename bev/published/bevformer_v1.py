"""BEVFormer v1, for its published checkpoints: a recurrent BEV map, carried from frame to frame by ego motion.

Paper: BEVFormer (arXiv 2203.17270). New models should be BEVFormerV2, which carries no BEV map along. State dicts have
the published keys: ``img_backbone.``, ``img_neck.``, ``pts_bbox_head.``.

Shapes: B batch, T frames of a clip, N cameras, C channels, H x W padded image, num_y x num_x BEV cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...core.answers import SceneAnswer
from ...core.batch import Batch
from ...core.errors import ConfigError
from ...core.registries import MODELS
from ...core.weights.published_keys import keep_published_keys
from ..bevformer_v2 import PUBLISHED_KEYS
from ..map.gridmask import GridMask
from ..map.history import evaluation_mode
from ..protocol import PerceptionModel, build, build_encoder
from .ego_motion import can_bus_deltas, images_from_own_bev


@dataclass(frozen=True)
class RecurrentState:
    """The model's memory of the last frame of a video."""

    scene_token: str
    bev: Tensor
    """[C, num_y, num_x]"""
    can_bus: Tensor
    """[18], absolute values of that frame."""


Memory = Mapping[str, RecurrentState]
"""States of the last frames, by sample token."""


def can_bus_since(can_bus: Tensor, past: Tensor | None) -> Tensor:
    """CAN-bus numbers [18] with translation [0:3] and yaw in degrees [17] since the past frame, 0 without one."""
    moving = torch.tensor([0, 1, 2, 17])
    delta = can_bus.clone()
    delta[moving] = 0 if past is None else can_bus[moving] - past[moving]
    return delta


class RecurrentBev(PerceptionModel):
    """From surround video to one BEV map per frame, each made with the one before; subclasses add a head.

    img_backbone, img_neck: image encoder; images [M, 3, H, W] -> maps -> pyramid maps [M, C, h, w].
    bev_map: RecurrentBevMap; the map lies in the BEV frame, or where ``image_matrices`` of a subclass says.
    frame_offsets: keyframes of a training clip, ascending, the current one (0) last.
    history_frames: how many of the frames before it a training step uses, drawn anew each time (upstream leaves one of
        four out, so that the model meets different speeds); None for all.

    Raises ConfigError for other offsets, or fewer of them than history_frames.
    """

    def __init__(
        self,
        *,
        img_backbone: dict | nn.Module,
        img_neck: dict | nn.Module,
        bev_map: dict | nn.Module,
        grid_mask: bool = True,
        frame_offsets: Sequence[int] = (-3, -2, -1, 0),
        history_frames: int | None = None,
    ) -> None:
        super().__init__()
        self.img_backbone, self.img_neck = build_encoder(img_backbone, img_neck)
        self.bev_map = build(bev_map)
        self.grid_mask = GridMask() if grid_mask else None
        self.frame_offsets = tuple(frame_offsets)
        if self.frame_offsets[-1:] != (0,) or list(self.frame_offsets) != sorted(set(self.frame_offsets)):
            raise ConfigError(f"frame_offsets are ascending and end with 0 (now), got {self.frame_offsets}")
        past = len(self.frame_offsets) - 1
        self.history_frames = past if history_frames is None else history_frames
        if not 0 <= self.history_frames <= past:
            raise ConfigError(f"history_frames {history_frames}, but frame_offsets hold {past} past frames")

    @staticmethod
    def image_matrices(batch: Batch) -> Tensor:
        """[B, T, N, 4, 4]: from the frame that a map lies in, each frame's own, to pixels of its images."""
        return images_from_own_bev(batch)

    def extract_features(self, images: Tensor) -> list[Tensor]:
        """Pyramid maps [B, N, C, h, w], finest first, of images [B, N, 3, H, W]."""
        flat = images.flatten(0, 1)
        if self.training and self.grid_mask is not None:
            flat = self.grid_mask(flat)
        return [level.unflatten(0, images.shape[:2]) for level in self.img_neck(self.img_backbone(flat))]

    def encode(
        self,
        levels: Sequence[Tensor],
        image_from_own: Tensor,
        padded_size: tuple[int, int],
        can_bus: Tensor,
        previous: Sequence[Tensor | None],
        camera_ids: Sequence[int] | None = None,
    ) -> Tensor:
        """BEV maps [B, C, num_y, num_x] of one frame.

        levels: of ``extract_features``; image_from_own [B, N, 4, 4], see ``image_matrices``; padded_size (height,
        width): published models take a point on the padding for one that is seen; can_bus [B, 18] since the frame
        before; previous: B maps [C, num_y, num_x] of that frame, None at the start of a scene; camera_ids: see BevMap.
        """
        sizes = torch.tensor(padded_size, device=image_from_own.device).expand(*image_from_own.shape[:2], 2)
        # sample by sample: some may be at the start of a scene
        maps = [
            self.bev_map.encode_recurrent(
                [level[b : b + 1] for level in levels],
                image_from_own[b : b + 1],
                sizes[b : b + 1],
                padded_size,
                can_bus[b : b + 1],
                None if previous[b] is None else previous[b][None],
                camera_ids,
            )
            for b in range(len(levels[0]))
        ]
        return torch.cat(maps)

    # ---- clips of training ---------------------------------------------------------------------------------------

    def clip_maps(self, batch: Batch, chosen: Sequence[int] | None = None) -> Tensor:
        """Maps [B, C, num_y, num_x] of the current frames, through the chosen frames of their clips.

        chosen: indices, ascending, the current one last; default all. Frames before the last run as in evaluation,
        without gradient.
        """
        chosen = range(len(batch.frame_offsets)) if chosen is None else chosen
        # frames that no sample has would be encoded for nothing
        chosen = [t for t in chosen if t == batch.current or bool(batch.frame_valid[:, t].any())]
        signals, has_previous = self._deltas(batch, chosen)
        matrices, padded = self.image_matrices(batch), tuple(batch.images.shape[-2:])
        rows = self.bev_map.embedding_rows(batch)
        previous: list[Tensor | None] = [None] * len(batch.images)
        for i, t in enumerate(chosen):
            known = [p if ok else None for p, ok in zip(previous, has_previous[:, i].tolist())]
            present = t == batch.current
            with nullcontext() if present else torch.no_grad(), nullcontext() if present else evaluation_mode(self):
                bev = self.encode(
                    self.extract_features(batch.images[:, t]), matrices[:, t], padded, signals[:, i], known, rows
                )
            previous = list(bev)
        return bev

    def _deltas(self, batch: Batch, chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
        """CAN-bus numbers [B, T, 18] since the chosen frame before, and [B, T] whether that belongs to the scene."""
        signals, known = [], []
        for b, own in enumerate(self._can_bus(batch)[:, chosen].cpu().numpy()):
            valid = batch.frame_valid[b, chosen].tolist()
            scenes = ["scene" if ok else f"missing {t}" for t, ok in enumerate(valid)]
            signal, has_previous = can_bus_deltas(own, scenes)
            signals.append(torch.from_numpy(signal))
            known.append(torch.from_numpy(has_previous))
        return torch.stack(signals).to(batch.images.device), torch.stack(known)

    @staticmethod
    def _can_bus(batch: Batch) -> Tensor:
        """[B, T, 18] absolute numbers."""
        if batch.can_bus is None:
            raise ConfigError(f"samples {', '.join(batch.tokens)}: the batch lacks can_bus; ClipDataset makes it")
        return batch.can_bus

    def training_maps(self, batch: Batch) -> Tensor:
        """Maps of a training step, with ``history_frames`` of the past. Raises ConfigError for another clip."""
        self.check_clip(batch)
        self._refuse_flips(batch)
        past = torch.randperm(batch.current)[: self.history_frames].sort().values.tolist()
        return self.clip_maps(batch, [*past, batch.current])

    @staticmethod
    def _refuse_flips(batch: Batch) -> None:
        if batch.image_flipped.any():
            raise ConfigError("this model does not follow image flips: leave image.flip off, use mirror")

    # ---- inference -----------------------------------------------------------------------------------------------

    def next_maps(self, batch: Batch, memory: Memory | None) -> tuple[Tensor, dict[str, RecurrentState]]:
        """Maps [B, C, num_y, num_x] of the current frames, and the memory for the batch that follows them in time.

        A batch of current frames only takes the map of each frame's ``prev_token`` from ``memory`` or from this very
        batch; without it the frame counts as the first of its scene. A batch of whole clips goes through all of each.
        Raises ConfigError for other frame offsets.
        """
        self._refuse_flips(batch)
        if batch.frame_offsets == (0,):
            maps = self._following_maps(batch, memory or {})
        elif batch.frame_offsets == self.frame_offsets:
            maps = self.clip_maps(batch)
        else:
            raise ConfigError(
                f"the batch has frames {batch.frame_offsets}: give the current ones (0,) with a memory, or whole "
                f"clips {self.frame_offsets}"
            )
        signals = self._can_bus(batch)[:, batch.current]
        return maps, {
            frame.token: RecurrentState(frame.scene_token, maps[b], signals[b]) for b, frame in enumerate(batch.frames)
        }

    def _following_maps(self, batch: Batch, memory: Memory) -> Tensor:
        states = dict(memory)
        levels = self.extract_features(batch.images[:, 0])
        matrices, padded = self.image_matrices(batch)[:, 0], tuple(batch.images.shape[-2:])
        rows = self.bev_map.embedding_rows(batch)
        maps = []
        for b, frame in enumerate(batch.frames):
            past = states.get(frame.prev_token)
            if past is not None and past.scene_token != frame.scene_token:
                past = None
            signal, one = self._can_bus(batch)[b, 0], slice(b, b + 1)
            bev = self.encode(
                [level[one] for level in levels],
                matrices[one],
                padded,
                can_bus_since(signal, None if past is None else past.can_bus)[None],
                [None if past is None else past.bev],
                rows,
            )
            states[frame.token] = RecurrentState(frame.scene_token, bev[0], signal)
            maps.append(bev)
        return torch.cat(maps)


@MODELS.register_module()
class BEVFormerV1(RecurrentBev):
    """A recurrent detector from surround video to boxes in the current BEV frame.

    box_head: boxes.head.BoxHead. Other arguments: see RecurrentBev. The checkpoints number their
    classes in an order of their own: configs/published/bevformer_v1_base.py.
    """

    tasks = ("boxes",)

    def __init__(self, *, box_head: dict | nn.Module, **recurrent: Any) -> None:
        super().__init__(**recurrent)
        self.box_head = build(box_head, embed_dims=self.bev_map.embed_dims, pc_range=self.bev_map.pc_range)
        # the same keys as v2's, whose box head lies one level deeper
        keep_published_keys(
            self, {ours.replace("boxes.head.", "box_head."): theirs for ours, theirs in PUBLISHED_KEYS.items()}
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Terms of the current frames. Raises ConfigError for another clip, or where no sample has boxes."""
        labelled = [b for b, boxes in enumerate(batch.gt_boxes) if boxes is not None]
        if not labelled:
            raise ConfigError(f"samples {', '.join(batch.tokens)} have no boxes: train on a split with annotations")
        queries = self.box_head.decode(self.training_maps(batch)).of_samples(labelled)
        return self.box_head.loss(queries, *([own[b] for b in labelled] for own in (batch.gt_boxes, batch.gt_labels)))

    @torch.no_grad()
    def predict(
        self, batch: Batch, memory: Memory | None = None, tasks: Sequence[str] | None = None
    ) -> tuple[list[SceneAnswer], dict[str, RecurrentState]]:
        """Boxes of the current frames; memory as in ``next_maps``."""
        self.asked(tasks)
        maps, states = self.next_maps(batch, memory)
        found = self.box_head.predict(self.box_head.decode(maps), batch.tokens)
        return [SceneAnswer(own.token, boxes=own) for own in found], states
