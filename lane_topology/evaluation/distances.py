"""How far lanes and boxes are from one another, as OpenLane-V2 (arXiv 2304.10440) scores them.

Shapes: n true and m predicted lanes of any number of points [points, 3], k and j boxes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Line = NDArray[np.floating]
PREFILTER_M = 3.0
FAR = 1024.0
"""Distance of lanes that the prefilter separates."""


def _gaps(a: Line, b: Line) -> NDArray[np.float64]:
    """[points of a, points of b] Euclidean distances."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))


def frechet(a: Line, b: Line) -> float:
    """Discrete Frechet distance: the longest leash of the best walk along both, which keeps their direction."""
    gaps = _gaps(a, b)
    reach = np.maximum.accumulate(gaps[0])
    for row in gaps[1:]:
        before = reach
        reach = np.empty_like(row)
        reach[0] = max(before[0], row[0])
        step = np.minimum(before[1:], before[:-1])  # came from the row before
        for j in range(1, len(row)):
            reach[j] = max(min(step[j - 1], reach[j - 1]), row[j])
    return float(reach[-1])


def chamfer(truth: Line, predicted: Line) -> float:
    """Mean of the two mean distances to the nearest point. The last point of a closed true line does not count."""
    if len(truth) > 1 and np.array_equal(truth[0], truth[-1]):
        truth = truth[:-1]
    gaps = _gaps(truth, predicted)
    return float((gaps.min(0).mean() + gaps.min(1).mean()) / 2)


def relaxation(truth: Line) -> float:
    """Factor by which distances to a true lane shrink: 0.5 % per metre between it and the car, 0.5 at least."""
    return max(0.5, 1.0 - 0.005 * float(np.linalg.norm(truth.astype(np.float64), axis=1).min()))


def lane_distances(truth: Sequence[Line], predicted: Sequence[Line]) -> NDArray[np.float64]:
    """[n, m] relaxed Frechet distances, FAR where the relaxed chamfer distance is 3 m or more."""
    out = np.full((len(truth), len(predicted)), FAR)
    for i, line in enumerate(truth):
        factor = relaxation(line)
        for j, other in enumerate(predicted):
            if factor * chamfer(line, other) < PREFILTER_M:
                out[i, j] = factor * frechet(line, other)
    return out


def box_distances(truth: NDArray[np.floating], predicted: NDArray[np.floating]) -> NDArray[np.float64]:
    """[k, j] 1 - IoU of boxes (x1, y1, x2, y2), IoU in float32 as official. A box without area meets nothing: 1."""
    a, b = truth.astype(np.float32)[:, None], predicted.astype(np.float32)[None]
    side = (np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])).clip(0)
    shared = side[..., 0] * side[..., 1]
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - shared
    iou = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return 1.0 - iou.astype(np.float64)
