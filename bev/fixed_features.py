"""What a model with a frozen encoder gives its heads: computed once, stored, and taken from the store in training.

Shapes: B batch, N cameras, C channels, h x w feature cells of a level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..core.batch import BevFeatures
from ..core.feature_store import stack
from ..geometry import BevGrid

BEV_MAP = "bev_map"
Views = Sequence[tuple[int, int]]
"""(pyramid level, camera) of the maps that heads read beside the BEV map."""


def view_name(level: int, camera: int) -> str:
    """Of a stored pyramid map."""
    return f"level{level}_camera{camera}"


def to_store(levels: Sequence[Tensor], features: BevFeatures, views: Views) -> dict[str, Tensor]:
    """Features by name, each [B, ...]: the BEV map, and the pyramid maps [B, N, C, h, w] of the views."""
    maps = {view_name(level, camera): levels[level][:, camera] for level, camera in views}
    return {BEV_MAP: features.bev, **maps}


def from_store(
    stored: Mapping[str, Tensor], grid: BevGrid, views: Views, num_cameras: int
) -> tuple[list[Tensor], BevFeatures]:
    """Pyramid levels [B, N, C, h, w] and BEV map as heads take them. What was not stored is NaN, so that a head which
    reads more than it said does not learn from anything else."""
    levels: list[Tensor] = []
    for level in sorted({level for level, _ in views}):
        seen = {camera: stored[view_name(level, camera)] for own, camera in views if own == level}
        some = next(iter(seen.values()))  # [B, C, h, w]
        nothing = torch.full_like(some, torch.nan)
        maps = [seen.get(camera, nothing)[b] for b in range(len(some)) for camera in range(num_cameras)]
        levels += [some.new_empty(0)] * (level - len(levels))  # between them, levels that nobody reads
        levels.append(stack(maps).unflatten(0, (len(some), num_cameras)))
    return levels, BevFeatures(_as_encoded(stored[BEV_MAP]), grid)


def _as_encoded(bev: Tensor) -> Tensor:
    """The map with the strides of one that BevMap has just made from tokens [B, Q, C]: convolutions choose their
    kernels by them, even by that of an axis of one entry, and round accordingly."""
    return bev.as_strided(bev.shape, (bev.shape[1], *bev.stride()[1:])) if len(bev) == 1 else bev
