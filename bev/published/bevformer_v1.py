"""BEVFormer v1, for its published checkpoints: a recurrent BEV map, carried from frame to frame by ego motion.

Paper: BEVFormer (arXiv 2203.17270); behaviour of the release: spec/bevformer.md section 12. New models should be v2's
(model.py), which carries no BEV map along. State-dict prefixes: ``img_backbone.``, ``img_neck.``, ``pts_bbox_head.``.

Shapes: B batch, T frames of a clip, N cameras, C channels, H x W padded image, num_y * num_x BEV cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...core.answers import Detections
from ..map.gridmask import GridMask
from ..map.history import evaluation_mode


@dataclass(frozen=True)
class RecurrentState:
    """What the model remembers of the last frame of a video."""

    scene_token: str
    bev: Tensor
    """[num_y * num_x, C]"""
    can_bus: Tensor
    """[18], absolute values of that frame."""


def can_bus_since(can_bus: Tensor, past: Tensor | None) -> Tensor:
    """CAN-bus numbers [18] with translation [0:3] and yaw in degrees [17] since the past frame, 0 without one."""
    moving = torch.tensor([0, 1, 2, 17])
    delta = can_bus.clone()
    delta[moving] = 0 if past is None else can_bus[moving] - past[moving]
    return delta


class RecurrentBev(BaseModel):
    """From surround video to one BEV map per frame, each made with the one before; what a head does with it is open.

    img_backbone, img_neck: image encoder; images [M, 3, H, W] -> maps -> pyramid maps [M, C, h, w].
    pts_bbox_head: has ``bev_embedding``, ``positional_encoding`` and a transformer.BevTransformerV1 ``transformer``.
    """

    def __init__(
        self,
        *,
        img_backbone: dict | nn.Module,
        img_neck: dict | nn.Module,
        pts_bbox_head: dict | nn.Module,
        grid_mask: bool = True,
    ) -> None:
        super().__init__()
        parts = [MODELS.build(p) if isinstance(p, dict) else p for p in (img_backbone, img_neck, pts_bbox_head)]
        self.img_backbone, self.img_neck, self.pts_bbox_head = parts
        self.grid_mask = GridMask() if grid_mask else None

    def extract_features(self, images: Tensor) -> list[Tensor]:
        """Pyramid maps [B, N, C, h, w], finest first, of images [B, N, 3, H, W]."""
        flat = images.flatten(0, 1)
        if self.training and self.grid_mask is not None:
            flat = self.grid_mask(flat)
        return [level.unflatten(0, images.shape[:2]) for level in self.img_neck(self.img_backbone(flat))]

    def encode(
        self,
        levels: Sequence[Tensor],
        image_from_lidar: Tensor,
        image_size_px: Tensor,
        padded_size: tuple[int, int],
        can_bus: Tensor,
        previous: Sequence[Tensor | None],
    ) -> Tensor:
        """BEV maps [B, num_y * num_x, C] of one frame.

        levels: of ``extract_features``; image_from_lidar [B, N, 4, 4] from the frame's OWN LIDAR frame (from its EGO
        frame where the map is to lie there); image_size_px [B, N, 2] (height, width) inside padded_size; can_bus
        [B, 18] since the frame before; previous: B maps [num_y * num_x, C] of that frame, None at the start of a scene.
        """
        head = self.pts_bbox_head
        query, query_pos = head.bev_embedding.weight, head.positional_encoding()
        # sample by sample: some may be at the start of a scene
        maps = [
            head.transformer.encode_recurrent(
                [level[b : b + 1] for level in levels],
                image_from_lidar[b : b + 1],
                image_size_px[b : b + 1],
                padded_size,
                query,
                query_pos,
                can_bus[b : b + 1],
                None if previous[b] is None else previous[b][None],
            )
            for b in range(len(levels[0]))
        ]
        return torch.cat(maps)

    def encode_clip(
        self,
        images: Tensor,
        image_from_lidar: Tensor,
        image_size_px: Tensor,
        can_bus: Tensor,
        has_previous: Tensor,
    ) -> Tensor:
        """The last frame's maps [B, num_y * num_x, C]; the frames before run as in evaluation, without gradient.

        images [B, T, N, 3, H, W]; image_from_lidar [B, T, N, 4, 4], each from its own frame; image_size_px
        [B, T, N, 2]; can_bus [B, T, 18] since the frame before in the clip; has_previous [B, T] bool, whether that
        frame belongs to the same scene.
        """
        padded, last = tuple(images.shape[-2:]), images.shape[1] - 1
        previous: list[Tensor | None] = [None] * len(images)
        for t in range(last + 1):
            known = [p if ok else None for p, ok in zip(previous, has_previous[:, t].tolist())]
            matrices, sizes, signal = image_from_lidar[:, t], image_size_px[:, t], can_bus[:, t]
            present = t == last
            with nullcontext() if present else torch.no_grad(), nullcontext() if present else evaluation_mode(self):
                levels = self.extract_features(images[:, t])
                bev = self.encode(levels, matrices, sizes, padded, signal, known)
            previous = list(bev)
        return bev


@MODELS.register_module()
class BEVFormerV1(RecurrentBev):
    """A recurrent detector from surround video to boxes in the current LIDAR frame; its head is head.BEVFormerHead."""

    def _decode(self, bev: Tensor) -> object:
        grid = self.pts_bbox_head.grid
        return self.pts_bbox_head.decode(bev.transpose(1, 2).unflatten(2, (grid.num_y, grid.num_x)))

    def loss(
        self,
        images: Tensor,
        image_from_lidar: Tensor,
        image_size_px: Tensor,
        can_bus: Tensor,
        has_previous: Tensor,
        gt_boxes: Sequence[Tensor],
        gt_labels: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """Losses of the last of T consecutive frames: the first five as for ``encode_clip``; gt_boxes, gt_labels of
        the last frame as for BEVFormerHead.loss.
        """
        bev = self.encode_clip(images, image_from_lidar, image_size_px, can_bus, has_previous)
        return self.pts_bbox_head.loss(self._decode(bev), gt_boxes, gt_labels)

    @torch.no_grad()
    def predict(
        self,
        images: Tensor,
        image_from_lidar: Tensor,
        image_size_px: Tensor,
        can_bus: Tensor,
        scene_token: str,
        token: str,
        state: RecurrentState | None = None,
    ) -> tuple[Detections, RecurrentState]:
        """Boxes of the next frame of a video, and the state to pass in with the frame after it.

        images [N, 3, H, W]; image_from_lidar [N, 4, 4]; image_size_px [N, 2]; can_bus [18] absolute. A state of another
        scene is ignored. Frames must come in their order in time.
        """
        past = state if state is not None and state.scene_token == scene_token else None
        delta = can_bus_since(can_bus, None if past is None else past.can_bus)
        bev = self.encode(
            self.extract_features(images[None]),
            image_from_lidar[None],
            image_size_px[None],
            tuple(images.shape[-2:]),
            delta[None],
            [None if past is None else past.bev],
        )
        (found,) = self.pts_bbox_head.predict(self._decode(bev), [token])
        return found, RecurrentState(scene_token, bev[0], can_bus)

    def forward(self, mode: str = "loss", **arguments: object) -> object:
        """``loss`` or ``predict`` with the arguments of these methods. Other modes raise ValueError."""
        if mode not in ("loss", "predict"):
            raise ValueError(f"mode is 'loss' or 'predict', got {mode!r}")
        return getattr(self, mode)(**arguments)
