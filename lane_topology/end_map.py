"""Where lanes start and end: two heat maps on a grid finer than the lanes' own, with the exact place in each cell.

A metre at the end of a lane decides whether the lane is found and what it connects to, and cells of the lanes' map are
wider than that. Three uses: the loss alone teaches the map; peaks are points of their own; and at inference a lane's
end moves to a peak nearby (``snap``). Connected lanes share a point, so there are fewer points than ends.

Source: TopoPoint, arXiv 2505.17771 (end points as objects, ends moved to points); heat and offsets: Objects as Points,
arXiv 1904.07850. Unlike TopoPoint the points are cells of a map, not queries.

Shapes: B batch, C channels, K control points, n lanes, p points, P peaks, 2 kinds (starts, ends), num_y x num_x cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..bev.boxes.losses import gaussian_focal_loss, mean_over_ranks
from ..bev.heat_maps import bumps, local_peaks
from ..geometry import BevGrid
from .lane_map import SampleNorm

MERGE_M = 0.1
"""Ends nearer than this are one point: lanes that part from or join one another."""
PLACED = 0.3
"""Cells of more heat than this learn where their point lies: those in which its peak may come to be."""


@dataclass(frozen=True)
class EndMapOutputs:
    """What each cell says; index 0 of the two kinds are starts, 1 are ends."""

    heat: Tensor
    """[B, 2, num_y, num_x] logits of "a lane starts (ends) here" """
    places: Tensor
    """[B, 2, num_y, num_x, 3] metres, EGO frame: where exactly"""


@dataclass(frozen=True)
class EndPoints:
    """Peaks of the map, best first."""

    places: Tensor
    """[B, 2, P, 3] metres, EGO frame"""
    scores: Tensor
    """[B, 2, P], 0 where there is no further peak"""


class EndMap(nn.Module):
    """Convolutions on the features of the lanes' map, made ``upsample`` times finer.

    channels: C of the features; grid: of the features, EGO frame; hidden: channels of the finer map; sigma_cells: of
    the bump drawn at a point, in finer cells; max_points: peaks of each kind.
    """

    def __init__(
        self,
        channels: int,
        grid: BevGrid,
        upsample: int = 2,
        hidden: int = 32,
        sigma_cells: float = 1.0,
        max_points: int = 40,
    ) -> None:
        super().__init__()
        fine = BevGrid(grid.x_min, grid.y_min, grid.x_max, grid.y_max, grid.num_x * upsample, grid.num_y * upsample)
        self.grid, self.sigma_cells, self.max_points = fine, sigma_cells, max_points
        self.stem = nn.Sequential(
            nn.Conv2d(channels, hidden * upsample**2, 3, padding=1),
            nn.PixelShuffle(upsample),
            nn.ReLU(True),
            nn.Conv2d(hidden, hidden, 3, padding=1, bias=False),
            SampleNorm(hidden),
            nn.ReLU(True),
        )
        self.cells = nn.Conv2d(hidden, 2 * 4, 1)  # heat and offsets (x, y, z) of each kind
        with torch.no_grad():
            self.cells.bias.zero_()
            self.cells.bias[:2] = -4.0  # few cells hold an end
        self.register_buffer("centres", torch.from_numpy(fine.cell_centres()).float(), persistent=False)
        self.register_buffer("cell_m", torch.tensor([fine.cell_x_m, fine.cell_y_m, 1.0]), persistent=False)

    def forward(self, features: Tensor) -> EndMapOutputs:
        """From features [B, C, y, x] on the coarse grid."""
        raw = self.cells(self.stem(features)).float()
        offsets = raw[:, 2:].unflatten(1, (2, 3)).permute(0, 1, 3, 4, 2) * self.cell_m
        return EndMapOutputs(raw[:, :2], F.pad(self.centres, (0, 1)) + offsets)

    # ---- training ------------------------------------------------------------------------------------------------

    def loss(self, outs: EndMapOutputs, controls: Sequence[Tensor | None]) -> dict[str, Tensor]:
        """Terms ``heat`` and ``places``; controls: B x [n, K, 3] metres, None for a sample without labels."""
        known = torch.tensor([c is not None for c in controls], device=outs.heat.device)[:, None, None, None]
        empty = outs.places.new_zeros(0, 2, 3)
        targets = [self.targets(empty if c is None else c.to(empty)) for c in controls]
        heat, places, weight = (torch.stack(parts) for parts in zip(*targets))
        num_points = mean_over_ranks((heat >= 1).sum().float()).clamp(min=1)
        away = (outs.places - places).abs().sum(-1) * weight * known
        return {
            "heat": (gaussian_focal_loss(outs.heat, heat) * known).sum() / num_points,
            "places": away.sum() / mean_over_ranks((weight * known).sum()).clamp(min=1),
        }

    @torch.no_grad()
    def targets(self, controls: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of one sample's lanes [n, K, 3]: heat [2, num_y, num_x], places [.., 3] and the places' weight. A cell learns
        the nearest point, if that is near; points outside the grid are none.
        """
        kinds = [self._drawn(merge(controls[:, i])) for i in (0, -1)]
        heat, places, weight = (torch.stack(parts) for parts in zip(*kinds))
        return heat, places, weight

    def _drawn(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``targets`` of points [p, 3] of one kind."""
        grid = self.grid
        low, size = points.new_tensor([grid.x_min, grid.y_min]), self.cell_m[:2]
        cells = ((points[:, :2] - low) / size).floor().long()
        inside = ((cells >= 0) & (cells < cells.new_tensor([grid.num_x, grid.num_y]))).all(-1)
        points, cells = points[inside], cells[inside]
        if not len(points):
            empty = self.centres.new_zeros(self.centres.shape[:2])
            return empty, self.centres.new_zeros(*empty.shape, 3), empty
        bump, _ = bumps(cells, grid.num_y, grid.num_x, self.sigma_cells)
        weight, owner = (bump * (bump > PLACED)).max(0)
        return bump.amax(0), points[owner], weight

    # ---- inference -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def points(self, outs: EndMapOutputs) -> EndPoints:
        """The best ``max_points`` peaks of each kind."""
        peaks = local_peaks(outs.heat.sigmoid()).flatten(2)
        scores, cells = peaks.topk(min(self.max_points, peaks.shape[2]), dim=2)  # [B, 2, P]
        places = outs.places.flatten(2, 3).gather(2, cells[..., None].expand(-1, -1, -1, 3))
        return EndPoints(places, scores)


def merge(points: Tensor) -> Tensor:
    """[p, 3] of points [n, 3]: the first of all that lie within MERGE_M of one another on the ground."""
    near = torch.cdist(points[:, :2], points[:, :2]) < MERGE_M  # [n, n]
    return points[near.int().argmax(1) == torch.arange(len(points), device=points.device)] if len(points) else points


@torch.no_grad()
def snap(controls: Tensor, points: EndPoints, radius_m: float, falloff_m: float) -> Tensor:
    """Lanes [B, Q, K, 3] whose starts have moved towards predicted starts, and ends towards ends.

    Each end takes, of the points within ``radius_m`` on the ground, the one of the greatest weight
    w = score exp(-(d / falloff_m)^2), and moves by that share of the way. Inner control points move with both ends,
    each the more the nearer it is along the curve. Without a point nearby a lane stays as it is.
    """
    count = controls.shape[2]
    fade = torch.linspace(1, 0, count).to(controls)  # how far control point k goes with the start
    moves = []
    for kind, own in enumerate((controls[:, :, 0], controls[:, :, -1])):
        places, scores = points.places[:, kind], points.scores[:, kind]  # [B, P, 3], [B, P]
        apart = torch.cdist(own[..., :2], places[..., :2], compute_mode="donot_use_mm_for_euclid_dist")  # [B, Q, P]
        weight = scores[:, None] * torch.exp(-((apart / falloff_m) ** 2)) * (apart < radius_m)
        best, index = weight.max(2)  # [B, Q]
        target = places.gather(1, index[..., None].expand(-1, -1, 3))
        moves.append((target - own) * best[..., None])
    start, end = (move[:, :, None] for move in moves)
    return controls + fade[:, None] * start + fade.flip(0)[:, None] * end
