"""RayIoU (SparseOcc, arXiv 2312.17118, section 4): class and distance of the first surface along LiDAR-like rays.

Every depth along a thick surface counts once, so a prediction gains nothing by being thick. No visibility mask.

Shapes: R rays of a fan, O origins, X, Y, Z voxels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ...geometry import OCC3D_GRID, VoxelGrid

THRESHOLDS_M = (1.0, 2.0, 4.0)
MAX_ORIGINS = 8
ORIGIN_RANGE_M = 39.0
_TOP_RAD = 0.21
_OUTSIDE = -1
_AZIMUTHS = 360


def ring_pitches() -> list[float]:
    """Pitch in radians of the 39 rings: from 45 degrees down, closer together towards the horizon."""
    pitch = [-(np.pi / 2 - np.arctan(k + 1)) for k in range(10)]
    while pitch[-1] < _TOP_RAD:
        pitch.append(pitch[-1] + (pitch[9] - pitch[8]))
    return pitch


@cache
def ray_fan() -> NDArray[np.float32]:
    """[14040, 3] unit directions: ``ring_pitches`` x 360 azimuths."""
    rings = np.array(ring_pitches())[:, None]
    azimuth = np.deg2rad(np.arange(_AZIMUTHS))[None]
    flat = np.cos(rings)
    fan = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(rings) + 0 * azimuth], -1)
    return fan.reshape(-1, 3).astype(np.float32)


def choose_origins(ego_from_bev_m: NDArray[np.floating]) -> NDArray[np.float32]:
    """At most 8 of the LiDAR positions [k, 3] of a scene's keyframes, in the current EGO frame, evenly chosen from
    those within 39 m in x and in y."""
    places = np.asarray(ego_from_bev_m, np.float32)
    near = places[(np.abs(places[:, :2]) < ORIGIN_RANGE_M).all(1)]
    if len(near) <= MAX_ORIGINS:
        return near
    return near[np.round(np.linspace(0, len(near) - 1, MAX_ORIGINS)).astype(int)]


Hits = tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]
"""Of O * R rays: class, distance in metres, flat index of the voxel (-1: none)."""


def cast_rays(
    grids: Sequence[NDArray[np.integer]],
    origins_m: NDArray[np.floating],
    free: int,
    grid: VoxelGrid = OCC3D_GRID,
    origins_at_once: int = 2,
) -> list[Hits]:
    """First occupied voxel along every ray of the fan from every origin [O, 3], in each of ``grids`` [X, Y, Z].

    The class is ``free`` where a ray leaves the grid; the distance is that at which it leaves the voxel (or the grid).
    Walks from border to border (Amanatides and Woo 1987) in float32, as the published metric does; distances
    therefore depend on no step size. All grids are walked in one go. origins_at_once: a matter of speed only.
    """
    origins = np.asarray(origins_m, np.float32)
    kinds = [np.pad(voxels.astype(np.int16), 1, constant_values=_OUTSIDE).ravel() for voxels in grids]
    shape = np.array(grids[0].shape)
    parts = [
        _cast(kinds, shape, origins[i : i + origins_at_once], free, grid)
        for i in range(0, len(origins), origins_at_once)
    ]
    if not parts:
        return [(np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.int64)) for _ in grids]
    joined = []
    for of_grid in zip(*parts):
        classes, distances_m, voxels = (np.concatenate(arrays) for arrays in zip(*of_grid))
        joined.append((classes, distances_m, voxels))
    return joined


def _cast(
    kinds: Sequence[NDArray[np.int16]], shape: NDArray[np.int64], origins: NDArray, free: int, grid: VoxelGrid
) -> list[Hits]:
    """kinds: flat classes of each grid [(X + 2) * (Y + 2) * (Z + 2)]; around ``shape`` lies a border that is outside,
    so the grid needs no bounds check."""
    cell_m, low = np.float32(grid.voxel_m[0]), grid.origin_m.astype(np.float32)
    ends = origins[:, None] + ray_fan()  # [O, R, 3]
    start = np.repeat((origins - low) / cell_m, ends.shape[1], 0)  # [O * R, 3] in voxels
    # from two rounded points, as published: a direct division would round some rays into other voxels
    direction = (ends.reshape(-1, 3) - low) / cell_m - start
    direction /= np.sqrt((direction**2).sum(1, keepdims=True))
    cell = np.floor(start).astype(np.int64)
    step = np.where(direction >= 0, 1, -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        delta = np.where(direction != 0, step / direction, 0).astype(np.float32)
        ahead = np.where(direction != 0, (cell + (step > 0) - start) / direction, np.inf).astype(np.float32)
    strides = np.array([(shape[1] + 2) * (shape[2] + 2), shape[2] + 2, 1])

    found = [
        (np.full(len(start), free, np.int64), np.zeros(len(start), np.float32), np.full(len(start), -1, np.int64))
        for _ in kinds
    ]
    ray = np.flatnonzero(((cell >= 0) & (cell < shape)).all(1))
    at = (cell[ray] + 1) @ strides  # [n] of the rays under way
    x, y, z = np.ascontiguousarray(ahead[ray].T)  # distance of the next border
    further = np.ascontiguousarray(delta[ray].T)  # [3, n]
    move = np.ascontiguousarray((step[ray] * strides).T)
    open_in = np.ones((len(kinds), len(ray)), bool)
    before = np.zeros(len(ray), np.float32)
    while len(ray):
        nearest = np.minimum(np.minimum(x, y), z)
        for kind, still, (classes, distance, where) in zip(kinds, open_in, found):
            here = kind[at]
            hit = np.flatnonzero(still & (here != free))
            if len(hit):
                still[hit] = False
                what, whose = here[hit], ray[hit]
                inside = what != _OUTSIDE
                classes[whose] = np.where(inside, what, free)
                distance[whose] = np.where(inside, nearest[hit], before[hit])
                where[whose] = np.where(inside, at[hit], -1)
        before = nearest
        under_way = open_in.any(0)
        ended = len(ray) - np.count_nonzero(under_way)
        if ended > len(ray) // 8:
            ray, at = ray[under_way], at[under_way]
            before, x, y, z = (own[under_way] for own in (before, x, y, z))
            further, move, open_in = (own[:, under_way] for own in (further, move, open_in))
        elif ended:
            move[:, ~under_way] = 0
        along_z = (z <= y) & (z <= x)  # of borders met at once, the last axis first: as published
        along_y = ~along_z & (y <= x)
        along_x = ~(along_z | along_y)
        for border, own, chosen in zip((x, y, z), further, (along_x, along_y, along_z)):
            border += own * chosen
        at += np.where(along_z, move[2], np.where(along_y, move[1], move[0]))
    for _, distance, where in found:
        distance *= cell_m
        inside = where >= 0
        index = tuple(axis - 1 for axis in np.unravel_index(where[inside], shape + 2))
        where[inside] = np.ravel_multi_index(index, shape)
    return found


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
        (true_class, true_m, true_voxel), (claimed_class, claimed_m, claimed_voxel) = cast_rays(
            (truth, predicted), origins_m, self.free, grid
        )
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
