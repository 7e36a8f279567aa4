"""Voxel measures beside mIoU and RayIoU: space that is out of sight now, and how thick predicted surfaces are.

Shapes: X, Y, Z voxels, R rays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.frames import Frame
from ...core.labels import OccupancyLabels
from ...data_tools.labels.files import read_occupancy
from ...geometry import OCC3D_GRID, VoxelGrid, invert_pose, transform_points
from ..classes import OCC3D_NUSCENES
from .evaluate import classes_of, lidar_place
from .miou import ConfusionMatrix
from .rayiou import cast_rays, ray_fan

PAST_S = 2.0
_STEP_M = 0.1
_LONGEST_M = 10.0
_GROUND = ("driveable_surface", "other_flat", "sidewalk", "terrain", "road", "walkable")


def ground_classes(class_names: Sequence[str] = OCC3D_NUSCENES) -> list[int]:
    """Those that rays meet at grazing angles, where a run of voxels says nothing about thickness."""
    return [i for i, name in enumerate(class_names) if name in _GROUND]


def hidden_voxels(
    frames: Sequence[Frame],
    predicted: Callable[[str], NDArray[np.integer]],
    past_s: float = PAST_S,
    grid: VoxelGrid = OCC3D_GRID,
) -> dict[str, Any] | None:
    """mIoU where no camera sees now, and a memory could say more than a guess.

    ``lidar``: voxels in mask_lidar and not in mask_camera, what accumulated LiDAR rays of the scene saw. ``cameras``:
    those of no mask_camera now whose centre lies in a voxel that cameras saw in a keyframe at most ``past_s`` ago (the
    ego's motion undone; what moves may have come or gone since). Each has ``miou``, ``occupied_iou`` (occupied or free,
    whatever the class; None where there is nothing) and ``voxels``. None where the labels have no masks.
    """
    count = len(classes_of(frames))
    free = count - 1
    matrices = {name: ConfusionMatrix(count) for name in ("lidar", "cameras")}
    centres = grid.centres_of(np.indices(grid.shape).reshape(3, -1).T)  # [X * Y * Z, 3] ego
    past: list[tuple[Frame, NDArray[np.bool_]]] = []
    for frame in frames:
        labels = read_occupancy(frame.occupancy_path, count)
        if labels.mask_camera is None or labels.mask_lidar is None:
            return None
        voxels = predicted(frame.token)
        past = [(other, mask) for other, mask in past if _is_recent(other, frame, past_s)]
        masks = {
            "lidar": labels.mask_lidar & ~labels.mask_camera,
            "cameras": _seen_before(frame, past, labels, centres, grid),
        }
        for name, matrix in matrices.items():
            matrix.add(labels.semantics, voxels, masks[name])
        past.append((frame, labels.mask_camera))
    return {name: _scores(matrix, free) for name, matrix in matrices.items()}


def _is_recent(other: Frame, frame: Frame, past_s: float) -> bool:
    return other.scene_token == frame.scene_token and (frame.timestamp_us - other.timestamp_us) * 1e-6 <= past_s


def _seen_before(
    frame: Frame,
    past: Sequence[tuple[Frame, NDArray[np.bool_]]],
    labels: OccupancyLabels,
    centres: NDArray[np.float64],
    grid: VoxelGrid,
) -> NDArray[np.bool_]:
    """[X, Y, Z] out of sight now and seen by cameras in one of the frames of the past."""
    assert labels.mask_camera is not None
    seen = np.zeros(grid.shape, bool).ravel()
    hidden = ~labels.mask_camera.ravel()
    for other, mask in past:
        open_ = np.flatnonzero(hidden & ~seen)
        other_from_ego = invert_pose(other.global_from_ego) @ frame.global_from_ego
        there, inside = grid.voxels_of(transform_points(other_from_ego, centres[open_]))
        seen[open_[inside]] = mask[tuple(there[inside].T)]
    return seen.reshape(grid.shape)


def _scores(matrix: ConfusionMatrix, free: int) -> dict[str, Any]:
    counts = matrix.counts
    hits = counts[:free, :free].sum()
    union = counts.sum() - counts[free, free]
    miou = matrix.mean_iou()
    return {
        "miou": float(miou) if np.isfinite(miou) else None,
        "occupied_iou": float(hits / union) if union else None,
        "voxels": int(counts.sum()),
    }


def surface_thickness(
    frames: Sequence[Frame], predicted: Callable[[str], NDArray[np.integer]], grid: VoxelGrid = OCC3D_GRID
) -> dict[str, float | None]:
    """Mean length in metres of the run of occupied voxels that a ray meets from its first hit on: ``predicted``, and
    ``labels`` for comparison.

    Rays are those of RayIoU from the LiDAR's place of the keyframe, whose first hit is no ground; ground ends a run, as
    free space does. Runs are followed in steps of 0.1 m up to 10 m. None where no ray hits.
    """
    names = classes_of(frames)
    sums = {"predicted": [0.0, 0], "labels": [0.0, 0]}
    for frame in frames:
        truth, origin_m = read_occupancy(frame.occupancy_path, len(names)).semantics, lidar_place(frame)
        for name, voxels in (("predicted", predicted(frame.token)), ("labels", truth)):
            runs = run_lengths(voxels, origin_m, grid, names)
            sums[name][0] += float(runs.sum())
            sums[name][1] += len(runs)
    return {name: total / count if count else None for name, (total, count) in sums.items()}


def run_lengths(
    voxels: NDArray[np.integer],
    origin_m: NDArray[np.floating],
    grid: VoxelGrid = OCC3D_GRID,
    class_names: Sequence[str] = OCC3D_NUSCENES,
) -> NDArray[np.float64]:
    """[rays that first hit something standing] metres, see surface_thickness; origin [3] of the EGO frame."""
    free = len(class_names) - 1
    ground = ground_classes(class_names)
    ((kinds, distance_m, _),) = cast_rays([voxels], np.asarray(origin_m)[None], free, grid)
    standing = ~np.isin(voxels, (*ground, free, 255))  # [X, Y, Z]
    rays = np.flatnonzero((kinds != free) & ~np.isin(kinds, ground))
    steps = np.arange(_STEP_M / 2, _LONGEST_M, _STEP_M)
    # the distance is where a ray leaves its first voxel: the run so far is sought backwards
    return _run(standing, ray_fan()[rays], origin_m, distance_m[rays], steps, grid) + _run(
        standing, ray_fan()[rays], origin_m, distance_m[rays], -steps, grid
    )


def _run(
    standing: NDArray[np.bool_],
    directions: NDArray[np.float32],
    origin_m: NDArray[np.floating],
    from_m: NDArray[np.float32],
    steps_m: NDArray[np.float64],
    grid: VoxelGrid,
) -> NDArray[np.float64]:
    """[R] metres along which voxels stand, one step after another."""
    length, under_way = np.zeros(len(directions)), np.arange(len(directions))
    for step_m in steps_m:
        at = origin_m + directions[under_way] * (from_m[under_way] + step_m)[:, None]
        where, inside = grid.voxels_of(at)
        there = np.zeros(len(at), bool)
        there[inside] = standing[tuple(where[inside].T)]
        under_way = under_way[there]
        if not len(under_way):
            break
        length[under_way] += _STEP_M
    return length


def table(hidden: dict[str, Any] | None, thickness: dict[str, float | None]) -> list[str]:
    """As lines of text."""
    text = lambda value: "-" if value is None else f"{value:.4f}"
    lines = []
    if hidden is not None:
        lines.append(f"{'out of sight now, seen by':<34}{'mIoU':>9}{'IoU occupied':>14}{'voxels':>12}")
        titles = {"lidar": "LiDAR in the scene", "cameras": "cameras in the last 2 s"}
        for name, title in titles.items():
            own = hidden[name]
            lines.append(f"{title:<34}{text(own['miou']):>9}{text(own['occupied_iou']):>14}{own['voxels']:>12}")
    runs = "   ".join(f"{name} {'-' if v is None else f'{v:.2f} m'}" for name, v in thickness.items())
    return [*lines, f"thickness of surfaces along rays: {runs}"]
