"""Lines of the world in a camera's image: straight through a pinhole, curves through a lens, cut where it ends.

Shapes: k points.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..data_tools.labels.mono_targets import nearness_m
from ..geometry import CameraModel
from .drawing import NEAR_M

_PIECES = 16  # of an edge, for its curve


def edge_in_camera(camera: CameraModel, ends: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pixels [m, 2] along a segment [2, 3] of the camera frame: two, none, or, through a lens, a curve with NaN where
    it is not seen."""
    if camera.lens is None:
        return camera.project(clip_near(ends))[0][:2]
    return _seen(camera, _divided(ends, _PIECES))


def face_in_camera(camera: CameraModel, corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Outline [m, 2] in pixels of what is seen of a closed polygon [k, 3] of the camera frame; m may be 0."""
    if camera.lens is None:
        return camera.project(clip_near(corners))[0]
    pixels = _seen(camera, _divided(np.concatenate([corners, corners[:1]]), _PIECES))
    return pixels[np.isfinite(pixels[:, 0])]


def lines_in_camera(camera: CameraModel, points: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Pixels [m, 2] of the parts of an open line [k, 3] of the camera frame that lie ahead; through a lens they are
    curves, with NaN where it is not seen."""
    if camera.lens is None:
        return [camera.project(path)[0] for path in paths_in_front(points)]
    return [_seen(camera, _divided(points, _PIECES))]


def clip_near(polygon: NDArray[np.float64], near_m: float = NEAR_M) -> NDArray[np.float64]:
    """The part of a closed polygon (or segment) [k, 3] of the camera frame with depth >= near_m: [m, 3], m may be 0."""
    kept = []
    for a, b in zip(polygon, np.roll(polygon, -1, axis=0)):
        if a[2] >= near_m:
            kept.append(a)
        if (a[2] >= near_m) != (b[2] >= near_m):
            kept.append(a + (near_m - a[2]) / (b[2] - a[2]) * (b - a))
    return np.array(kept).reshape(-1, 3)


def paths_in_front(points_camera: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """The parts of an open line [points, 3] of the camera frame with depth >= NEAR_M, [>= 2, 3] each."""
    paths: list[list[NDArray[np.float64]]] = [[]]
    for a, b in pairwise(points_camera):
        ahead = a[2] >= NEAR_M, b[2] >= NEAR_M
        if any(ahead):
            crossing = a + (NEAR_M - a[2]) / (b[2] - a[2]) * (b - a) if not all(ahead) else a
            start, end = (a if ahead[0] else crossing), (b if ahead[1] else crossing)
            paths[-1] += [start, end] if not paths[-1] else [end]
        if not ahead[1] and paths[-1]:
            paths.append([])
    return [np.array(path) for path in paths if len(path) > 1]


def _divided(line: NDArray[np.float64], pieces: int) -> NDArray[np.float64]:
    """An open line [k, 3] with each of its segments in so many pieces."""
    if len(line) < 2:
        return line
    at = np.linspace(0, len(line) - 1, (len(line) - 1) * pieces + 1)
    return np.stack([np.interp(at, np.arange(len(line)), line[:, axis]) for axis in range(3)], 1)


def _seen(camera: CameraModel, points: NDArray[np.float64]) -> NDArray[np.float64]:
    uv, _ = camera.project(points)
    uv = np.where((nearness_m(points, camera) >= NEAR_M)[:, None], uv, np.nan)
    if camera.lens is not None and camera.lens.kind == "cylinder":  # behind it the two ends of the image meet
        half_turn = np.pi * abs(camera.intrinsics[0, 0])
        with np.errstate(invalid="ignore"):
            across = np.abs(np.diff(uv[:, 0])) > half_turn
        uv[1:][across] = np.nan
    return uv
