"""BEV maps over time: fusion of several frames' maps, and the warp of BEV augmentation.

Source: BEVFormer v2, arXiv 2211.10439, section 3.4 (fusion), and its release (warp).

Shapes: B batch, T frames, C channels, num_y x num_x BEV cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...geometry import BevGrid
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
        """[B, T * C, num_y, num_x] -> [B, C, num_y, num_x]."""
        for layer in self.layers:
            maps = layer(maps)
        return self.layer_norm(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def fill_missing(bevs: Sequence[Tensor | None], valid: Tensor, current: int) -> list[Tensor]:
    """Replaces the maps of missing frames, per sample, by those of the neighbour nearer to the current frame.

    ``bevs`` T x [B, C, num_y, num_x] in ascending time, None where no sample has the frame; ``valid``
    [B, T] bool; ``current``: index of the current frame, which every sample has. The copies carry no gradient.
    """
    filled = list(bevs)
    # outwards from the current frame, so that the neighbour is already filled
    for i, neighbour in [(i, i + 1) for i in range(current - 1, -1, -1)] + [
        (i, i - 1) for i in range(current + 1, len(filled))
    ]:
        copy = filled[neighbour].detach()
        filled[i] = copy if filled[i] is None else torch.where(valid[:, i, None, None, None], filled[i], copy)
    return [bev for bev in filled if bev is not None]  # all


def effective(bda: Tensor) -> Tensor | None:
    """The augmentation, None where it is none: the map is then what it is in evaluation, to the bit. A compiled graph
    has one path."""
    if torch.compiler.is_compiling():
        return bda
    return None if torch.equal(bda, torch.eye(3).to(bda).expand_as(bda)) else bda


def warp_bev(bev: Tensor, bda: Tensor, grid: BevGrid) -> Tensor:
    """Applies a BEV augmentation to a map, so that it agrees with boxes that were augmented by ``bda``.

    ``bev`` [B, C, num_y, num_x] on ``grid``; ``bda`` [B, 3, 3] (flip @ scale @ rotation of the augmented from the
    original BEV frame; its upper left 2x2 block counts). Bilinear, zeros from outside. In metres about the origin;
    upstream works in fractions of the range, which is the same for a range that is square and centred
    (docs/quirks.md#bev-augmentation-in-fractions).
    """
    a, b, c, d = bda[:, :2, :2].float().flatten(1).unbind(1)  # [B]
    # original from augmented, closed form: no device synchronisation
    inverse = torch.stack([d, -b, -c, a], 1).view(-1, 2, 2) / (a * d - b * c)[:, None, None]
    return sample_bev(bev, grid, grid, F.pad(inverse, (0, 1)))
