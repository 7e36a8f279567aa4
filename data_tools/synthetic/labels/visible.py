"""Which objects a camera sees, with how many pixels, where, and how much of them is hidden or cut off.

Shapes: H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ....geometry.poses import invert_pose, rotation_z, transform_points
from ...labels.mono_targets import corners_in_camera, image_boxes, nearness_m
from ..sensing.observe import CameraPicture
from ..sensing.renderer import RayCaster
from ..sensing.sensors import RigCamera
from ..world.population import WorldObject
from ..world.world import World

_EDGE_PIECES = 8
_NEAREST_M = 0.1  # a corner nearer than this, or behind the camera, has no place in the image

PixelBox = tuple[int, int, int, int]
"""First column, first row, and those after the last."""


@dataclass(frozen=True)
class VisibleObject:
    """One object in one image."""

    thing: WorldObject
    box_xyxy_px: PixelBox
    """Around its visible pixels."""
    area_px: int
    """Visible pixels."""
    whole_xyxy_px: PixelBox
    """Around the pixels that it would have in this image with nothing in front of it."""
    visible_share: float
    """Of those pixels."""
    centre_camera_m: np.ndarray
    """[3] of the 3D box, x right, y down, z ahead."""
    rotation_camera: np.ndarray
    """[3, 3] camera from box (x along the heading)."""
    projected_xyxy_px: np.ndarray | None
    """[4] the 2D box that spans the 3D box's corners, clipped to the image (of its edges, through
    a lens); None with a corner behind the camera."""
    inside_share: float
    """Of that box before it was clipped, the part that lies in the image; 0 where it is None."""
    time_s: float
    """Of the picture."""


def visible_objects(
    world: World, time_s: float, picture: CameraPicture, camera: RigCamera, world_from_ego: np.ndarray
) -> list[VisibleObject]:
    """Everything with at least one pixel in a picture, by instance number."""
    rows, columns = np.nonzero(picture.instance)
    instances, owner = np.unique(picture.instance[rows, columns], return_inverse=True)
    area = np.bincount(owner, minlength=len(instances))
    low = np.full((len(instances), 2), np.iinfo(int).max)
    high = np.zeros((len(instances), 2), int)
    places = np.stack([columns, rows], 1)
    np.minimum.at(low, owner, places)
    np.maximum.at(high, owner, places + 1)
    world_from_camera = world_from_ego @ camera.ego_from_camera
    found = []
    for i, instance in enumerate(instances):
        thing = world.objects[instance - 1]
        (x, y), yaw_rad = (values[0] for values in thing.motion.poses(np.array([time_s]))[:2])
        whole_area, whole_box = _unhidden(thing, x, y, yaw_rad, camera, world_from_camera)
        camera_from_world = invert_pose(world_from_camera)
        centre = transform_points(camera_from_world, np.array([x, y, thing.size_lwh[2] / 2]))
        rotation = camera_from_world[:3, :3] @ rotation_z(yaw_rad)
        projected, inside = _projected(thing, centre, rotation, camera)
        left, top, right, bottom = (int(value) for value in (*low[i], *high[i]))
        found.append(
            VisibleObject(
                thing, (left, top, right, bottom), int(area[i]), whole_box, min(area[i] / max(whole_area, 1), 1.0),
                centre, rotation, projected, inside, time_s,
            )
        )  # fmt: skip
    return found


def _unhidden(
    thing: WorldObject, x: float, y: float, yaw_rad: float, camera: RigCamera, world_from_camera: np.ndarray
) -> tuple[int, PixelBox]:
    """How many pixels an object has that stands alone in the world, and the box around them."""
    placed = thing.mesh.moved(x, y, 0.0, yaw_rad)
    vertices = transform_points(invert_pose(world_from_camera), placed.vertices.astype(np.float64))
    size = np.array([camera.camera.width_px, camera.camera.height_px])
    first, stop = np.zeros(2, int), size  # of the pixels that may meet it
    outline = vertices if camera.camera.lens is None else _edge_points(vertices[placed.faces])
    uv, _ = camera.camera.project(outline)
    if nearness_m(vertices, camera.camera).min() > _NEAREST_M and np.isfinite(uv).all():
        first = np.clip(np.floor(uv.min(0)).astype(int), 0, size - 1)
        stop = np.clip(np.ceil(uv.max(0)).astype(int) + 1, first + 1, size)
    rays = camera.rays[first[1] : stop[1], first[0] : stop[0]]  # [h, w, 3]
    met = np.isfinite(rays[..., 0])
    directions = (rays[met] @ world_from_camera[:3, :3].T).astype(np.float32)
    met[met] = RayCaster(placed).first_hits(world_from_camera[:3, 3], directions).face >= 0
    rows, columns = np.flatnonzero(met.any(1)), np.flatnonzero(met.any(0))
    if not len(rows):
        return 0, (0, 0, 0, 0)
    left, top = int(first[0] + columns[0]), int(first[1] + rows[0])
    return int(met.sum()), (left, top, int(first[0] + columns[-1]) + 1, int(first[1] + rows[-1]) + 1)


def _edge_points(corners: np.ndarray) -> np.ndarray:
    """Points along the edges of triangles [F, 3, 3], which are curves in the image of a lens: between them lies all."""
    at = np.linspace(0, 1, _EDGE_PIECES, endpoint=False)[:, None]
    a = corners[:, :, None]
    return (a + (np.roll(corners, -1, 1)[:, :, None] - a) * at).reshape(-1, 3)


def _projected(
    thing: WorldObject, centre_m: np.ndarray, rotation: np.ndarray, camera: RigCamera
) -> tuple[np.ndarray | None, float]:
    corners = corners_in_camera(centre_m[None], rotation[None], np.array([thing.size_lwh]))
    if nearness_m(corners, camera.camera).min() <= _NEAREST_M:
        return None, 0.0
    boxes, inside = image_boxes(corners, camera.camera)
    return boxes[0], float(inside[0])
