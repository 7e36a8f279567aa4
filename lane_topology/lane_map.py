"""Dense supervision of lanes on a BEV map: where lanes run and in which direction, and whole lanes at their middles.

As with boxes (bev/boxes/proposals.py), labels in every cell teach the BEV encoder quickly, and the peaks of the heat
are the first guesses of the decoder. Midpoint heat: Objects as Points, arXiv 1904.07850.

Shapes: B batch, C channels, K control points, n lanes, P proposals, num_y x num_x BEV cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..bev.boxes.losses import gaussian_focal_loss, mean_over_ranks, sigmoid_focal_loss
from ..bev.heat_maps import bumps, local_peaks
from ..geometry import BevGrid
from .curves import sample_curves


@dataclass(frozen=True)
class LaneMapOutputs:
    """What each cell says."""

    features: Tensor
    """[B, C, num_y, num_x]"""
    mask: Tensor
    """[B, num_y, num_x] logits of "a lane runs through here" """
    direction: Tensor
    """[B, num_y, num_x, 2] unit vector along the lane, (0, 0) where lanes of several directions cross"""
    heat: Tensor
    """[B, num_y, num_x] logits of "a lane has its middle (t = 1/2) here" """
    controls: Tensor
    """[B, num_y, num_x, K, 3] metres: the lane whose middle this cell holds"""


class SampleNorm(nn.InstanceNorm2d):
    """BatchNorm's parameters, and each sample's own mean and variance, in training and in answers.

    A clip is a batch of one on each process, with which BatchNorm learns with that sample's statistics and then
    answers with running ones, another function (docs/lane_topology.md). The running ones are kept, unused, so that
    weights keep their names.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=True, track_running_stats=True)

    def forward(self, x: Tensor) -> Tensor:
        return F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)


class ResidualBlock(nn.Module):
    """A dilated 3x3 convolution with norm and ReLU, added to its input."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.norm = SampleNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.norm(self.conv(x)))


class LaneMap(nn.Module):
    """Convolutions on the lanes' EGO grid; dilations widen their view, since a lane is long.

    in_channels: of the BEV map; channels: C; grid: of the map, EGO frame; dilations: one block each; num_control: K;
    scale_m: metres per unit of the regressed control points; sigma_cells: of the bump drawn at a lane's middle.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        grid: BevGrid,
        dilations: Sequence[int] = (1, 2, 4, 8),
        num_control: int = 5,
        scale_m: float = 10.0,
        sigma_cells: float = 1.0,
    ) -> None:
        super().__init__()
        self.grid, self.num_control, self.scale_m, self.sigma_cells = grid, num_control, scale_m, sigma_cells
        stem = [nn.Conv2d(in_channels, channels, 3, padding=1, bias=False), SampleNorm(channels), nn.ReLU(True)]
        self.trunk = nn.Sequential(*stem, *(ResidualBlock(channels, d) for d in dilations))
        self.cells = nn.Conv2d(channels, 4 + 3 * num_control, 1)  # mask, heat, direction (2), control points
        with torch.no_grad():
            self.cells.bias.zero_()
            self.cells.bias[:2] = -2.19722458  # a prior of 0.1, as CenterPoint
        centres = torch.from_numpy(grid.cell_centres()).float()
        self.register_buffer("centres", centres, persistent=False)  # [num_y, num_x, 2]

    def forward(self, maps: Tensor, enrich: Callable[[Tensor], Tensor] | None = None) -> LaneMapOutputs:
        """From BEV maps [B, in_channels, num_y, num_x] on ``grid``; ``enrich``: adds other inputs to the features."""
        features = self.trunk(maps)
        if enrich is not None:
            features = enrich(features)
        raw = self.cells(features).permute(0, 2, 3, 1).float()
        controls = raw[..., 4:].unflatten(-1, (self.num_control, 3)) * self.scale_m
        middles = F.pad(self.centres, (0, 1))[:, :, None]  # [num_y, num_x, 1, 3]
        return LaneMapOutputs(features, raw[..., 0], raw[..., 2:4], raw[..., 1], controls + middles)

    # ---- training ------------------------------------------------------------------------------------------------

    def loss(self, outs: LaneMapOutputs, controls: Sequence[Tensor | None]) -> dict[str, Tensor]:
        """Terms ``mask``, ``heat``, ``direction``, ``points``; controls: B x [n, K, 3] metres, None without labels."""
        known = torch.tensor([c is not None for c in controls], device=outs.heat.device)
        empty = outs.controls.new_zeros(0, self.num_control, 3)
        targets = [self.targets(empty if c is None else c.to(empty)) for c in controls]
        mask, direction, heat, lanes, weight = (torch.stack(parts) for parts in zip(*targets))
        counted = known[:, None, None]
        num_cells = mean_over_ranks(mask.sum()).clamp(min=1)
        num_lanes = mean_over_ranks((heat >= 1).sum().float()).clamp(min=1)
        alongside = direction.norm(dim=-1) * counted  # 1 where all lanes of the cell agree, 0 off the lanes
        turned = (outs.direction - direction).abs().sum(-1) * alongside
        away = (outs.controls - lanes).abs().mean((-2, -1)) * weight * counted
        return {
            "mask": (sigmoid_focal_loss(outs.mask, mask, alpha=0.5) * counted).sum() / num_cells,
            "heat": (gaussian_focal_loss(outs.heat, heat) * counted).sum() / num_lanes,
            "direction": turned.sum() / mean_over_ranks(alongside.sum()).clamp(min=1),
            "points": away.sum() / mean_over_ranks((weight * counted).sum()).clamp(min=1),
        }

    @torch.no_grad()
    def targets(self, controls: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Of one sample's lanes [n, K, 3]: mask, direction [.., 2], heat, control points [.., K, 3] and the weight of
        the latter, each per cell [num_y, num_x]. A cell learns the lane whose middle is nearest, within one cell.
        """
        grid, shape = self.grid, self.centres.shape[:2]
        mask, direction = self.centres.new_zeros(shape).flatten(), torch.zeros_like(self.centres).flatten(0, 1)
        heat, weight = self.centres.new_zeros(shape), self.centres.new_zeros(shape)
        lanes = self.centres.new_zeros(*shape, self.num_control, 3)
        if not len(controls):
            return mask.view(shape), direction.view(*shape, 2), heat, lanes, weight
        # points closer together than a cell, for lanes up to the grid's own diagonal
        count = 2 * (grid.num_x + grid.num_y)
        points = sample_curves(controls, count)[..., :2]  # [n, count, 2]
        steps = F.normalize(points[:, 1:] - points[:, :-1], dim=-1).flatten(0, 1)
        inside, cell = self._cells((points[:, 1:] + points[:, :-1]).flatten(0, 1) / 2)
        mask[cell[inside]] = 1
        direction.index_add_(0, cell[inside], steps[inside])
        hits = torch.zeros_like(mask).index_add_(0, cell[inside], torch.ones_like(steps[inside, 0]))
        direction = direction / hits.clamp(min=1)[:, None]

        inside, cell = self._cells(sample_curves(controls, 3)[:, 1, :2])
        controls, cell = controls[inside], cell[inside]
        if len(controls):
            cells = torch.stack([cell % grid.num_x, cell // grid.num_x], -1)
            bump, near = bumps(cells, grid.num_y, grid.num_x, self.sigma_cells)
            heat = bump.amax(0)
            weight, owner = (bump * near).max(0)
            lanes = controls[owner]
        return mask.view(shape), direction.view(*shape, 2), heat, lanes, weight

    def _cells(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Whether points [m, 2] in metres lie in the grid, and their flat cells."""
        low = points.new_tensor([self.grid.x_min, self.grid.y_min])
        size = points.new_tensor([self.grid.cell_x_m, self.grid.cell_y_m])
        index = ((points - low) / size).floor().long()
        inside = ((index >= 0) & (index < index.new_tensor([self.grid.num_x, self.grid.num_y]))).all(-1)
        return inside, index[:, 1] * self.grid.num_x + index[:, 0]

    # ---- proposals -----------------------------------------------------------------------------------------------

    def proposals(self, outs: LaneMapOutputs, count: int) -> tuple[Tensor, Tensor]:
        """The best ``count`` peaks: control points [B, P, K, 3] without gradient, and features [B, P, C]."""
        with torch.no_grad():
            score = outs.heat.sigmoid()
            peak = local_peaks(score[:, None])[:, 0]
            # a cell beside a peak is a proposal too, but after all peaks: middles of two lanes may share a cell's side
            cells = (peak + 1e-3 * score).flatten(1).topk(min(count, score[0].numel())).indices  # [B, P]
            rows = torch.arange(len(cells), device=cells.device)[:, None]
            controls = outs.controls.flatten(1, 2)[rows, cells]
        return controls, outs.features.flatten(2).transpose(1, 2)[rows, cells]
