"""Voxel metrics: mIoU under each mask, the surface F-score, and OpenOccupancy's SC and SSC.

Shapes: X, Y, Z voxels, K classes. Sources: the CVPR 2023 occupancy challenge (Occ3D, arXiv 2304.14365); OpenOccupancy,
arXiv 2303.03991.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from ...geometry import OCC3D_GRID, VoxelGrid

Grid = NDArray[np.integer]
MASKS = ("camera", "lidar", "none")
_IGNORED = 255


class ConfusionMatrix:
    """Voxels by true class (rows) and predicted class (columns), added up over samples.

    Labels outside 0..num_classes-1, as 255, do not count.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.counts = np.zeros((num_classes, num_classes), np.int64)

    def add(self, truth: Grid, predicted: Grid, mask: NDArray[np.bool_] | None = None) -> None:
        """Count one sample, [X, Y, Z] each; where the mask is False nothing counts.

        Raises ValueError for a predicted class that does not exist, or other shapes.
        """
        if truth.shape != predicted.shape:
            raise ValueError(f"predicted voxels {list(predicted.shape)}, labels {list(truth.shape)}")
        if mask is not None:
            truth, predicted = truth[mask], predicted[mask]
        known = (truth >= 0) & (truth < self.num_classes)
        truth, predicted = truth[known].astype(np.int64), predicted[known].astype(np.int64)
        if len(predicted) and not 0 <= predicted.min() <= predicted.max() < self.num_classes:
            raise ValueError(f"predicted class {predicted.max()}: classes are 0..{self.num_classes - 1}")
        flat = np.bincount(truth * self.num_classes + predicted, minlength=self.num_classes**2)
        self.counts += flat.reshape(self.num_classes, self.num_classes)

    def iou(self) -> NDArray[np.float64]:
        """[K] intersection over union, NaN for a class that neither labels nor predictions have."""
        hits = np.diag(self.counts).astype(np.float64)
        union = self.counts.sum(0) + self.counts.sum(1) - hits
        return np.divide(hits, union, out=np.full(self.num_classes, np.nan), where=union > 0)

    def mean_iou(self, free: int | None = None) -> float:
        """Mean over the classes that occur, without ``free`` (default: the last class); NaN if none occurs."""
        iou = np.delete(self.iou(), self.num_classes - 1 if free is None else free)
        return float(np.nanmean(iou)) if np.isfinite(iou).any() else float("nan")


def fscore(
    truth: Grid,
    predicted: Grid,
    mask: NDArray[np.bool_] | None = None,
    threshold_m: float = 0.4,
    free: int = 17,
    grid: VoxelGrid = OCC3D_GRID,
) -> tuple[float, float, float]:
    """(F, accuracy, completeness) of occupied voxels as points, whatever their class.

    Accuracy: share of predicted points with a true point nearer than ``threshold_m``; completeness the other way.
    Neighbours are exactly one threshold apart, so the strict comparison depends on how the centres round: they are
    computed as index * voxel + voxel / 2 + origin in float64, like the official ones (130 of the 199 pairs along x
    count as near). A perfect prediction scores 1.00000001 for the eps in the official formula. Nothing predicted, or
    nothing there: 0.
    """
    occupied = []
    for voxels in (truth, predicted):
        there = (voxels != free) & (voxels != _IGNORED)
        occupied.append(there if mask is None else there & mask)
    if not all(there.any() for there in occupied):
        return 0.0, 0.0, 0.0
    accuracy = _near(occupied[1], occupied[0], threshold_m, grid)
    completeness = _near(occupied[0], occupied[1], threshold_m, grid)
    return 2.0 / (1.0 / (accuracy + 1e-8) + 1.0 / (completeness + 1e-8)), accuracy, completeness


def _near(cells: NDArray[np.bool_], others: NDArray[np.bool_], threshold_m: float, grid: VoxelGrid) -> float:
    """Share of the occupied ``cells`` [X, Y, Z] with the centre of an occupied one of ``others`` nearer than that."""
    near = cells & others
    voxel_m = grid.voxel_m.round(6)
    reach = [range(-r, r + 1) for r in np.floor(threshold_m / voxel_m + 1e-6).astype(int)]
    for offset in itertools.product(*reach):
        if not any(offset) or np.linalg.norm(offset * voxel_m) > threshold_m * (1 + 1e-6):
            continue
        here = tuple(slice(max(-step, 0), n - max(step, 0)) for step, n in zip(offset, cells.shape))
        there = tuple(slice(max(step, 0), n - max(-step, 0)) for step, n in zip(offset, cells.shape))
        squared = np.zeros((1, 1, 1))
        for axis in np.flatnonzero(offset):
            centre = np.arange(cells.shape[axis]) * voxel_m[axis] + voxel_m[axis] / 2 + grid.origin_m[axis]
            gap = centre[there[axis]] - centre[here[axis]]
            squared = squared + np.expand_dims(gap**2, [i for i in range(3) if i != axis])
        near[here] |= cells[here] & others[there] & (np.sqrt(squared) < threshold_m)
    return float(near.sum() / cells.sum())


def openoccupancy_scores(counts: NDArray[np.int64]) -> tuple[float, NDArray[np.float64], float]:
    """(geometric IoU of what is not free, IoU of each class, their mean) from a confusion matrix with free = 0.

    The mean is over classes 1..16 that occur; OpenOccupancy takes the plain mean, which one absent class makes NaN.
    """
    matrix = ConfusionMatrix(len(counts))
    matrix.counts = counts
    iou = matrix.iou()
    hits = counts[1:, 1:].sum()
    union = counts.sum() - counts[0, 0]
    return float(hits / union) if union else float("nan"), iou, matrix.mean_iou(free=0)
