"""F-score of lanes ("3D Lane"), the informative number beside the OpenLane-V2 score.

Lanes are compared as y(x) and z(x) at x = -50 .. 49 m, one to one by the cheapest assignment, blind to their direction.
The official package solves the assignment with a min-cost flow; where several assignments are equally cheap it may take
another one. Source: OpenLane (PersFormer), arXiv 2203.11089, as the package openlanev2 2.1.0 computes it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from ...core.answers import LaneGraph
from ...core.labels import LaneLabels
from .distances import Line

_X_M = np.linspace(-50, 50, num=100, endpoint=False)
_NEAR_M = 1.5
_SHARE = 0.75


def fscore(truths: Sequence[LaneLabels], predictions: Sequence[LaneGraph]) -> dict[str, float]:
    """``lane_fscore`` with ``lane_recall`` and ``lane_precision`` over all frames; 0 where there is no lane.

    Raises ValueError for a different number of labels and predictions.
    """
    if len(truths) != len(predictions):
        raise ValueError(f"{len(predictions)} predictions for {len(truths)} labelled frames")
    counts = np.zeros(4)
    for truth, found in zip(truths, predictions):
        counts += _count(truth.centrelines, list(found.centrelines))
    recalled, right, true, claimed = counts
    recall, precision = recalled / max(true, 1), right / max(claimed, 1)
    score = 2 * recall * precision / (recall + precision) if recall + precision else 0.0
    return {"lane_fscore": float(score), "lane_recall": float(recall), "lane_precision": float(precision)}


def _count(truth: Sequence[Line], predicted: Sequence[Line]) -> NDArray[np.float64]:
    """Found true lanes, right predicted lanes, true lanes, predicted lanes, of one frame."""
    true_yz, true_seen = _sample(truth)
    yz, seen = _sample(predicted)
    n, m = len(true_yz), len(yz)
    if not n or not m:
        return np.array([0, 0, n, m], float)
    gaps = np.sqrt(((true_yz[:, None] - yz[None]) ** 2).sum(-1))  # [n, m, 100]
    both = true_seen[:, None] & seen[None]
    either = true_seen[:, None] | seen[None]
    near = (both & (gaps < _NEAR_M)).sum(-1)
    cost = np.where(both, gaps, np.where(either, _NEAR_M, 0.0)).sum(-1)
    cost = np.where((cost > 0) & (cost < 1), 1, cost.astype(np.int64))
    rows, columns = linear_sum_assignment(cost)
    valid = cost[rows, columns] < _NEAR_M * len(_X_M)
    rows, columns = rows[valid], columns[valid]
    found = near[rows, columns] / true_seen[rows].sum(-1) >= _SHARE
    right = near[rows, columns] / seen[columns].sum(-1) >= _SHARE
    return np.array([found.sum(), right.sum(), n, m], float)


def _sample(lines: Sequence[Line]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """y and z [n, 100, 2] at the stations, and at which the lane is there [n, 100]; lanes seen at fewer than 2 are out.

    As officially, a lane that starts beyond the last station, or ends before the first one, is out too.
    """
    values, seen = [], []
    for line in lines:
        line = np.asarray(line, np.float64)
        if len(line) < 2 or line[0, 0] >= _X_M[-1] or line[-1, 0] <= _X_M[0]:
            continue
        there = (_X_M - line[:, 0].min() >= 0) & (_X_M - line[:, 0].max() <= 0)
        if there.sum() < 2:
            continue
        ordered = line[np.argsort(line[:, 0], kind="stable")]
        values.append(np.stack([np.interp(_X_M, ordered[:, 0], ordered[:, i]) for i in (1, 2)], axis=-1))
        seen.append(there)
    if not values:
        return np.zeros((0, len(_X_M), 2)), np.zeros((0, len(_X_M)), bool)
    return np.stack(values), np.stack(seen)
