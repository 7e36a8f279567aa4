"""BEV maps over time: fusion of several frames' maps, the warp of BEV augmentation, and BEVFormer v1's ego motion.

Source: BEVFormer v2, arXiv 2211.10439, section 3.4 (fusion); spec/bevformer.md sections 6.2, 6.3 and 12.

Shapes: B batch, T frames, C channels, Q = num_y * num_x BEV cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.functional import rotate

from ...core.batch import Batch
from ...core.errors import ConfigError
from ...geometry import BevGrid, invert_pose
from .resample import sample_bev


class FusionBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut, which is itself a 3x3 convolution where the channels change."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = None
        if in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNetFusion(nn.Module):
    """Fuses the BEV maps of T frames, concatenated along the channels, into one."""

    def __init__(self, in_channels: int, out_channels: int, inter_channels: int, num_layers: int = 3) -> None:
        """``in_channels`` = T * C; ``inter_channels`` inside the blocks; ``out_channels`` = C."""
        super().__init__()
        self.layers = nn.ModuleList(
            FusionBlock(in_channels if i == 0 else inter_channels, inter_channels) for i in range(num_layers)
        )
        self.layer_norm = nn.Sequential(nn.Linear(inter_channels, out_channels), nn.LayerNorm(out_channels))

    def forward(self, maps: Tensor) -> Tensor:
        """[B, T * C, num_y, num_x] -> [B, Q, C]."""
        for layer in self.layers:
            maps = layer(maps)
        return self.layer_norm(maps.flatten(2).transpose(1, 2))


def fill_missing(bevs: Sequence[Tensor | None], valid: Tensor, current: int) -> list[Tensor]:
    """Replaces the maps of missing frames, per sample, by those of the neighbour nearer to the current frame.

    ``bevs`` T x [B, Q, C] in ascending time, None where no sample has the frame; ``valid`` [B, T] bool; ``current`` is
    the index of the current frame, which every sample has. The copies carry no gradient, as upstream.
    """
    filled = list(bevs)
    # outwards from the current frame, so that the neighbour is already filled
    for i, neighbour in [(i, i + 1) for i in range(current - 1, -1, -1)] + [
        (i, i - 1) for i in range(current + 1, len(filled))
    ]:
        copy = filled[neighbour].detach()
        filled[i] = copy if filled[i] is None else torch.where(valid[:, i, None, None], filled[i], copy)
    return filled


def warp_bev(bev: Tensor, bda: Tensor, grid: BevGrid) -> Tensor:
    """Applies a BEV augmentation to a map, so that it agrees with boxes that were augmented by ``bda``.

    ``bev`` [B, Q, C] on ``grid``; ``bda`` [B, 3, 3] (flip @ scale @ rotation of the augmented from the original LIDAR
    frame; its upper left 2x2 block counts) -> [B, Q, C], bilinear, zeros from outside. In metres about the LIDAR
    origin; upstream works in fractions of the range (Q9), which is the same for a range that is square and centred.
    """
    a, b, c, d = bda[:, :2, :2].float().flatten(1).unbind(1)  # [B]
    # original from augmented, closed form: no device synchronisation
    inverse = torch.stack([d, -b, -c, a], 1).view(-1, 2, 2) / (a * d - b * c)[:, None, None]
    maps = bev.transpose(1, 2).unflatten(2, (grid.num_y, grid.num_x))
    return sample_bev(maps, grid, grid, F.pad(inverse, (0, 1))).flatten(2).transpose(1, 2)


def ego_shift_v1(can_bus: Tensor, grid: BevGrid) -> Tensor:
    """BEVFormer v1: by which (x, y) fraction of the grid the previous map is displaced, [B, 2] float64.

    ``can_bus`` [B, 18]: [0:2] ego translation since the previous frame in metres (global axes), [-2] ego heading in
    radians. Heading and axes as upstream has them (Q19: their sign is debated; published v1 weights depend on it).
    """
    signal = can_bus.double()
    distance_m = signal[:, :2].norm(dim=1)
    angle = signal[:, -2] - torch.atan2(signal[:, 1], signal[:, 0])
    x = distance_m * angle.sin() / grid.cell_x_m / grid.num_x
    y = distance_m * angle.cos() / grid.cell_y_m / grid.num_y
    return torch.stack([x, y], 1)


def rotate_bev_v1(bev: Tensor, angle_deg: Tensor, grid: BevGrid, centre: tuple[int, int]) -> Tensor:
    """BEVFormer v1: rotates maps [B, Q, C] by ``angle_deg`` [B] (counter-clockwise as an image) about cell ``centre``.

    Nearest cell, zeros from outside. The published configs rotate about cell (100, 100) whatever the grid (Q18), right
    for 200 x 200 cells only; published tiny and small weights depend on it. Unlike upstream the input is left as it is.
    """
    maps = bev.transpose(1, 2).unflatten(2, (grid.num_y, grid.num_x))
    rotated = [rotate(m, float(angle), center=list(centre)) for m, angle in zip(maps, angle_deg.tolist())]
    return torch.stack(rotated).flatten(2).transpose(1, 2)


def images_from_ego(batch: Batch) -> Tensor:
    """[B, T, N, 4, 4]: points of each frame's OWN EGO frame to pixels of its images.

    Raises ConfigError where a clip of several frames lacks their ego poses.
    """
    lidar_from_ego = invert_pose(batch.ego_from_lidar.double())[:, None]  # [B, 1, 4, 4]
    if len(batch.frame_offsets) > 1:
        if batch.global_from_ego is None:
            raise ConfigError(
                f"samples {', '.join(batch.tokens)}: the batch lacks global_from_ego, the ego poses of its past frames"
            )
        now = batch.global_from_ego[:, batch.current, None].double()
        lidar_from_ego = lidar_from_ego @ (invert_pose(now) @ batch.global_from_ego.double())
    return (batch.image_from_lidar.double() @ lidar_from_ego[:, :, None]).to(batch.image_from_lidar.dtype)
