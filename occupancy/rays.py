"""A loss along LiDAR-like rays: the probability that the first surface a ray meets is the label's.

RayIoU looks along rays from the LiDAR, so a loss over single voxels trains it only in part: one occupied voxel too
many in front of a surface hides all that lies behind it. Along a ray with voxels k = 0, 1, ... of occupancy o_k the
first hit is voxel k with probability w_k = o_k (1 - o_0) ... (1 - o_{k-1}), as in volume rendering (NeRF, arXiv
2003.08934; for voxels RenderOcc, arXiv 2309.09502). The loss of a ray is -log of the sum of w_k within a tolerance of
the label's first hit; with classes, the o_k in front of the product is the probability of the class that is hit there
in the labels: class and distance are what RayIoU counts.

Shapes: R rays, S steps of a ray, X, Y, Z voxels, K classes, V different voxels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..geometry import OCC3D_GRID
from .evaluation.rayiou import ring_pitches

GRID = OCC3D_GRID
_WALK_M = 0.1  # between looks at the labels; a corner of a voxel that a ray cuts more narrowly can be missed
_STRETCH_M = 10  # walked at a time: most rays end soon
_REACH_M = float((GRID.size_m**2).sum() ** 0.5)


@dataclass(frozen=True)
class Rays:
    """Rays of one sample that hit something, and the voxels to look at on the way."""

    voxels: Tensor
    """[R, S] flat index (ix * num_y + iy) * num_z + iz"""
    valid: Tensor
    """[R, S] bool: False for a step outside the grid, or in the voxel of the step before."""
    window: Tensor
    """[R, S] bool: valid, and within the tolerance of the label's first hit."""
    classes: Tensor
    """[R] long, of the label's first hit"""


@dataclass(frozen=True)
class RayLoss:
    """Settings of the loss. Raises ConfigError for numbers that make no rays."""

    weight: float = 0.2
    """Factor of the term."""
    num_rays: int = 200
    """Per sample; those that hit nothing in the labels, or begin inside something, are left out."""
    steps: int = 40
    """Voxels looked at per ray, one in 0.4 m; further apart before the hit where the way is longer."""
    tolerance_m: float = 1.0
    """Of the distance."""
    with_classes: bool = True
    """A hit must have the label's class, too."""
    spread_m: float = 0.0
    """Half of the rays begin not at the LiDAR (the origin of the BEV frame, as in RayIoU) but up to so far ahead of it
    or behind it: RayIoU also looks from where the LiDAR is in other keyframes."""

    def __post_init__(self) -> None:
        if self.num_rays < 1 or self.tolerance_m <= 0 or self.spread_m < 0:
            raise ConfigError(f"ray_loss: needs num_rays > 0, tolerance_m > 0 and spread_m >= 0, got {self}")
        if self.steps <= 2 * self.window_steps + 1:
            raise ConfigError(
                f"ray_loss.steps: {self.steps} leave none in front of the {2 * self.window_steps + 1} within "
                f"{self.tolerance_m:g} m of a hit: give more"
            )

    @property
    def window_steps(self) -> int:
        """Steps of 0.4 m within the tolerance, on either side of the hit."""
        return math.ceil(self.tolerance_m / float(GRID.voxel_m[0])) - 1

    def draw(self, semantics: Tensor, observed: Tensor | None, free: int, ego_from_lidar: Tensor) -> Rays:
        """Random rays [at most num_rays] of a sample's labels.

        semantics: [X, Y, Z]; observed: [X, Y, Z] bool or None, a ray whose hit was never observed is left out;
        ego_from_lidar: [4, 4].
        """
        origins = ego_from_lidar[:3, 3].float().expand(self.num_rays, 3).clone()
        if self.spread_m:
            moved = torch.arange(self.num_rays, device=origins.device) % 2
            origins[:, 0] += moved * (2 * torch.rand(self.num_rays, device=origins.device) - 1) * self.spread_m
        directions = draw_directions(self.num_rays, origins.device)
        hits_m, voxels = first_hits(semantics, origins, directions, free)
        used = torch.isfinite(hits_m) & (hits_m > 0)
        if observed is not None:
            used &= observed.flatten()[voxels]
        origins, directions, hits_m, voxels = (own[used] for own in (origins, directions, hits_m, voxels))
        return self.place_steps(origins, directions, hits_m, semantics.flatten()[voxels].long())

    def place_steps(self, origins: Tensor, directions: Tensor, hits_m: Tensor, classes: Tensor) -> Rays:
        """The voxels to look at: one in 0.4 m around the hits [R] (m), the others spread evenly on the way there."""
        side, step_m = self.window_steps, float(GRID.voxel_m[0])
        near_m = hits_m[:, None] + step_m * torch.arange(-side, side + 1, device=hits_m.device)
        begins_m = near_m[:, :1].clamp(min=0)
        count = self.steps - near_m.shape[1]
        spacing_m = (begins_m / count).clamp(min=step_m)
        shift = torch.rand(len(hits_m), 1, device=hits_m.device)
        way_m = (torch.arange(count, device=hits_m.device) + shift) * spacing_m
        distances_m = torch.cat([way_m.minimum(begins_m), near_m.clamp(min=0)], 1)  # [R, S], ascending
        voxels, valid = voxels_of(origins, directions, distances_m)
        valid[:, 1:] &= voxels[:, 1:] != voxels[:, :-1]
        return Rays(voxels, valid, valid & (distances_m >= begins_m), classes)

    def __call__(self, rays: Rays, log_probabilities: Callable[[Tensor], Tensor], free: int) -> Tensor:
        """Weighted mean over the rays. log_probabilities: of voxels [V], flat indices in order of z: [V, K] float32.

        At least one ray is needed.
        """
        voxel, place = unique_by_height(rays.voxels)
        found = log_probabilities(voxel)
        row = place * found.shape[1]
        pick = lambda index: found.flatten().index_select(0, index.flatten()).view_as(place)  # its gradient is quick
        log_free = pick(row + free)
        if self.with_classes:
            log_hit = pick(row + rays.classes[:, None])
        else:
            log_hit = torch.log1p(-log_free.exp().clamp(max=1 - 1e-6))
        return -self.weight * hit_log_probability(log_free, log_hit, rays).mean()


def hit_log_probability(log_free: Tensor, log_hit: Tensor, rays: Rays) -> Tensor:
    """[R] log of the sum of w_k over the window, of log probabilities [R, S] of being free, and of being hit."""
    passed = torch.where(rays.valid, log_free, 0.0).cumsum(1)
    before = torch.cat([torch.zeros_like(passed[:, :1]), passed[:, :-1]], 1)
    return torch.where(rays.window, log_hit + before, -torch.inf).logsumexp(1)


def draw_directions(count: int, device: torch.device) -> Tensor:
    """[count, 3] random unit directions, with the pitch distribution of RayIoU's rings and any azimuth."""
    rings = torch.tensor(ring_pitches(), dtype=torch.float32, device=device)
    where = torch.rand(count, device=device) * (len(rings) - 1)
    lower = where.long().clamp(max=len(rings) - 2)
    pitch = torch.lerp(rings[lower], rings[lower + 1], where - lower)
    azimuth = torch.rand(count, device=device) * (2 * math.pi)
    return torch.stack([pitch.cos() * azimuth.cos(), pitch.cos() * azimuth.sin(), pitch.sin()], -1)


def first_hits(semantics: Tensor, origins: Tensor, directions: Tensor, free: int) -> tuple[Tensor, Tensor]:
    """Distance in metres [R] to the first voxel that is not free, infinite without any, and its flat index (0 without).

    semantics: [X, Y, Z]; origins, directions: [R, 3] in the EGO frame, metres. Looks every 0.1 m.
    """
    occupied = (semantics != free).flatten()
    hits_m = torch.full_like(origins[:, 0], torch.inf)
    found = torch.zeros_like(hits_m, dtype=torch.long)
    under_way = torch.arange(len(origins), device=origins.device)
    for begin_m in range(0, math.ceil(_REACH_M), _STRETCH_M):
        steps_m = begin_m + _WALK_M * torch.arange(round(_STRETCH_M / _WALK_M), device=origins.device)
        voxels, inside = voxels_of(origins[under_way], directions[under_way], steps_m.expand(len(under_way), -1))
        passed = ~(occupied[voxels] & inside)
        ends, first = ~passed.all(1), passed.long().cumprod(1).sum(1)
        ended = under_way[ends]
        hits_m[ended] = steps_m[first[ends]]
        found[ended] = voxels[ends, first[ends]]
        under_way = under_way[~ends & inside[:, -1]]
    return hits_m, found


def voxels_of(origins: Tensor, directions: Tensor, distances_m: Tensor) -> tuple[Tensor, Tensor]:
    """Flat voxel index [R, S] at distances [R, S] along rays [R, 3] of the EGO frame, and whether it is inside; 0
    outside."""
    inside, flat = None, 0
    for axis, count in enumerate(GRID.shape):
        size = float(GRID.voxel_m[axis])
        begin = (origins[:, axis, None] - float(GRID.origin_m[axis])) / size
        cell = torch.addcmul(begin, directions[:, axis, None], distances_m, value=1 / size).floor().int()
        within = (cell >= 0) & (cell < count)
        inside = within if inside is None else inside & within
        flat = flat * count + cell
    return torch.where(inside, flat, 0).long(), inside


def unique_by_height(voxels: Tensor) -> tuple[Tensor, Tensor]:
    """The different voxels [V] of flat indices [R, S], lowest layer first, and the place of each of the R x S."""
    columns = GRID.num_x * GRID.num_y
    key, place = torch.unique(voxels % GRID.num_z * columns + voxels // GRID.num_z, return_inverse=True)
    return key % columns * GRID.num_z + key // columns, place
