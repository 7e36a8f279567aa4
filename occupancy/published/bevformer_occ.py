"""The occupancy challenge's BEVFormer, for its published checkpoints: a recurrent BEV map of the EGO frame to voxels.

Source: the CVPR 2023 occupancy challenge's baseline, as InternImage ships it. State-dict prefixes are the published
ones: ``img_backbone.``, ``img_neck.``, ``pts_bbox_head.``. Kept because the weights depend on it: the ego motion
displaces both maps of the temporal attention (docs/quirks.md#shift-of-both-grids), the padding of the images counts as
visible, and the CAN-bus numbers (info pickles hold all of them; from other sources the car's own signals are zeros).
New models should be an OccupancyHead on a bev.bevformer_v2.BEVFormerV2.

Shapes: B batch, T frames of a clip, N cameras, C channels, H = num_y * num_x BEV cells, X, Y, Z voxels, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...bev.protocol import build
from ...bev.published.bevformer_v1 import Memory, RecurrentBev, RecurrentState
from ...bev.published.ego_motion import images_from_ego
from ...bev.published.recurrent_map import RecurrentBevMap
from ...core.answers import OccupancyGrid, SceneAnswer
from ...core.batch import Batch
from ...core.errors import ConfigError
from ...core.finite import check_answer
from ...core.labels import OccupancyTargets
from ...core.registries import MODELS
from ...core.weights.published_keys import keep_published_keys
from ...geometry import OCC3D_GRID
from ..losses import VoxelLoss
from .voxel_decoders import voxel_predictor, voxel_trunk

OCC3D_RANGE = (*OCC3D_GRID.origin_m.tolist(), *(OCC3D_GRID.origin_m + OCC3D_GRID.size_m).tolist())
"""(x_min, y_min, z_min, x_max, y_max, z_max) metres of the EGO frame."""


PUBLISHED_KEYS = {
    "bev_map.": "pts_bbox_head.transformer.",
    "bev_map.bev_embedding.": "pts_bbox_head.bev_embedding.",
    "bev_map.positional_encoding.": "pts_bbox_head.positional_encoding.",
    "voxel_head.decoder.": "pts_bbox_head.transformer.decoder.",
    "voxel_head.predicter.": "pts_bbox_head.transformer.predicter.",
}


@MODELS.register_module()
class OccupancyMap(RecurrentBevMap):
    """The BEV map of the EGO frame; arguments as RecurrentBevMap, sizes default to the published ones."""

    def __init__(
        self,
        pc_range: Sequence[float] = OCC3D_RANGE,
        num_layers: int = 4,
        num_points_in_pillar: int = 8,
        shift_current: bool = True,
        **bev_map: Any,
    ) -> None:
        super().__init__(
            pc_range=pc_range,
            num_layers=num_layers,
            num_points_in_pillar=num_points_in_pillar,
            shift_current=shift_current,
            **bev_map,
        )


@MODELS.register_module()
class VoxelHead(nn.Module):
    """A BEV map to voxels, and their losses.

    decoder, num_z, out_dim, transposed: see voxel_decoders.py. num_classes and what follows: see losses.VoxelLoss; the
    default is the published one, cross entropy over all voxels. (Counting only what the cameras see gains 13 to 15
    points of the masked mIoU and costs RayIoU: docs/occupancy.md.)
    Raises ConfigError as ``voxel_decoders.voxel_trunk``.
    """

    def __init__(
        self,
        decoder: str = "conv3d",
        embed_dims: int = 256,
        num_z: int = 16,
        out_dim: int = 32,
        transposed: bool = False,
        num_classes: int = 18,
        free: int = 17,
        mask: str = "none",
        loss_weights: Mapping[str, float] | None = None,
        class_weights: Sequence[float] | str | None = None,
        hidden_weight: float = 0.2,
        class_frequency: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.decoder = voxel_trunk(decoder, embed_dims, num_z, out_dim, transposed)
        self.predicter = voxel_predictor(out_dim, num_classes)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        self.voxel_loss = VoxelLoss(
            num_classes, free, mask, loss_weights, class_weights, hidden_weight, class_frequency
        )

    def forward(self, bev: Tensor) -> Tensor:
        """Logits [B, X, Y, Z, K] of maps [B, C, num_y, num_x]."""
        return self.predicter(self.decoder(bev))

    def loss(self, logits: Tensor, targets: Sequence[OccupancyTargets | None]) -> dict[str, Tensor]:
        """Terms over the voxels that count, of all labelled samples together; zeros that keep the graph without any."""
        labelled = [(own, target) for own, target in zip(logits, targets) if target is not None]
        nothing = logits.sum() * 0.0
        found: dict[str, Tensor] = {}
        for hidden in (False, True) if self.voxel_loss.has_hidden else (False,):
            chosen = self.voxel_loss.hidden if hidden else self.voxel_loss.counts
            counts = [chosen(target) for _, target in labelled]
            voxels = [own[where] for (own, _), where in zip(labelled, counts)]
            truth = [target.semantics[where] for (_, target), where in zip(labelled, counts)]
            together = [(torch.cat(voxels), torch.cat(truth))] if labelled else []
            found |= self.voxel_loss(together, nothing, hidden)
        return found


@MODELS.register_module()
class BEVFormerOcc(RecurrentBev):
    """Surround video to voxels. voxel_head: VoxelHead; bev_map: OccupancyMap; others: see RecurrentBev."""

    tasks = ("occupancy",)

    def __init__(
        self,
        *,
        voxel_head: dict | nn.Module,
        frame_offsets: Sequence[int] = (-4, -3, -2, -1, 0),
        history_frames: int | None = 3,
        **recurrent: Any,
    ) -> None:
        super().__init__(frame_offsets=frame_offsets, history_frames=history_frames, **recurrent)
        self.voxel_head = build(voxel_head, embed_dims=getattr(self.bev_map, "embed_dims", None))
        keep_published_keys(self, PUBLISHED_KEYS)

    @staticmethod
    def image_matrices(batch: Batch) -> Tensor:
        """[B, T, N, 4, 4]: the maps lie in each frame's own EGO frame."""
        return images_from_ego(batch)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Terms ``loss_occ_*``. A sample without labels adds nothing; ConfigError where none has any, or the batch is
        another clip than ``frame_offsets``.
        """
        self.check_clip(batch)
        if all(target is None for target in batch.occupancy):
            raise ConfigError(
                f"samples {', '.join(batch.tokens)} have no voxel labels (gts/<scene>/<sample>/labels.npz): train on a "
                "split that has, with occupancy=True"
            )
        return self.voxel_head.loss(self.voxel_head(self.training_maps(batch)), batch.occupancy)

    @torch.no_grad()
    def predict(
        self, batch: Batch, memory: Memory | None = None, tasks: Sequence[str] | None = None
    ) -> tuple[list[SceneAnswer], dict[str, RecurrentState]]:
        """Voxels of the current frames; memory as in RecurrentBev.next_maps."""
        self.asked(tasks)
        maps, states = self.next_maps(batch, memory)
        answers = []
        for b, token in enumerate(batch.tokens):  # one at a time: all logits of a sample are 46 MB
            best = self.voxel_head(maps[b : b + 1])[0].max(-1)
            check_answer("occupancy", token, best.values)
            classes = best.indices.to(torch.uint8)
            answers.append(SceneAnswer(token, occupancy=OccupancyGrid(token, classes.cpu().numpy())))
        return answers, states
