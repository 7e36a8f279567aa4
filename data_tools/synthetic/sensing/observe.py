"""What the rig sees of a world at one moment: pictures, LiDAR points, and how much of each object.

Shapes: N LiDAR points, H x W pixels. Instance number 0 means "no annotated object".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ....geometry.poses import invert_pose, transform_points
from ...labels.mono_targets import nearness_m
from ..world.world import Light, World
from .renderer import Hits, RayCaster, shade, to_image
from .sensors import LIDAR_RANGE_M, RigCamera, ego_from_lidar, lidar_rays

_PROBES = 96  # surface points per object for the visible share
SKY, UNSEEN = 255, 254
"""In a picture's semantic: nothing was met; and the pixel has no line of sight, since the lens ends before it."""


@dataclass(frozen=True)
class CameraPicture:
    """One camera's picture with its per-pixel truth."""

    name: str
    image: np.ndarray  # [H, W, 3] uint8
    instance: np.ndarray  # [H, W] int32
    semantic: np.ndarray  # [H, W] uint8, or SKY, UNSEEN
    structure: np.ndarray  # [H, W] uint8, world.mesh.Structure
    depth_m: np.ndarray  # [H, W] float32 along the viewing axis (below 0 beyond 90 degrees), inf = sky or unseen


@dataclass(frozen=True)
class LidarScan:
    """One LiDAR turn in the LIDAR frame."""

    points: np.ndarray  # [N, 5] float32: x, y, z, intensity 0..255, ring
    instance: np.ndarray  # [N] int32
    semantic: np.ndarray  # [N] uint8


@dataclass(frozen=True)
class Observation:
    """Everything observed at a keyframe."""

    caster: RayCaster  # the faces of that moment
    pictures: tuple[CameraPicture, ...]
    lidar: LidarScan
    lidar_counts: np.ndarray  # [num objects + 1], by instance number
    pixel_counts: np.ndarray  # [num objects + 1], over all cameras
    visible_share: np.ndarray  # [num objects + 1], 0..1


def observe(world: World, time_s: float, rig: tuple[RigCamera, ...], seed: list[int]) -> Observation:
    """Render one keyframe; `seed` feeds the sensor noise."""
    caster = RayCaster(world.mesh_at(time_s))
    world_from_ego = world.global_from_ego(time_s)
    rng = np.random.default_rng(seed)
    pictures = tuple(take_picture(caster, camera, world_from_ego, world.light, rng) for camera in rig)
    lidar = scan(caster, world_from_ego)
    size = len(world.objects) + 1
    pixels = np.sum([np.bincount(p.instance.ravel(), minlength=size) for p in pictures], axis=0)
    points = np.bincount(lidar.instance, minlength=size)
    share = _visible_share(world, time_s, caster, rig, world_from_ego, np.flatnonzero(pixels))
    return Observation(caster, pictures, lidar, points, pixels, share)


def take_picture(
    caster: RayCaster, camera: RigCamera, world_from_ego: np.ndarray, light: Light, rng: np.random.Generator
) -> CameraPicture:
    """Render one camera at the given ego pose; pixels without a line of sight are black and show nothing."""
    world_from_camera = world_from_ego @ camera.ego_from_camera
    height_px, width_px = camera.rays.shape[:2]
    rays = camera.rays.reshape(-1, 3)
    seen = None if camera.camera.lens is None else np.isfinite(rays[:, 0])
    if seen is not None:
        rays = rays[seen]
    directions = (rays @ world_from_camera[:3, :3].T).astype(np.float32)
    origin = world_from_camera[:3, 3]
    hits = caster.first_hits(origin, directions)

    def whole(values: np.ndarray, unseen: float) -> np.ndarray:
        """Values of the rays, as a picture."""
        if seen is not None:
            out = np.full((len(seen), *values.shape[1:]), unseen, values.dtype)
            out[seen] = values
            values = out
        return values.reshape(height_px, width_px, *values.shape[1:])

    linear = shade(caster, origin, directions, hits, light)
    image = to_image(whole(linear, 0.0).reshape(-1, 3), height_px, width_px, rng)
    if seen is not None:
        image[~seen.reshape(height_px, width_px)] = 0
    mesh = caster.mesh
    return CameraPicture(
        camera.name,
        image,
        whole(_of_face(mesh.instance, hits, 0), 0),
        whole(_of_face(mesh.semantic, hits, SKY), UNSEEN),
        whole(_of_face(mesh.structure, hits, 0), 0),
        whole(_depths(hits.distance_m, rays), np.inf),
    )


def _depths(distance_m: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Along the viewing axis [R]; inf stays inf, also at and beyond 90 degrees."""
    with np.errstate(invalid="ignore"):
        depth = distance_m * rays[:, 2].astype(np.float32)
    return np.where(np.isfinite(distance_m), depth, np.float32(np.inf))


def scan(caster: RayCaster, world_from_ego: np.ndarray) -> LidarScan:
    """One turn of the LiDAR at the given ego pose; rays that meet nothing within range give no point."""
    world_from_lidar = world_from_ego @ ego_from_lidar()
    directions, ring = lidar_rays()
    turned = (directions @ world_from_lidar[:3, :3].T).astype(np.float32)
    hits = caster.first_hits(world_from_lidar[:3, 3], turned)
    keep = (hits.face >= 0) & (hits.distance_m < LIDAR_RANGE_M)
    face, distance = hits.face[keep], hits.distance_m[keep]
    incidence = np.abs(np.einsum("ij,ij->i", caster.normals[face], turned[keep]))
    brightness = np.square(caster.mesh.colour[face]).mean(1)
    intensity = np.clip(255 * brightness * (0.2 + 0.8 * incidence), 0, 255)
    points = np.c_[directions[keep] * distance[:, None], np.floor(intensity), ring[keep]].astype(np.float32)
    return LidarScan(points, caster.mesh.instance[face], caster.mesh.semantic[face])


def _of_face(values: np.ndarray, hits: Hits, otherwise: int) -> np.ndarray:
    return np.where(hits.face >= 0, values[np.maximum(hits.face, 0)], otherwise).astype(values.dtype)


def _visible_share(
    world: World,
    time_s: float,
    caster: RayCaster,
    rig: tuple[RigCamera, ...],
    world_from_ego: np.ndarray,
    seen: np.ndarray,
) -> np.ndarray:
    """For each seen instance: of the rays from a camera to points on its surface, the part that meets it first."""
    share = np.zeros(len(world.objects) + 1)
    instances = [int(i) for i in seen if i > 0]
    if not instances:
        return share
    probes = []
    for i in instances:
        thing = world.objects[i - 1]
        centre, yaw, _ = thing.motion.poses(np.array([time_s]))
        x, y = centre[0]
        placed = thing.mesh.moved(x, y, 0.0, yaw[0])
        probes.append(placed.sample_points(_PROBES, np.random.default_rng(i)))
    points = np.concatenate(probes)
    owner = np.repeat(instances, _PROBES)
    met, cast = np.zeros(len(share)), np.zeros(len(share))
    for camera in rig:
        world_from_camera = world_from_ego @ camera.ego_from_camera
        in_camera = transform_points(invert_pose(world_from_camera), points)
        uv, _ = camera.camera.project(in_camera)
        with np.errstate(invalid="ignore"):
            inside = (
                (nearness_m(in_camera, camera.camera) > 0.1)
                & (uv >= 0).all(-1)
                & (uv[:, 0] < camera.camera.width_px)
                & (uv[:, 1] < camera.camera.height_px)
            )
        offset = points[inside] - world_from_camera[:3, 3]
        direction = (offset / np.linalg.norm(offset, axis=1, keepdims=True)).astype(np.float32)
        first = _of_face(caster.mesh.instance, caster.first_hits(world_from_camera[:3, 3], direction), 0)
        np.add.at(cast, owner[inside], 1)
        np.add.at(met, owner[inside], first == owner[inside])
    return np.divide(met, cast, out=share, where=cast > 0)
