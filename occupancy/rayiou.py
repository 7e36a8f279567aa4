"""RayIoU (SparseOcc, arXiv 2312.17118, section 4): what the first thing along a LiDAR-like ray is, and how far.

Every depth along a thick surface counts once, so a prediction gains nothing by being thick. No visibility mask.

Shapes: R rays of a fan, O origins, X, Y, Z voxels, K classes. Source: spec/occupancy.md section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ..geometry import OCC3D_GRID, VoxelGrid

THRESHOLDS_M = (1.0, 2.0, 4.0)
MAX_ORIGINS = 8
ORIGIN_RANGE_M = 39.0
_TOP_RAD = 0.21
_AZIMUTHS = 360


@cache
def ray_fan() -> NDArray[np.float32]:
    """[14040, 3] unit directions: 39 rings from 45 degrees down, closer together towards the horizon, 360 azimuths."""
    pitch = [-(np.pi / 2 - np.arctan(k + 1)) for k in range(10)]
    while pitch[-1] < _TOP_RAD:
        pitch.append(pitch[-1] + (pitch[9] - pitch[8]))
    rings = np.array(pitch)[:, None]
    azimuth = np.deg2rad(np.arange(_AZIMUTHS))[None]
    flat = np.cos(rings)
    fan = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(rings) + 0 * azimuth], -1)
    return fan.reshape(-1, 3).astype(np.float32)


def choose_origins(ego_from_lidar_m: NDArray[np.floating]) -> NDArray[np.float32]:
    """At most 8 of the LiDAR places [k, 3] of a scene's keyframes, in the current EGO frame, evenly chosen from those
    within 39 m in x and in y."""
    places = np.asarray(ego_from_lidar_m, np.float32)
    near = places[(np.abs(places[:, :2]) < ORIGIN_RANGE_M).all(1)]
    if len(near) <= MAX_ORIGINS:
        return near
    return near[np.round(np.linspace(0, len(near) - 1, MAX_ORIGINS)).astype(int)]


def cast_rays(
    voxels: NDArray[np.integer], origins_m: NDArray[np.floating], free: int, grid: VoxelGrid = OCC3D_GRID
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """First occupied voxel along every ray of the fan from every origin.

    Returns class [O * R] (``free`` where a ray leaves the grid), distance in metres at which the ray leaves that voxel
    (or the grid), and the voxel's flat index. Walks from border to border (Amanatides and Woo 1987) in float32, as
    the published metric does; distances therefore depend on no step size.
    """
    shape = np.array(voxels.shape)
    cell_m = np.float32(grid.voxel_m[0])
    origins, low = np.asarray(origins_m, np.float32), grid.origin_m.astype(np.float32)
    ends = origins[:, None] + ray_fan()  # [O, R, 3]
    start = np.repeat((origins - low) / cell_m, ends.shape[1], 0)  # [O * R, 3] in voxels
    # from two rounded points, as published: a direct division would round some rays into other voxels
    direction = (ends.reshape(-1, 3) - low) / cell_m - start
    direction /= np.sqrt((direction**2).sum(1, keepdims=True))
    cell = np.floor(start).astype(np.int64)
    step = np.where(direction >= 0, 1, -1)
    with np.errstate(divide="ignore"):
        delta = np.where(direction != 0, step / direction, np.inf).astype(np.float32)
        border = cell + (step > 0)
        ahead = np.where(direction != 0, (border - start) / direction, np.inf).astype(np.float32)
    classes = np.full(len(start), free, np.int64)
    distance = np.zeros(len(start), np.float32)
    where = np.full(len(start), -1, np.int64)
    occupied = (voxels != free).ravel()
    kinds = voxels.ravel()
    active = np.flatnonzero(((cell >= 0) & (cell < shape)).all(1))
    while len(active):
        axis = 2 - ahead[active][:, ::-1].argmin(1)  # of borders met at once, the last axis first: as published
        index = np.ravel_multi_index(tuple(cell[active].T), voxels.shape)
        distance[active] = ahead[active, axis]
        hit = occupied[index]
        classes[active[hit]], where[active[hit]] = kinds[index[hit]], index[hit]
        active, axis = active[~hit], axis[~hit]
        cell[active, axis] += step[active, axis]
        ahead[active, axis] += delta[active, axis]
        inside = (cell[active, axis] >= 0) & (cell[active, axis] < shape[axis])
        active = active[inside]
    return classes, distance * cell_m, where


class RayIoU:
    """RayIoU, added up over samples.

    num_classes: K, ``free`` (default: the last) among them.
    """

    def __init__(self, num_classes: int = 18, free: int | None = None, thresholds_m: Sequence[float] = THRESHOLDS_M):
        self.num_classes = num_classes
        self.free = num_classes - 1 if free is None else free
        self.thresholds_m = tuple(thresholds_m)
        self.truths = np.zeros(num_classes, np.int64)
        self.claims = np.zeros(num_classes, np.int64)
        self.hits = np.zeros((num_classes, len(self.thresholds_m)), np.int64)
        self.flow_error = np.zeros(num_classes)
        self.flow_count = np.zeros(num_classes, np.int64)

    def add(
        self,
        truth: NDArray[np.integer],
        predicted: NDArray[np.integer],
        origins_m: NDArray[np.floating],
        flows: tuple[NDArray[np.floating], NDArray[np.floating]] | None = None,
        grid: VoxelGrid = OCC3D_GRID,
    ) -> int:
        """Count one sample, [X, Y, Z] each, seen from origins [O, 3] of the EGO frame; the number of rays that count.

        flows: true and predicted velocities [X, Y, Z, 2] in m/s, compared on the hits at 2 m (OccNet 2024).
        """
        true_class, true_m, true_voxel = cast_rays(truth, origins_m, self.free, grid)
        claimed_class, claimed_m, claimed_voxel = cast_rays(predicted, origins_m, self.free, grid)
        counts = true_class != self.free
        true_class, claimed_class = true_class[counts], claimed_class[counts]
        error_m = np.abs(claimed_m[counts] - true_m[counts])
        same = true_class == claimed_class
        self.truths += np.bincount(true_class, minlength=self.num_classes)
        self.claims += np.bincount(claimed_class, minlength=self.num_classes)
        for i, threshold_m in enumerate(self.thresholds_m):
            near = same & (error_m < threshold_m)
            self.hits[:, i] += np.bincount(true_class[near], minlength=self.num_classes)
            if flows is not None and threshold_m == 2.0:
                at = true_voxel[counts][near], claimed_voxel[counts][near]
                true_flow, claimed_flow = (flow.reshape(-1, 2)[index] for flow, index in zip(flows, at))
                length = np.linalg.norm(claimed_flow - true_flow, axis=1)
                self.flow_error += np.bincount(true_class[near], length, minlength=self.num_classes)
                self.flow_count += np.bincount(true_class[near], minlength=self.num_classes)
        return int(counts.sum())

    def iou(self) -> NDArray[np.float64]:
        """[K, thresholds] IoU of each class, NaN where it neither is nor is claimed, and for free."""
        union = (self.truths + self.claims)[:, None] - self.hits
        out = np.divide(self.hits, union, out=np.full(self.hits.shape, np.nan), where=union > 0)
        out[self.free] = np.nan
        return out

    def scores(self) -> dict[str, float]:
        """``RayIoU`` and ``RayIoU@t`` for each threshold in metres."""
        iou = self.iou()
        by_threshold = {f"RayIoU@{t:g}": _mean(iou[:, i]) for i, t in enumerate(self.thresholds_m)}
        return {"RayIoU": _mean(iou)} | by_threshold

    def flow_errors(self) -> NDArray[np.float64]:
        """[K] mean velocity error in m/s over the hits at 2 m, NaN without any."""
        nothing = np.full(self.num_classes, np.nan)
        return np.divide(self.flow_error, self.flow_count, out=nothing, where=self.flow_count > 0)


def occ_score(scores: RayIoU, moving: Sequence[int]) -> dict[str, float]:
    """OccNet 2024: 0.9 RayIoU + 0.1 max(1 - mAVE, 0), mAVE the mean velocity error of the ``moving`` classes."""
    ray_iou = scores.scores()["RayIoU"]
    mave = _mean(scores.flow_errors()[list(moving)])
    return {"RayIoU": ray_iou, "mAVE": mave, "OccScore": 0.9 * ray_iou + 0.1 * max(1.0 - mave, 0.0)}


def _mean(values: NDArray[np.float64]) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
