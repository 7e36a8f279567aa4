"""Voxel labels of a keyframe, from the exact geometry: classes and what LiDAR and cameras could observe.

The layout is Occ3D-nuScenes' (arXiv 2304.14365): 200 x 200 x 16 voxels of 0.4 m in the EGO frame, class 17 is free,
surfaces only (a house is hollow). A voxel is observed if a straight line from a sensor reaches it before it meets
a surface nearer than the voxel; so are all voxels in which a camera's pixel or a LiDAR ray ends.

Shapes: F faces, P points, V voxels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from ....core.labels import OccupancyLabels
from ....geometry import OCC3D_GRID, VoxelGrid, invert_pose, transform_points
from ...labels.mono_targets import nearness_m
from ..sensing.observe import CameraPicture, Observation
from ..sensing.renderer import RayCaster
from ..sensing.sensors import LIDAR_RANGE_M, RigCamera, ego_from_lidar
from ..world.mesh import Mesh, Semantic

FREE = 17
_FLAT = (Semantic.DRIVEABLE_SURFACE, Semantic.OTHER_FLAT, Semantic.SIDEWALK, Semantic.TERRAIN)
_STEP_M = 0.18  # between samples of a surface: below half a voxel, so that no voxel that a face crosses is missed
_GROUND_SAMPLES = 3  # per side of a column
_REACH_M = 0.35  # a line that ends this close before a voxel's centre has reached the voxel: half its diagonal
_LIMIT_MARGIN_M = 1e-3
_LEAST_Z = 1e-3  # of a line of sight, below which its length does not follow from the depth
_LIDAR_LOW, _LIDAR_HIGH = np.tan(np.deg2rad([-30.0, 10.0]))


def label_voxels(
    seen: Observation,
    world_from_ego: np.ndarray,
    rig: Sequence[RigCamera],
    lidar_world_m: np.ndarray,
    grid: VoxelGrid = OCC3D_GRID,
) -> OccupancyLabels:
    """Labels of one keyframe.

    seen: what the cameras of ``rig`` and the LiDAR observed. lidar_world_m: [k, 3] places of the LiDAR from which more
    is observed, the scene's keyframes for example, WORLD frame.
    """
    caster = seen.caster
    semantics = voxel_classes(caster.mesh, world_from_ego, grid)
    centres = _centres(grid)
    world = transform_points(world_from_ego, centres.astype(np.float64)).astype(np.float32)
    seen_camera = np.zeros(len(centres), bool)
    for camera, picture in zip(rig, seen.pictures):
        seen_camera |= _seen_by_camera(caster, camera, world_from_ego, grid, world, seen_camera)
        ended, kinds = _pixel_voxels(picture, camera, grid)
        seen_camera[ended] = True
        slivers = semantics.flat[ended] == FREE  # missed between the samples of a surface
        semantics.flat[ended[slivers]] = kinds[slivers]
    seen_lidar = np.zeros(len(centres), bool)
    seen_lidar[_voxels_at(transform_points(ego_from_lidar(), seen.lidar.points[:, :3]), grid)] = True
    for origin in lidar_world_m:
        away = world - origin.astype(np.float32)
        distance = _lengths(away)
        slope = away[:, 2] / np.maximum(np.hypot(away[:, 0], away[:, 1]), 1e-6)
        fan = ~seen_lidar & (slope > _LIDAR_LOW) & (slope < _LIDAR_HIGH) & (distance < LIDAR_RANGE_M)
        seen_lidar[fan] = _reached(caster, origin, away[fan], distance[fan])
    shape = grid.shape
    return OccupancyLabels(semantics, seen_lidar.reshape(shape), seen_camera.reshape(shape))


def voxel_classes(mesh: Mesh, world_from_ego: np.ndarray, grid: VoxelGrid = OCC3D_GRID) -> np.ndarray:
    """[X, Y, Z] uint8: the class of the surfaces in each voxel, FREE where there are none.

    Objects stand above scenery, scenery above ground; of several kinds of ground in a column the most frequent counts.
    """
    ego = transform_points(invert_pose(world_from_ego), mesh.vertices).astype(np.float32)
    out = np.full(grid.shape, FREE, np.uint8)
    flat = np.isin(mesh.semantic, _FLAT)
    _paint_ground(out, _part(mesh, flat, ego), grid)
    corners = ego[mesh.faces[~flat]]  # [F, 3, 3]
    semantic = mesh.semantic[~flat]
    high = np.array([grid.x_max, grid.y_max, grid.z_max])
    near = ((corners.min(1) < high) & (corners.max(1) > grid.origin_m)).all(1)
    points, face = _surface_points(corners[near], _STEP_M)
    voxels, inside = grid.voxels_of(points)
    found, voxels = semantic[near][face[inside]], voxels[inside]
    scenery = (found == Semantic.MANMADE) | (found == Semantic.VEGETATION)
    for chosen in (scenery, ~scenery):
        out[tuple(voxels[chosen].T)] = found[chosen]
    return out


def _part(mesh: Mesh, faces: np.ndarray, vertices: np.ndarray) -> Mesh:
    return Mesh(
        vertices, mesh.faces[faces], mesh.colour[faces], mesh.material[faces], mesh.uv[faces], mesh.semantic[faces],
        mesh.instance[faces], mesh.structure[faces],
    )  # fmt: skip


def _paint_ground(out: np.ndarray, ground: Mesh, grid: VoxelGrid) -> None:
    """Each column gets the topmost ground under a few plumb lines, in the voxel where they meet it."""
    n = _GROUND_SAMPLES
    x, y = (
        low + (np.arange(count * n) + 0.5) * edge / n
        for low, count, edge in zip(grid.origin_m[:2], grid.shape, grid.voxel_m)
    )
    start = np.stack([*np.meshgrid(x, y, indexing="ij"), np.full((len(x), len(y)), grid.z_max)], -1).reshape(-1, 3)
    down = np.tile(np.array([0, 0, -1], np.float32), (len(start), 1))
    hits = RayCaster(ground).first_hits(start.astype(np.float32), down)
    met = hits.face >= 0
    end = start[met] - [0, 0, 1] * hits.distance_m[met, None]
    voxels, inside = grid.voxels_of(end)
    kind = np.searchsorted(_FLAT, ground.semantic[hits.face[met][inside]])
    cell = np.ravel_multi_index(tuple(voxels[inside].T), grid.shape)
    cells, where = np.unique(cell, return_inverse=True)
    votes = np.bincount(where * len(_FLAT) + kind, minlength=len(cells) * len(_FLAT)).reshape(-1, len(_FLAT))
    out.reshape(-1)[cells] = np.array(_FLAT, np.uint8)[votes.argmax(1)]


def _surface_points(corners: np.ndarray, step_m: float) -> tuple[np.ndarray, np.ndarray]:
    """Points [P, 3] over triangles [F, 3, 3] at most ``step_m`` apart along both edges, and the face of each."""
    edges = np.linalg.norm(corners - np.roll(corners, -1, 1), axis=2)  # 0-1, 1-2, 2-0
    apex = (edges.argmax(1) + 2) % 3  # the corner between the two short edges: fewest samples
    order = (apex[:, None] + [0, 1, 2]) % 3
    a, b, c = (np.take_along_axis(corners, order[:, k, None, None], 1)[:, 0] for k in range(3))
    rows, columns = (np.ceil(np.linalg.norm(e - a, axis=1) / step_m).astype(int) + 1 for e in (b, c))
    count = rows * columns
    face = np.repeat(np.arange(len(corners)), count)
    index = np.arange(len(face)) - np.repeat(np.cumsum(count) - count, count)
    u = (index // columns[face]) / np.maximum(rows[face] - 1, 1)
    v = (index % columns[face]) / np.maximum(columns[face] - 1, 1)
    keep = u + v <= 1 + 1e-9
    face, u, v = face[keep], u[keep, None], v[keep, None]
    return a[face] + u * (b - a)[face] + v * (c - a)[face], face


@lru_cache(maxsize=2)
def _centres(grid: VoxelGrid) -> np.ndarray:
    """[V, 3] float32, ego frame."""
    return grid.centres_of(np.indices(grid.shape).reshape(3, -1).T).astype(np.float32)


def _lengths(vectors: np.ndarray) -> np.ndarray:
    """[P] of vectors [P, 3], bit for bit numpy's norm, which is slow along an axis of three."""
    x, y, z = vectors.T
    return np.sqrt(x * x + y * y + z * z)


def _reached(caster: RayCaster, origin: np.ndarray, away: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Whether lines from ``origin`` along ``away`` [P, 3] come close to their ends at ``distance`` [P]."""
    # a little more than the comparison needs, so that the limit itself never decides it
    limit = np.maximum(distance - _REACH_M + _LIMIT_MARGIN_M, _LIMIT_MARGIN_M)
    return caster.distances(origin, away / distance[:, None], limit) > distance - _REACH_M


def _seen_by_camera(
    caster: RayCaster,
    camera: RigCamera,
    world_from_ego: np.ndarray,
    grid: VoxelGrid,
    world: np.ndarray,
    known: np.ndarray,
) -> np.ndarray:
    if grid not in camera.voxels_in_view:
        camera.voxels_in_view[grid] = _in_view(camera, _centres(grid))
    view = camera.voxels_in_view[grid]
    view = view[~known[view]]
    origin = (world_from_ego @ camera.ego_from_camera)[:3, 3]
    away = world[view] - origin.astype(np.float32)
    seen = np.zeros(len(world), bool)
    seen[view] = _reached(caster, origin, away, _lengths(away))
    return seen


def _in_view(camera: RigCamera, centres: np.ndarray) -> np.ndarray:
    """Indices of the points [V, 3] of the ego frame that lie in the camera's image."""
    in_camera = transform_points(invert_pose(camera.ego_from_camera), centres)
    uv, _ = camera.camera.project(in_camera)
    near = nearness_m(in_camera, camera.camera)
    size = (camera.camera.width_px, camera.camera.height_px)
    with np.errstate(invalid="ignore"):
        return np.flatnonzero((near > 0.1) & (uv > -0.5).all(-1) & (uv < np.subtract(size, 0.5)).all(-1))


def _pixel_voxels(picture: CameraPicture, camera: RigCamera, grid: VoxelGrid) -> tuple[np.ndarray, np.ndarray]:
    """Flat indices of the voxels in which the pixels' lines of sight end, and the class of one such pixel of each."""
    rays = camera.rays
    ended = np.isfinite(picture.depth_m)
    if camera.camera.lens is not None:
        ended &= np.abs(np.nan_to_num(rays[..., 2])) > _LEAST_Z
    lines = rays[ended]
    points = lines * (picture.depth_m[ended] / lines[:, 2])[:, None]
    voxels, inside = grid.voxels_of(transform_points(camera.ego_from_camera, points))
    flat = np.ravel_multi_index(tuple(voxels[inside].T), grid.shape)
    first = np.full(math.prod(grid.shape), -1)
    first[flat[::-1]] = np.arange(len(flat))[::-1]  # of pixels in one voxel the first stays
    ended_in = np.flatnonzero(first >= 0)
    return ended_in, picture.semantic[ended][inside][first[ended_in]]


def _voxels_at(points: np.ndarray, grid: VoxelGrid) -> np.ndarray:
    """Flat indices of the voxels that hold points of the ego frame."""
    voxels, inside = grid.voxels_of(points)
    return np.unique(np.ravel_multi_index(tuple(voxels[inside].T), grid.shape))
