"""2D and 3D labels of single images for the perspective head (DD3D).

A box is kept as upstream keeps it: labelled class, at least three LiDAR or radar points, seen by the camera as the
devkit's ``get_sample_data`` decides (all corners at least 0.1 m in front, one of them inside the image and beyond
1 m), and at least 20 % of its 2D box inside the image. The 2D box spans the eight projected corners. Boxes whose
2D box lies outside the crop go afterwards. Projections go through the camera's lens.

Source: DD3D (arXiv 2108.06417) and its nuScenes reader; spec: BEVFormer v2's DD3DMapper. Shapes: n boxes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ...core.frames import Annotations, CameraView
from ...core.labels import MonoTargets
from ...geometry import CameraModel, invert_pose, matrix_to_quaternion, transform_points
from ...geometry.lenses import MAX_LENS_ANGLE
from ..clips.transforms import ImagePlacement

NO_ATTRIBUTE = 3
ATTRIBUTE_IDS = {
    "vehicle.moving": 0,
    "vehicle.parked": 1,
    "vehicle.stopped": 2,
    "pedestrian.moving": 0,
    "pedestrian.standing": 1,
    "pedestrian.sitting_lying_down": 2,
    "cycle.with_rider": 0,
    "cycle.without_rider": 1,
    "": NO_ATTRIBUTE,
}

MIN_POINTS = 3
MIN_INSIDE = 0.2
MIN_SIDE_PX = 1e-5

_SIGNS = np.array([[x, y, z] for x in (1, -1) for y in (1, -1) for z in (1, -1)], dtype=np.float64) / 2
_EDGES = np.array([(i, j) for i in range(8) for j in range(i) if (_SIGNS[i] != _SIGNS[j]).sum() == 1])  # [12, 2]
_PIECES = 16  # of an edge, for its curve
_GRID = np.stack(np.meshgrid(*[np.linspace(-0.5, 0.5, 9)] * 3), -1).reshape(-1, 3)
_ON_FACES = np.prod(0.5 + 2 * _GRID[(abs(_GRID) == 0.5).any(1), None] * _SIGNS, -1)
"""[points, 8] weights of the corners for points on all faces."""


def corners_in_camera(
    centre_m: NDArray[np.float64], rotation: NDArray[np.float64], size_lwh_m: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Corners [n, 8, 3] of boxes with centres [n, 3], rotations [n, 3, 3] and sizes [n, 3] (order: not defined)."""
    local = size_lwh_m[:, None] * _SIGNS  # [n, 8, 3]
    return local @ rotation.swapaxes(1, 2) + centre_m[:, None]


def nearness_m(points_camera: NDArray[np.float64], camera: CameraModel) -> NDArray[np.float64]:
    """What must be above 0 for points [..., 3] to be ahead of the camera: depth, or distance if it sees past 90
    degrees."""
    if camera.lens is None or camera.lens.limit_rad <= np.pi / 2:
        return points_camera[..., 2]
    return np.linalg.norm(points_camera, axis=-1)


def edge_pixels(corners_m: NDArray[np.float64], camera: CameraModel) -> NDArray[np.float64]:
    """Pixels [n, points, 2] along the edges of boxes with corners [n, 8, 3], which a lens bends; NaN where not seen."""
    ends = corners_m[:, _EDGES]  # [n, 12, 2, 3]
    a, b = ends[:, :, :1], ends[:, :, 1:]
    points = a + (b - a) * np.linspace(0, 1, _PIECES + 1)[:, None]  # [n, 12, points, 3]
    return camera.project(points.reshape(len(corners_m), -1, 3))[0]


def devkit_visible(corners_m: NDArray[np.float64], camera: CameraModel) -> NDArray[np.bool_]:
    """Which boxes with corners [n, 8, 3] the devkit calls visible (BoxVisibility.ANY), bool [n]."""
    uv, _ = camera.project(corners_m)
    near_m = nearness_m(corners_m, camera)
    with np.errstate(invalid="ignore"):  # NaN pixels, of what the camera cannot see, compare False
        inside = np.all((uv > 0) & (uv < [camera.width_px, camera.height_px]), axis=-1)
    return np.any(inside & (near_m > 1), axis=1) & np.all(near_m > 0.1, axis=1)


def image_boxes(corners_m: NDArray[np.float64], camera: CameraModel) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """2D boxes [n, 4] of corners [n, 8, 3], clipped to the image, and the share [n] of each that is inside it.

    Through a lens edges are curves: the box spans them, as far as the lens sees; where it sees nothing the share is 0.
    """
    if camera.lens is None:
        with np.errstate(divide="ignore", invalid="ignore"):
            projected = corners_m @ camera.intrinsics.T
            uv = projected[..., :2] / projected[..., 2:]  # [n, 8, 2]
        full = np.concatenate([uv.min(1), uv.max(1)], 1)  # [n, 4]
    else:
        full = _bounds(edge_pixels(corners_m, camera))
        ends = np.isnan(camera.project(corners_m)[0][..., 0])
        if (cut := ends.any(1) & ~ends.all(1)).any():  # where the lens ends within a box, faces reach beyond the edges
            faces = _bounds(camera.project(_ON_FACES @ corners_m[cut])[0])
            full[cut, :2], full[cut, 2:] = (
                np.minimum(full[cut, :2], faces[:, :2]),
                np.maximum(full[cut, 2:], faces[:, 2:]),
            )
        full[full[:, 2] < full[:, 0]] = 0.0  # nothing is seen
    clipped = np.clip(full, 0, [camera.width_px, camera.height_px] * 2)
    area = np.prod(full[:, 2:] - full[:, :2], axis=1)
    inside = np.prod(clipped[:, 2:] - clipped[:, :2], axis=1) / np.maximum(area, 1e-12)
    return clipped, inside


def _bounds(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Boxes [n, 4] around pixels [n, points, 2] that are seen; from infinity to minus infinity where none is."""
    seen = np.isfinite(pixels).all(-1, keepdims=True)
    return np.concatenate([np.where(seen, pixels, np.inf).min(1), np.where(seen, pixels, -np.inf).max(1)], 1)


def mono_targets(
    annotations: Annotations, view: CameraView, classes: Sequence[str], placement: ImagePlacement
) -> MonoTargets | None:
    """Targets of one image after crop and resize (not mirrored), or None if nothing is left.

    3D boxes stay in the camera frame in metres; they go with the intrinsics and the lens of ``placement.camera``. A box
    whose centre the camera could not see, or sees at more than MAX_LENS_ANGLE from its axis, has no target.
    """
    label_of = {name: i for i, name in enumerate(classes)}
    labels = np.array([label_of.get(name, -1) for name in annotations.names], dtype=np.int64)
    enough = annotations.num_lidar_points + annotations.num_radar_points >= MIN_POINTS
    keep = np.flatnonzero((labels >= 0) & enough)
    if not len(keep):
        return None
    camera_from_global = invert_pose(view.global_from_camera)
    centre = transform_points(camera_from_global, annotations.centre_global_m[keep])
    rotation = camera_from_global[:3, :3] @ annotations.rotation_global[keep]
    size_lwh = annotations.size_lwh_m[keep]

    corners = corners_in_camera(centre, rotation, size_lwh)
    boxes, inside = image_boxes(corners, view.camera)
    boxes = placement.boxes(boxes)
    sides = boxes[:, 2:] - boxes[:, :2]
    good = devkit_visible(corners, view.camera) & (inside >= MIN_INSIDE)
    good &= (sides > MIN_SIDE_PX).all(1) & np.isfinite(view.camera.project(centre)[0]).all(1)
    if view.camera.lens is not None:
        good &= np.arctan2(np.hypot(centre[:, 0], centre[:, 1]), centre[:, 2]) < MAX_LENS_ANGLE
    if not good.any():
        return None
    keep = keep[good]
    quaternion = matrix_to_quaternion(rotation[good])
    boxes3d = np.concatenate([quaternion, centre[good], size_lwh[good][:, [1, 0, 2]]], 1)  # [m, 10]
    speed = np.linalg.norm(annotations.velocity_global_mps[keep], axis=1)
    return MonoTargets(
        boxes_xyxy_px=torch.from_numpy(boxes[good].astype(np.float32)),
        labels=torch.from_numpy(labels[keep]),
        boxes3d_camera=torch.from_numpy(boxes3d.astype(np.float32)),
        attributes=torch.tensor([ATTRIBUTE_IDS.get(annotations.attributes[i], NO_ATTRIBUTE) for i in keep]),
        speed=torch.from_numpy(speed.astype(np.float32)),
    )
