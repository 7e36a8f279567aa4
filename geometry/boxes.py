"""3D boxes as arrays, and the only conversions from and to the old LiDAR box convention.

A box is a row (x, y, z, l, w, h, yaw_rad[, vx, vy]): gravity centre, length along the heading, width across it,
height, heading counter-clockwise from +x, velocity in the same frame. Functions take NumPy arrays or torch tensors
and return the same kind, except where the docstring names NumPy.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar, overload

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from shapely import area, intersection, polygons

from .poses import wrap_angle

Array = TypeVar("Array", NDArray[np.float64], NDArray[np.floating], torch.Tensor)

# Corner signs on (l, w, h), in the order of the picture in box_corners.
_SIGNS = np.array(
    [[1, 1, -1], [1, -1, -1], [-1, -1, -1], [-1, 1, -1], [1, 1, 1], [1, -1, 1], [-1, -1, 1], [-1, 1, 1]],
    dtype=np.float64,
)


def _like(values: NDArray[np.float64], like: Array) -> Array:
    if isinstance(like, torch.Tensor):
        return torch.as_tensor(values, dtype=like.dtype, device=like.device)
    return values.astype(like.dtype)


def _stack(columns: list[Array]) -> Array:
    return torch.stack(columns, -1) if isinstance(columns[0], torch.Tensor) else np.stack(columns, -1)


def _cat(parts: list[Array]) -> Array:
    return torch.cat(parts, -1) if isinstance(parts[0], torch.Tensor) else np.concatenate(parts, -1)


def _cos_sin(angle_rad: Array) -> tuple[Array, Array]:
    if isinstance(angle_rad, torch.Tensor):
        return angle_rad.cos(), angle_rad.sin()
    return np.cos(angle_rad), np.sin(angle_rad)


def box_corners(boxes: Array) -> Array:
    """Corners [n, 8, 3] of boxes [n, >=7], in metres.

    ::

              7 -------- 4          z (up)
             /|         /|          |   x (heading, l)
            / |        / |          |  /
           6 -------- 5  |          | /
           |  3 ------|- 0     y ---+
           | /        | /     (w)
           |/         |/        0 1 4 5 is the front face,
           2 -------- 1         0 1 2 3 the bottom.
    """
    signs = _like(_SIGNS, boxes)
    local = boxes[..., None, 3:6] * signs * 0.5  # [n, 8, 3] along (l, w, h)
    c, s = _cos_sin(boxes[..., None, 6])
    x = local[..., 0] * c - local[..., 1] * s
    y = local[..., 0] * s + local[..., 1] * c
    return _stack([x, y, local[..., 2]]) + boxes[..., None, :3]


def box_corners_bev(boxes: Array) -> Array:
    """Footprint corners [n, 4, 2]: front left, front right, rear right, rear left."""
    return box_corners(boxes)[..., :4, :2]


def transform_boxes(a_from_b: Array, boxes_b: Array) -> Array:
    """Boxes of frame b in frame a: centres fully, headings and velocities about z only.

    a_from_b: [4, 4]; boxes_b: [n, 7] or [n, 9]. Exact where the two frames differ by a rotation about z and a
    translation; a small roll or pitch (vehicle to global) tilts centres but not headings, as in nuScenes practice.
    """
    centre = boxes_b[..., :3] @ a_from_b[:3, :3].T + a_from_b[:3, 3]
    c, s = _cos_sin(boxes_b[..., 6])
    dx = a_from_b[0, 0] * c + a_from_b[0, 1] * s
    dy = a_from_b[1, 0] * c + a_from_b[1, 1] * s
    yaw = torch.atan2(dy, dx) if isinstance(boxes_b, torch.Tensor) else np.arctan2(dy, dx)
    parts = [centre, boxes_b[..., 3:6], yaw[..., None]]
    if boxes_b.shape[-1] == 9:
        parts.append(boxes_b[..., 7:9] @ a_from_b[:2, :2].T)
    return _cat(parts)


def boxes_from_legacy(boxes_legacy: Array) -> Array:
    """Boxes from the LiDAR convention of mmdet3d < 1.0: (x, y, z_bottom, w, l, h, yaw_clockwise[, vx, vy]).

    yaw = -yaw_clockwise - pi/2; z = z_bottom + h / 2 (mmdet3d docs, changelog v1.0.0rc0; nuScenes converters).
    """
    b = boxes_legacy
    yaw = wrap_angle(-b[..., 6] - math.pi / 2)
    columns: list[Array] = [b[..., 0], b[..., 1], b[..., 2] + b[..., 5] / 2, b[..., 4], b[..., 3], b[..., 5], yaw]
    return _stack(columns + [b[..., i] for i in range(7, b.shape[-1])])


def boxes_to_legacy(boxes: Array) -> Array:
    """The inverse of :func:`boxes_from_legacy`."""
    b = boxes
    yaw = wrap_angle(-b[..., 6] - math.pi / 2)
    columns: list[Array] = [b[..., 0], b[..., 1], b[..., 2] - b[..., 5] / 2, b[..., 4], b[..., 3], b[..., 5], yaw]
    return _stack(columns + [b[..., i] for i in range(7, b.shape[-1])])


@overload
def points_in_boxes(points: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor: ...
@overload
def points_in_boxes(points: NDArray[np.floating], boxes: NDArray[np.floating]) -> NDArray[np.bool_]: ...
def points_in_boxes(points: Any, boxes: Any) -> Any:
    """Which points [m, 3] lie in which boxes [n, >=7], faces included: bool [m, n]."""
    relative = points[:, None, :3] - boxes[None, :, :3]  # [m, n, 3]
    c, s = _cos_sin(boxes[None, :, 6])
    along = relative[..., 0] * c + relative[..., 1] * s
    across = -relative[..., 0] * s + relative[..., 1] * c
    local = _stack([along, across, relative[..., 2]])
    return (abs(local) <= boxes[None, :, 3:6] / 2).all(-1)


def bev_overlap(boxes_a: Array, boxes_b: Array, aligned: bool = False) -> NDArray[np.float64]:
    """Common areas [n, m] of the footprints of boxes [n, >=7] and [m, >=7]; [n] of each pair with `aligned`, n = m.

    NumPy, by shapely.
    """
    a, b = (np.asarray(x, dtype=np.float64) for x in (boxes_a, boxes_b))
    overlap = np.zeros(len(a) if aligned else (len(a), len(b)))
    if not overlap.size:
        return overlap
    polygons_a, polygons_b = polygons(box_corners_bev(a)), polygons(box_corners_bev(b))
    if aligned:
        return area(intersection(polygons_a, polygons_b))
    reach = np.hypot(a[:, 3], a[:, 4])[:, None] / 2 + np.hypot(b[:, 3], b[:, 4])[None] / 2
    near = np.hypot(a[:, None, 0] - b[None, :, 0], a[:, None, 1] - b[None, :, 1]) < reach
    i, j = np.nonzero(near)  # only footprints whose circumcircles meet can overlap
    overlap[i, j] = area(intersection(polygons_a[i], polygons_b[j]))
    return overlap


def bev_iou(boxes_a: Array, boxes_b: Array, aligned: bool = False) -> NDArray[np.float64]:
    """Intersection over union [n, m] of the footprints of boxes, shapes and `aligned` as in `bev_overlap`."""
    overlap = bev_overlap(boxes_a, boxes_b, aligned)
    area_a, area_b = (np.prod(np.asarray(x, dtype=np.float64)[..., 3:5], -1) for x in (boxes_a, boxes_b))
    return overlap / np.maximum((area_a if aligned else area_a[:, None]) + area_b - overlap, 1e-12)


def bev_nms(boxes: ArrayLike, scores: ArrayLike, iou_threshold: float, max_num: int | None = None) -> NDArray[np.int64]:
    """Greedy non-maximum suppression on footprints: kept indices, best score first (NumPy).

    boxes: [n, >=7]; scores: [n]; a box goes if its IoU with a better kept one exceeds ``iou_threshold``.
    """
    candidates = np.asarray(boxes, dtype=np.float64)
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    if not len(order):
        return order
    corners = box_corners_bev(candidates)
    shapes, areas = polygons(corners), np.prod(candidates[:, 3:5], axis=1)
    low, high = corners.min(1), corners.max(1)  # [n, 2]
    kept: list[int] = []
    while len(order) and (max_num is None or len(kept) < max_num):
        best, rest = order[0], order[1:]
        kept.append(int(best))
        # The exact overlap is dear: it is needed only where its bound, that of upright boxes, exceeds the threshold.
        sides = np.minimum(high[rest], high[best]) - np.maximum(low[rest], low[best])
        most = np.minimum(np.prod(np.maximum(sides, 0), axis=1), np.minimum(areas[rest], areas[best]))
        total = areas[rest] + areas[best]
        doubtful = most > iou_threshold * np.maximum(total - most, 1e-12) * (1 - 1e-9)
        overlap = np.zeros(len(rest))
        overlap[doubtful] = area(intersection(shapes[best], shapes[rest[doubtful]]))
        order = rest[overlap / np.maximum(total - overlap, 1e-12) <= iou_threshold]
    return np.array(kept, dtype=np.int64)
