"""Which objects a camera sees, with how many pixels, and how much of them is hidden or cut off.

Shapes: H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ....geometry.poses import invert_pose, transform_points
from ...labels.mono_targets import corners_in_camera, image_boxes
from ..sensing.observe import CameraPicture
from ..sensing.renderer import RayCaster
from ..sensing.sensors import RigCamera
from ..world.population import WorldObject
from ..world.world import World

_NEAREST_M = 0.1  # a corner nearer than this, or behind the camera, has no place in the image


@dataclass(frozen=True)
class VisibleObject:
    """One object in one image."""

    thing: WorldObject
    box_xyxy_px: tuple[int, int, int, int]
    """Around its visible pixels: first column, first row, and those after the last."""
    area_px: int
    """Visible pixels."""
    visible_share: float
    """Of the pixels that it would have in this image with nothing in front of it."""
    inside_share: float
    """Of the 2D box of its 3D box, the part that lies in the image; 0 where it reaches behind the camera."""


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
    found = []
    for i, instance in enumerate(instances):
        thing = world.objects[instance - 1]
        whole, inside = _unhidden(thing, time_s, camera, world_from_ego)
        left, top, right, bottom = (int(value) for value in (*low[i], *high[i]))
        share = min(float(area[i] / max(whole, 1)), 1.0)
        found.append(VisibleObject(thing, (left, top, right, bottom), int(area[i]), share, inside))
    return found


def _unhidden(thing: WorldObject, time_s: float, camera: RigCamera, world_from_ego: np.ndarray) -> tuple[int, float]:
    """Pixels of an object that stands alone in the world, and the share of its 2D box that is inside the image."""
    centre, yaw, _ = thing.motion.poses(np.array([time_s]))
    placed = thing.mesh.moved(centre[0, 0], centre[0, 1], 0.0, yaw[0])
    world_from_camera = world_from_ego @ camera.ego_from_camera
    vertices = transform_points(invert_pose(world_from_camera), placed.vertices.astype(np.float64))
    width_px, height_px = camera.camera.width_px, camera.camera.height_px
    region, inside = (slice(height_px), slice(width_px)), 0.0
    if vertices[:, 2].min() > _NEAREST_M:
        box = _projected_box(thing, centre[0], yaw[0], camera, world_from_camera)
        uv, _ = camera.camera.project(vertices)
        first = np.clip(np.floor(uv.min(0)).astype(int), 0, (width_px, height_px))
        stop = np.clip(np.ceil(uv.max(0)).astype(int) + 1, 0, (width_px, height_px))
        region, inside = (slice(first[1], stop[1]), slice(first[0], stop[0])), box
    rays = camera.rays[region].reshape(-1, 3) @ world_from_camera[:3, :3].T
    hits = RayCaster(placed).first_hits(world_from_camera[:3, 3], rays.astype(np.float32))
    return int((hits.face >= 0).sum()), inside


def _projected_box(
    thing: WorldObject, centre_xy: np.ndarray, yaw_rad: float, camera: RigCamera, world_from_camera: np.ndarray
) -> float:
    """The share of the 2D box that spans the 3D box's corners that lies in the image; 0 with a corner behind."""
    camera_from_world = invert_pose(world_from_camera)
    cos, sin = np.cos(yaw_rad), np.sin(yaw_rad)
    rotation = camera_from_world[:3, :3] @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    centre = transform_points(camera_from_world, np.array([[*centre_xy, thing.size_lwh[2] / 2]]))
    corners = corners_in_camera(centre, rotation[None], np.array([thing.size_lwh]))
    if corners[..., 2].min() < _NEAREST_M:
        return 0.0
    return float(image_boxes(corners, camera.camera)[1][0])
