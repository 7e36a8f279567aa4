"""Regular BEV and voxel grids, and the one place where an index becomes metres and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class BevGrid:
    """A grid of num_y x num_x cells over [x_min, x_max] x [y_min, y_max] metres of the BEV (or EGO) frame.

    ::

        y ^   iy = num_y-1 . . .        map tensors are [C, num_y, num_x],
          |                              flattened index = iy * num_x + ix,
          |   iy = 0   ix=0 ix=1 ...     cell (ix, iy) has its centre at
          +--------------------> x       (x_min + (ix + .5) * cell_x_m, y_min + (iy + .5) * cell_y_m)

    Raises ValueError for an empty range or no cells.
    """

    x_min: float
    y_min: float
    x_max: float
    y_max: float
    num_x: int
    num_y: int

    def __post_init__(self) -> None:
        if self.x_max <= self.x_min or self.y_max <= self.y_min or self.num_x < 1 or self.num_y < 1:
            raise ValueError(f"empty grid: {self}")

    @property
    def cell_x_m(self) -> float:
        return (self.x_max - self.x_min) / self.num_x

    @property
    def cell_y_m(self) -> float:
        return (self.y_max - self.y_min) / self.num_y

    def cell_centres(self) -> NDArray[np.float64]:
        """Centres in metres, [num_y, num_x, 2] (x, y)."""
        x = self.x_min + (np.arange(self.num_x) + 0.5) * self.cell_x_m
        y = self.y_min + (np.arange(self.num_y) + 0.5) * self.cell_y_m
        return np.stack(np.meshgrid(x, y), -1)

    def cells_of(self, points_m: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Cells (ix, iy) [..., 2] that hold the points [..., >=2] in metres, and which points are inside the grid."""
        p = np.asarray(points_m, dtype=np.float64)
        cells = np.floor((p[..., :2] - [self.x_min, self.y_min]) / [self.cell_x_m, self.cell_y_m]).astype(np.int64)
        inside = np.all((cells >= 0) & (cells < [self.num_x, self.num_y]), axis=-1)
        return cells, inside


@dataclass(frozen=True)
class VoxelGrid:
    """A grid of num_x x num_y x num_z voxels; arrays are indexed [ix, iy, iz] as in Occ3D. Units metres.

    Raises ValueError for an empty range or no voxels.
    """

    x_min: float
    y_min: float
    z_min: float
    x_max: float
    y_max: float
    z_max: float
    num_x: int
    num_y: int
    num_z: int

    def __post_init__(self) -> None:
        if np.any(self.size_m <= 0) or min(self.shape) < 1:
            raise ValueError(f"empty grid: {self}")

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.num_x, self.num_y, self.num_z

    @property
    def origin_m(self) -> NDArray[np.float64]:
        return np.array([self.x_min, self.y_min, self.z_min])

    @property
    def size_m(self) -> NDArray[np.float64]:
        """Extent of the whole grid, [3]."""
        return np.array([self.x_max, self.y_max, self.z_max]) - self.origin_m

    @property
    def voxel_m(self) -> NDArray[np.float64]:
        """Edge lengths of one voxel, [3]."""
        return self.size_m / self.shape

    def centres_of(self, voxels: ArrayLike) -> NDArray[np.float64]:
        """Centres [..., 3] in metres of voxel indices [..., 3]."""
        return self.origin_m + (np.asarray(voxels, dtype=np.float64) + 0.5) * self.voxel_m

    def voxels_of(self, points_m: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Voxel indices [..., 3] that hold the points [..., 3] in metres, and which points are inside the grid."""
        p = np.asarray(points_m, dtype=np.float64)
        voxels = np.floor((p - self.origin_m) / self.voxel_m).astype(np.int64)
        in_x, in_y, in_z = ((voxels[..., k] >= 0) & (voxels[..., k] < size) for k, size in enumerate(self.shape))
        return voxels, in_x & in_y & in_z  # column by column: numpy is slow along an axis of three


OCC3D_GRID = VoxelGrid(-40.0, -40.0, -1.0, 40.0, 40.0, 5.4, 200, 200, 16)
"""The voxels of Occ3D-nuScenes and of Occ3D-Waymo's 0.4 m labels, in the EGO frame of the keyframe."""
