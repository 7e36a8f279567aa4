"""Voxel files of neighbouring data sets, recognised by what they hold: their grids, and OpenOcc's class numbers.

Sources: Occ3D, arXiv 2304.14365; OpenOcc (OccNet), arXiv 2306.02851; OpenOccupancy, arXiv 2303.03991; SurroundOcc,
arXiv 2303.09551.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_GRIDS = {
    (512, 512, 40): "the grid of OpenOccupancy (0.2 m, LIDAR_TOP frame, free is 0)",
    (100, 100, 8): "a grid of OccNet's first release (1 m)",
    (50, 50, 4): "a coarse grid of 1.6 m",
    (400, 400, 32): "the 0.2 m grid",
    (800, 800, 64): "the 0.1 m grid of Occ3D-Waymo",
    (256, 256, 32): "the grid of SemanticKITTI",
    (200, 200, 16, 2): "a flow, not classes",
    (200, 200, 16, 18): "scores of 18 classes: take their argmax",
    (200, 200, 16, 17): "scores of 17 classes: take their argmax",
    (16, 200, 200): "the axes as [z, y, x] or [z, x, y]: transpose to [x, y, z]",
}
# OpenOcc: car, truck, trailer, bus, construction vehicle, bicycle, motorcycle, pedestrian, cone, barrier, drivable
# surface, other flat, sidewalk, terrain, manmade, vegetation, free
_OCC3D_OF_OPENOCC = np.array([4, 10, 9, 3, 5, 2, 6, 7, 8, 1, 11, 12, 13, 14, 15, 16, 17], np.uint8)
OPENOCC_FREE, OCC3D_FREE = 16, 17


def known_grid(shape: Sequence[int]) -> str:
    """Which data set's voxels have this shape, in words; '' where none that is known here."""
    if len(shape) == 2 and shape[1] in (4, 5):
        return "a list of occupied voxels, as SurroundOcc and OpenOccupancy write their labels"
    return _GRIDS.get(tuple(shape), "")


def has_openocc_numbers(semantics: NDArray[np.integer]) -> bool:
    """Whether classes [X, Y, Z] are numbered as in OpenOcc (free 16), not as in Occ3D (vegetation 16, free 17).

    Most of every street is air: a grid without any 17 in which more than half is 16 has no other reading.
    """
    return not (semantics == OCC3D_FREE).any() and float((semantics == OPENOCC_FREE).mean()) > 0.5


def occ3d_numbers(semantics: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Classes [X, Y, Z] of OpenOcc, 0..16, as those of Occ3D-nuScenes."""
    return _OCC3D_OF_OPENOCC[semantics]
