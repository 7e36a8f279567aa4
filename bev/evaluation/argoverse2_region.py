"""The region of interest of Argoverse 2's detection score: the drivable area of a log's map, grown by 5 m.

It is a grid, as officially, because a corner of a box counts by the cell that it falls into.
Source: av2 0.3.6, map/map_api.py (RoiMapLayer), utils/{raster,dilation_utils}.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ...core.errors import DataError

CELLS_PER_M = 10
MARGIN_M = 5.0
MAX_CELLS = 400_000_000
"""Of a grid: the map of a log is some hundred metres wide."""
ANYWHERE = "score without the region of interest: --everywhere, or region_of_interest = False in the config"


def grid_of(areas: Sequence[NDArray[np.float64]]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Lower left corner (m) and size (cells along x and y) of the grid of a map's drivable areas.

    Raises DataError without an area, and for a map that is too large.
    """
    if not areas:
        raise DataError(f"the map has no drivable area; {ANYWHERE}")
    places = np.concatenate([area[:, :2] for area in areas])
    (x_min, y_min), (x_max, y_max) = (
        [int(limit) for limit in np.floor(places.min(0))],
        [int(limit) for limit in np.ceil(places.max(0))],
    )
    size = ((x_max - x_min + 1) * CELLS_PER_M, (y_max - y_min + 1) * CELLS_PER_M)
    if math.prod(size) > MAX_CELLS:
        raise DataError(f"the map is {size[0] // CELLS_PER_M} x {size[1] // CELLS_PER_M} m large; give metres")
    return (x_min, y_min), size


@dataclass(frozen=True)
class RegionOfInterest:
    """Which cells of a grid are on or near drivable area."""

    grid: NDArray[np.bool_]
    """[rows along y, columns along x], from the lower left corner, CELLS_PER_M in each direction."""
    origin_m: tuple[float, float]

    @classmethod
    def of_areas(cls, areas: Sequence[NDArray[np.float64]]) -> RegionOfInterest:
        """From the outlines [points, 2 or 3] of drivable areas, in metres of the global frame.

        Raises DataError as grid_of.
        """
        (x_min, y_min), size = grid_of(areas)
        picture = Image.new("L", size)
        draw = ImageDraw.Draw(picture)
        for area in areas:
            corners = np.round((area[:, :2] - (x_min, y_min)) * CELLS_PER_M).astype(int)
            draw.polygon([(int(x), int(y)) for x, y in corners], outline=1, fill=1)
        outside = 1 - np.array(picture, np.uint8)
        cells = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        return cls(cells <= MARGIN_M * CELLS_PER_M, (float(x_min), float(y_min)))

    def contains(self, points_m: NDArray[np.float64]) -> NDArray[np.bool_]:
        """[n]: whether points [n, 2] lie in the region; outside the grid none does."""
        scaled = (points_m - self.origin_m) * CELLS_PER_M
        column, row = np.trunc(np.clip(scaled, -10, max(self.grid.shape) + 10)).astype(np.int64).T
        height, width = self.grid.shape
        known = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        inside = np.zeros(len(points_m), bool)
        inside[known] = self.grid[row[known], column[known]]
        return inside
