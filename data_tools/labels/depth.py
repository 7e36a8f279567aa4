"""Depth of what a camera's pixels show: from a LiDAR sweep, or from a renderer's file beside a nuScenes-format set.

    depth/<scene name>/<sample token>.npz    one float16 array [2, h, w] for each camera, under its name

The file holds squares of CELL_PX x CELL_PX pixels of the image as it lies on disk (those at the right and bottom border
may be smaller): the nearest and the farthest depth in each, in metres along the viewing axis; inf is sky. Two numbers,
so that a square can be left out where it shows the edge of an object, whose depth no single number says.

Depth points, what both sources give: float32 [m, 4] rows (u, v, nearest_m, farthest_m), with u, v in pixels of an image
and pixel (column, row) at u = column, v = row. A LiDAR point is its own nearest and farthest.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...core.errors import DataError
from ...core.frames import CameraView
from ...geometry import CameraModel, transform_points
from .files import demand_arrays, open_arrays, write_arrays

CELL_PX = 8
NEAREST_M = 0.1
"""What is nearer, or behind the image plane, has no label."""
Sizes = Mapping[str, tuple[int, int]]
"""(width, height) in pixels of each camera's image."""


def depth_file(root: str | Path, scene_name: str, sample_token: str) -> Path:
    return Path(root) / "depth" / scene_name / f"{sample_token}.npz"


def depth_cells(depth_m: NDArray[np.float32]) -> NDArray[np.float16]:
    """Nearest and farthest depth [2, h, w] of the squares of a picture's depth [H, W]; inf where it is sky."""
    height, width = depth_m.shape
    rows, columns = np.arange(0, height, CELL_PX), np.arange(0, width, CELL_PX)
    reduced = [f.reduceat(f.reduceat(depth_m, rows, 0), columns, 1) for f in (np.minimum, np.maximum)]
    return np.stack(reduced).astype(np.float16)


def write_depth(path: str | Path, cells: Mapping[str, NDArray[np.float16]]) -> None:
    """Write the cameras' ``depth_cells`` atomically, compressed."""
    write_arrays(path, cells)


def read_depth(path: str | Path, sizes_px: Sizes) -> dict[str, NDArray[np.float16]]:
    """``depth_cells`` of the cameras named by ``sizes_px``.

    Raises DataError, naming the file and the array, for a missing or broken file, a camera that it lacks, and an array
    that is none of the image's squares.
    """
    with open_arrays(path) as stored:
        demand_arrays(stored, tuple(sizes_px))
        for name, (width_px, height_px) in sizes_px.items():
            expected, header = (2, -(-height_px // CELL_PX), -(-width_px // CELL_PX)), stored.headers[name]
            if header.shape != expected or header.dtype != np.float16:
                raise DataError(
                    f"{path}: {name} is {header}; an image of {width_px}x{height_px} pixels needs float16 "
                    f"{list(expected)}: make the label again"
                )
        return {name: stored.read(name) for name in sizes_px}


def points_of_cells(cells: NDArray[np.float16], camera: CameraModel) -> NDArray[np.float32]:
    """Depth points of ``depth_cells`` [2, h, w] at the middles of their squares, in the camera's image on disk.

    Squares with something nearer than NEAREST_M, or beyond 90 degrees from the axis, give none.
    """
    middles = []
    for size_px in (camera.width_px, camera.height_px):
        starts = np.arange(0, size_px, CELL_PX)
        middles.append((starts + np.minimum(starts + CELL_PX, size_px) - 1) / 2)
    u, v = np.meshgrid(*middles)
    points = np.stack([u, v, *cells.astype(np.float64)], -1).reshape(-1, 4)
    return points[points[:, 2] > NEAREST_M].astype(np.float32)


def points_of_sweep(
    points_bev: NDArray[np.float64], camera_from_bev: NDArray[np.float64], camera: CameraModel
) -> NDArray[np.float32]:
    """Depth points of a LiDAR sweep [n, 3] in the BEV frame, in the pixels of a (cropped and resized) camera.

    camera_from_bev: [4, 4] at the camera's own time. Points outside the image are left out.
    """
    in_camera = transform_points(camera_from_bev, points_bev)
    in_camera = in_camera[in_camera[:, 2] > NEAREST_M]
    uv, depth_m = camera.project(in_camera)
    points = np.concatenate([uv, depth_m[:, None], depth_m[:, None]], 1)
    with np.errstate(invalid="ignore"):  # NaN: outside what the lens sees
        inside = ((uv > -0.5) & (uv < [camera.width_px, camera.height_px])).all(1)
    return points[inside].astype(np.float32)


def image_sizes(views: tuple[CameraView, ...]) -> dict[str, tuple[int, int]]:
    return {view.name: view.image_size_px for view in views}
