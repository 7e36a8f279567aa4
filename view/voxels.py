"""Pictures of voxels in 3D, drawn in software: from above and behind the car, or through a camera of the car.

Faces between an occupied and a free voxel are painted far to near into a buffer of face numbers; light, shade in
corners and edges are computed from that buffer. All frames are the EGO frame unless a name says otherwise.

Shapes: X, Y, Z voxels, F faces, K classes, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from ..data_tools.labels.mono_targets import nearness_m
from ..geometry import OCC3D_GRID, CameraModel, VoxelGrid, invert_pose, pose, transform_points
from ..occupancy.classes import OCC3D_NUSCENES
from .colours import PANEL, Colour, Palette

EGO_LENGTH_M, EGO_WIDTH_M = 4.1, 1.7  # Renault Zoe, the nuScenes car

_CAR_COLOUR = (250, 250, 250)
_OVERSAMPLING = 2
_MARGIN = 0.01  # of the picture, around the grid
_SIDES = 0.85  # share of the grid across that fits into the picture
_NEAR_M = 0.5
_SUBPIXEL_BITS = 4
_FADED = 0.22  # of a colour where nothing was observed; the rest is background
_LIGHT = {(2, 1): 1.0, (2, -1): 0.45, (0, -1): 0.82, (0, 1): 0.7, (1, 1): 0.74, (1, -1): 0.62}  # by (axis, side)


@dataclass(frozen=True)
class Viewpoint:
    """A camera in the EGO frame; one of the car's own: its ``ego_from_camera``."""

    camera: CameraModel
    ego_from_camera: NDArray[np.float64]
    """[4, 4]"""
    shows_car: bool = False
    """Fill the free voxels where the car itself stands."""

    @staticmethod
    def behind(
        width_px: int = 800,
        height_px: int = 600,
        eye_m: Sequence[float] = (-70.0, 9.0, 72.0),
        grid: VoxelGrid = OCC3D_GRID,
    ) -> Viewpoint:
        """The oblique bird's-eye view that follows the car: from ``eye_m`` [3] towards it.

        The grid fits but for the ends of its sides. The picture is a window of what that eye sees: the principal
        point need not lie in its middle.
        """
        forward = -np.asarray(eye_m, np.float64)
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right)
        rotation = np.stack([right, np.cross(forward, right), forward], 1)  # columns: camera axes in the ego frame
        ego_from_camera = pose(rotation, np.asarray(eye_m, np.float64))
        unit = CameraModel(np.eye(3), 1, 1)
        corners = grid.origin_m + np.indices((2, 2, 2)).reshape(3, -1).T * grid.size_m
        corners[:, 1] *= _SIDES
        uv, _ = unit.project(transform_points(invert_pose(ego_from_camera), corners))
        low, high = uv.min(0), uv.max(0)
        focal_px = (1 - 2 * _MARGIN) * (np.array([width_px, height_px]) / (high - low)).min()
        centre_px = (np.array([width_px, height_px]) - 1) / 2 - focal_px * (low + high) / 2
        matrix = np.array([[focal_px, 0, centre_px[0]], [0, focal_px, centre_px[1]], [0, 0, 1]])
        return Viewpoint(CameraModel(matrix, width_px, height_px), ego_from_camera, shows_car=True)


def render_voxels(
    semantics: NDArray[np.integer],
    mask: NDArray[np.bool_] | None = None,
    viewpoint: Viewpoint | None = None,
    class_names: Sequence[str] = OCC3D_NUSCENES,
    grid: VoxelGrid = OCC3D_GRID,
    background: Colour = PANEL,
    palette: Mapping[str, Colour] | None = None,
) -> NDArray[np.uint8]:
    """RGB picture [H, W, 3] of voxel classes [X, Y, Z], the last class of ``class_names`` being free.

    mask: [X, Y, Z]; voxels outside it are faded. viewpoint: default ``Viewpoint.behind()``.
    palette: class name -> colour; default that of the list, with the colours of Occ3D where the names are its.
    Classes outside the list, as 255, are not drawn. Raises ValueError if a shape is not the grid's.
    """
    for name, array in (("voxels", semantics), ("mask", mask)):
        if array is not None and array.shape != grid.shape:
            raise ValueError(f"{name} of shape {list(array.shape)}, the grid has {list(grid.shape)}")
    free = len(class_names) - 1
    kinds = np.where((semantics >= 0) & (semantics < free), semantics, free).astype(np.int16)
    viewpoint = viewpoint or Viewpoint.behind(grid=grid)
    if viewpoint.shows_car:
        _park_car(kinds, free, grid)
    width_px, height_px = viewpoint.camera.width_px, viewpoint.camera.height_px
    camera = viewpoint.camera.resized(width_px * _OVERSAMPLING, height_px * _OVERSAMPLING)
    faces = _visible_faces(kinds != free, viewpoint.ego_from_camera[:3, 3], grid)
    buffer, depth_m = _paint(faces, camera, viewpoint.ego_from_camera, grid)
    palette = Palette.of((), class_names) if palette is None else palette
    colour_of = np.array([*(palette[name] for name in class_names[:-1]), (0, 0, 0), _CAR_COLOUR], np.float32)
    colours = _shaded(faces, kinds, colour_of, free, grid)
    if mask is not None:
        seen = (mask | (kinds > free))[tuple(faces.voxels.T)][:, None]
        colours = np.where(seen, colours, _FADED * colours + (1 - _FADED) * np.array(background, np.float32))
    colours = np.concatenate([np.clip(colours, 0, 255), np.array([background], np.float32)])  # -1 is nothing
    picture = colours[buffer] * _edges(buffer, depth_m)[..., None]
    picture = picture.reshape(height_px, _OVERSAMPLING, width_px, _OVERSAMPLING, 3).mean((1, 3))
    return np.round(picture).astype(np.uint8)


@dataclass(frozen=True)
class _Faces:
    """Squares between an occupied voxel and a free one that look towards the eye, far ones first."""

    voxels: NDArray[np.int64]
    """[F, 3] the occupied voxel"""
    axis: NDArray[np.int64]
    """[F] 0, 1, 2: x, y, z"""
    side: NDArray[np.int64]
    """[F] -1 or 1: on which side of the voxel"""


def _park_car(kinds: NDArray[np.int16], free: int, grid: VoxelGrid) -> None:
    """Fill the free voxels where the car itself stands with class ``free + 1``, in place."""
    rear = 1.0 - EGO_LENGTH_M / 2  # the ego frame sits on the rear axle
    for x0, x1, z0, z1 in ((rear, rear + EGO_LENGTH_M, 0.3, 0.9), (rear + 0.4, rear + 2.9, 0.9, 1.5)):
        low, _ = grid.voxels_of([x0, -EGO_WIDTH_M / 2, z0])
        high, _ = grid.voxels_of([x1, EGO_WIDTH_M / 2, z1])
        low, high = np.maximum(low, 0), np.maximum(high + 1, 0)
        part = kinds[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
        part[part == free] = free + 1


def _visible_faces(occupied: NDArray[np.bool_], eye_m: NDArray[np.float64], grid: VoxelGrid) -> _Faces:
    """Along any line of sight the cell distance from the eye grows on every axis: sorting by their sum is exact."""
    padded = np.pad(occupied, 1)
    centre = (slice(1, -1),) * 3
    voxels, axes, sides = [], [], []
    for axis in range(3):
        edge_m = grid.origin_m[axis] + np.arange(grid.shape[axis] + 1) * grid.voxel_m[axis]
        for side in (-1, 1):
            turned = edge_m[:-1] > eye_m[axis] if side < 0 else edge_m[1:] < eye_m[axis]
            free = ~np.roll(padded, -side, axis)[centre]
            facing = turned.reshape([-1 if a == axis else 1 for a in range(3)])
            found = np.argwhere(occupied & free & facing)
            voxels.append(found)
            axes.append(np.full(len(found), axis))
            sides.append(np.full(len(found), side))
    out = np.concatenate(voxels)
    eye_cell = np.floor((eye_m - grid.origin_m) / grid.voxel_m).astype(np.int64)
    order = np.argsort(-np.abs(out - eye_cell).sum(1), kind="stable")
    return _Faces(out[order], np.concatenate(axes)[order], np.concatenate(sides)[order])


def _corners_m(faces: _Faces, grid: VoxelGrid) -> NDArray[np.float64]:
    """[F, 4, 3] corners of the squares, around."""
    around = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    offsets = np.zeros((3, 2, 4, 3), np.int64)  # by axis and side
    for axis in range(3):
        others = [a for a in range(3) if a != axis]
        offsets[axis, :, :, others] = around.T[:, None]
        offsets[axis, 1, :, axis] = 1
    lattice = faces.voxels[:, None] + offsets[faces.axis, (faces.side + 1) // 2]
    return grid.origin_m + lattice * grid.voxel_m


def _paint(
    faces: _Faces, camera: CameraModel, ego_from_camera: NDArray[np.float64], grid: VoxelGrid
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Which face each pixel [H, W] shows, -1 for none, and the depth (distance, beyond 90 degrees) of each face [F]."""
    corners = _corners_m(faces, grid)
    if camera.lens is not None:  # sides are curves: their middles too
        corners = np.stack([corners, (corners + np.roll(corners, -1, 1)) / 2], 2).reshape(len(corners), 8, 3)
    points = transform_points(invert_pose(ego_from_camera), corners.reshape(-1, 3))
    uv = camera.project(points)[0].reshape(*corners.shape[:2], 2)
    depth_m = nearness_m(points, camera).reshape(corners.shape[:2])
    buffer = np.full((camera.height_px, camera.width_px), -1, np.int32)
    with np.errstate(invalid="ignore"):
        inside = (uv.max(1) > 0).all(1) & (uv.min(1) < [camera.width_px, camera.height_px]).all(1)
    drawn = np.flatnonzero(inside & (depth_m.min(1) > _NEAR_M))
    fixed = np.round(uv[drawn] * (1 << _SUBPIXEL_BITS)).astype(np.int32)
    fill = cv2.fillConvexPoly
    for number, polygon in zip(drawn.tolist(), fixed):
        fill(buffer, polygon, (number,), cv2.LINE_8, _SUBPIXEL_BITS)
    return buffer, depth_m.mean(1).astype(np.float32)


def _shaded(
    faces: _Faces, kinds: NDArray[np.int16], palette: NDArray[np.float32], free: int, grid: VoxelGrid
) -> NDArray[np.float32]:
    """[F, 3] colours: by class, the direction of the face, and how open the air before it is."""
    filled = np.pad((kinds != free).astype(np.float32), 3)
    closed = 0.6 * uniform_filter(filled, 3) + 0.4 * uniform_filter(filled, 7)
    step = np.eye(3, dtype=np.int64)[faces.axis] * faces.side[:, None]
    openness = 1 - closed[tuple((faces.voxels + step + 3).T)]
    light = np.array([[_LIGHT[axis, side] for side in (-1, 1)] for axis in range(3)], np.float32)
    shade = light[faces.axis, (faces.side + 1) // 2] * np.clip(0.35 + 0.95 * openness, 0, 1.05)
    shade *= 0.86 + 0.28 * faces.voxels[:, 2] / grid.num_z  # high things are lighter
    return palette[kinds[tuple(faces.voxels.T)]] * shade[:, None].astype(np.float32)


def _edges(buffer: NDArray[np.int32], depth_m: NDArray[np.float32]) -> NDArray[np.float32]:
    """[H, W] below 1 where a face meets another one; weak far away, where the lines would run together."""
    edge = np.zeros(buffer.shape, bool)
    edge[:-1] |= buffer[:-1] != buffer[1:]
    edge[:, :-1] |= buffer[:, :-1] != buffer[:, 1:]
    strength = np.concatenate([np.clip(14 / depth_m, 0.06, 0.3), [0]]).astype(np.float32)
    return 1 - strength[buffer] * edge
