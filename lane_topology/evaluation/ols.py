"""The OpenLane-V2 score (OLS) with its parts, in each of the versions that were in use.

``v2.1`` (also of v1.1) is today's. In ``v1.0`` (also of v2.0) topology is averaged over ten thresholds of confidence
per frame, and edges between undetected items count with full confidence. ``fork-2023`` is v1.0 with the
thresholds read from unsorted confidences: the numbers that InternImage's fork printed.

Differences from the official package, none of which changes a score: arguments are not written into, ties of
confidence are broken by order instead of by an unstable sort, and NumPy 2 gives the numbers of NumPy 1 (recall is
compared with its ticks in float32). Where the old versions stop with an error, because no frame has a lane, the
topology scores 0 as in v2.1.

Shapes: n lanes, k traffic elements, m and j predicted ones. Source: OpenLane-V2,
arXiv 2304.10440, and the package openlanev2 2.1.0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ...core.answers import LaneGraph
from ...core.labels import LaneLabels
from ...data_tools.labels.files import NUM_ATTRIBUTES
from .distances import box_distances, lane_distances

Version = Literal["v2.1", "v1.0", "fork-2023"]
LANE_THRESHOLDS_M = (1.0, 2.0, 3.0)
ELEMENT_THRESHOLD = 0.75
"""Of the distance 1 - IoU: an element is found at an IoU above 0.25."""
_TICKS = np.arange(0, 1.001, 0.1).astype(np.float32)
_NUM_CUTS = 10  # thresholds of confidence in v1.0
_UNMATCHED: Final = 0.5 + float(np.finfo(np.float32).eps)
_ON = 0.5


def match(distance: NDArray[np.float64], scores: NDArray[np.floating], threshold: float) -> NDArray[np.int64]:
    """[m] the true item each predicted one finds, -1 for none; distance [n, m].

    In order of score, each looks at its nearest true item only, and finds it if it is nearer than the threshold and
    not taken.
    """
    found = np.full(distance.shape[1], -1)
    if not distance.size:
        return found
    nearest = np.where(np.isnan(distance), np.inf, distance).argmin(0)
    taken = np.zeros(len(distance), bool)
    for j in np.argsort(-scores, kind="stable"):
        i = nearest[j]
        if distance[i, j] < threshold and not taken[i]:
            taken[i] = True
            found[j] = i
    return found


def average_precision(hits: NDArray[np.bool_], scores: NDArray[np.floating], num_truths: int) -> float:
    """Mean over eleven recalls of the best precision at that recall or a higher one; all frames pooled."""
    if not num_truths:
        return 0.0 if len(hits) else 1.0
    if not len(hits):
        return 0.0
    hits = hits[np.argsort(-scores, kind="stable")].astype(np.float32)
    true_positives = hits.cumsum()
    recall = (true_positives / np.float32(num_truths)).astype(np.float32)
    precision = (true_positives / np.arange(1, len(hits) + 1, dtype=np.float32)).astype(np.float32)
    best = [precision[recall >= tick].max(initial=0.0) for tick in _TICKS]
    return float(np.mean(best, dtype=np.float64))


def vertex_precision(truth: NDArray[np.bool_], confidence: NDArray[np.floating]) -> float:
    """Average precision of the edges of one vertex: truth [n] and confidence [n]; edges above 0.5 are claimed."""
    claimed = np.flatnonzero(confidence > _ON)
    if not truth.any() and not len(claimed):
        return 1.0
    if not truth.any() or not len(claimed):
        return 0.0
    right = truth[claimed[np.argsort(-confidence[claimed], kind="stable")]].astype(np.float32)
    precision = right.cumsum() / np.arange(1, len(right) + 1, dtype=np.float32)
    return float((precision * right).sum(dtype=np.float32)) / int(truth.sum())


def topology_precisions(
    truth: NDArray[np.floating] | NDArray[np.integer],
    confidence: NDArray[np.floating] | NDArray[np.integer],
    row_match: NDArray[np.int64],
    column_match: NDArray[np.int64],
    unmatched: float = _UNMATCHED,
) -> list[float]:
    """Precision of every row (outgoing edges) and column (incoming edges) of truth [n, k].

    confidence [m, j] between predicted items; row_match [m] and column_match [j]: which true item each one found.
    Edges of undetected true items count as wrong, there and not there alike: those that are not there are
    claimed with the confidence ``unmatched``.
    """
    if not truth.size:
        return []
    seen = np.where(truth > 0, 0.0, unmatched)
    rows, columns = np.flatnonzero(row_match >= 0), np.flatnonzero(column_match >= 0)
    seen[np.ix_(row_match[rows], column_match[columns])] = confidence[np.ix_(rows, columns)]
    edges = truth > 0
    outgoing = [vertex_precision(edge, value) for edge, value in zip(edges, seen)]
    return outgoing + [vertex_precision(edge, value) for edge, value in zip(edges.T, seen.T)]


def detection(
    distances: Sequence[NDArray[np.float64]],
    scores: Sequence[NDArray[np.floating]],
    threshold: float,
    classes: tuple[Sequence[NDArray], Sequence[NDArray], int] | None = None,
) -> float:
    """Average precision over all frames; distances [n, m] and scores [m] per frame.

    classes: (classes of the true items [n], of the predicted ones [m], per frame, the one class to look at).
    """
    hits, confidence, count = [np.zeros(0, bool)], [np.zeros(0)], 0
    for i, (distance, score) in enumerate(zip(distances, scores)):
        if classes is not None:
            true, found = classes[0][i] == classes[2], classes[1][i] == classes[2]
            distance, score = distance[np.ix_(true, found)], score[found]
        hits.append(match(distance, score, threshold) >= 0)
        confidence.append(score)
        count += len(distance)
    return average_precision(np.concatenate(hits), np.concatenate(confidence), count)


def topology(
    truths: Sequence[NDArray[np.floating] | NDArray[np.integer]],
    found: Sequence[NDArray[np.floating] | NDArray[np.integer]],
    rows: tuple[Sequence[NDArray[np.int64]], Sequence[NDArray[np.floating]]],
    columns: tuple[Sequence[NDArray[np.int64]], Sequence[NDArray[np.floating]]],
    version: Version = "v2.1",
) -> float:
    """Mean precision over the vertices of all frames; 0 where no frame has any.

    rows and columns: per frame, which true item each predicted one found, and the scores of the predicted ones.
    """
    values: list[float] = []
    for truth, confidence, row, row_scores, column, column_scores in zip(truths, found, *rows, *columns):
        if version == "v2.1":
            values += topology_precisions(truth, confidence, row, column)
            continue
        row_cuts, column_cuts = (_cuts(*of, version) for of in ((row, row_scores), (column, column_scores)))
        for row_cut, column_cut in zip(row_cuts, column_cuts):
            sure_row = np.where(row_scores >= row_cut, row, -1)
            sure_column = np.where(column_scores >= column_cut, column, -1)
            values += topology_precisions(truth, confidence, sure_row, sure_column, unmatched=1.0)
    return float(np.mean(values)) if values else 0.0


def _closest_observations(count: int) -> NDArray[np.int64]:
    """[10] places, in a sorted array of ``count``, of its deciles by NumPy 1's method "closest_observation".

    The official scores were made with NumPy 1, which of two equally close places takes the even one counted from 0;
    NumPy 2 counts from 1 there.
    """
    index = count * (np.arange(10, 101, 10) / 100) - 1.5
    lower = np.floor(index)
    tie_to_even = (index == lower) & (lower % 2 == 0)
    return np.maximum(np.where(tie_to_even, lower, lower + 1), 0).astype(np.int64)


def _cuts(found: NDArray[np.int64], scores: NDArray[np.floating], version: Version) -> NDArray[np.floating]:
    """[10] scores at which a tenth, two tenths, ... of the predictions stand in order of recall (v1.0)."""
    if not len(found):
        return np.zeros(_NUM_CUTS)
    order = np.argsort(-scores, kind="stable")
    hits = (found[order] >= 0).cumsum()  # recall but for a factor
    taken = hits[_closest_observations(len(hits))]
    last = np.searchsorted(hits, taken, side="right") - 1
    return scores[last] if version == "fork-2023" else scores[order][last]


def _ols(det_l: float, det_t: float, top_ll: float, top_lt: float) -> float:
    return float(np.mean([det_l, det_t, np.sqrt(top_ll), np.sqrt(top_lt)]))


def evaluate(
    truths: Sequence[LaneLabels],
    predictions: Sequence[LaneGraph],
    on_frame: Callable[[], None] = lambda: None,
    version: Version = "v2.1",
) -> dict[str, Any]:
    """Scores of predictions against the labels of the same frames, in the same order.

    Returns ``ols`` with its parts ``det_l``, ``det_t``, ``top_ll``, ``top_lt`` (0..1), each part by threshold or
    attribute, ``frames`` and ``metric_version``. An attribute that neither labels nor predictions have scores 1, as
    officially: an empty prediction has a det_t above 0. ``det_t_occurring`` and ``ols_occurring`` are the same over the
    attributes that labels have (None where they have none); one that is predicted only counts in neither.

    Raises ValueError for a different number of labels and predictions, and for an unknown version.
    """
    if len(truths) != len(predictions):
        raise ValueError(f"{len(predictions)} predictions for {len(truths)} labelled frames")
    if version not in get_args(Version):
        raise ValueError(f"no metric version {version!r}; choose from {', '.join(get_args(Version))}")
    lanes, boxes = [], []
    for truth, found in zip(truths, predictions):
        lanes.append(lane_distances(truth.centrelines, list(found.centrelines)))
        boxes.append(box_distances(truth.elements_xyxy_px, found.elements_xyxy_px))
        on_frame()
    lane_scores = [f.lane_scores for f in predictions]
    element_scores = [f.element_scores for f in predictions]
    attributes = [t.attributes for t in truths], [f.attributes for f in predictions]
    elements = [match(d, s, ELEMENT_THRESHOLD) for d, s in zip(boxes, element_scores)], element_scores
    det_l = {t: detection(lanes, lane_scores, t) for t in LANE_THRESHOLDS_M}
    det_t = [detection(boxes, element_scores, ELEMENT_THRESHOLD, (*attributes, a)) for a in range(NUM_ATTRIBUTES)]
    top_ll, top_lt = {}, {}
    for t in LANE_THRESHOLDS_M:
        rows = [match(d, s, t) for d, s in zip(lanes, lane_scores)], lane_scores
        graphs = [f.lane_lane for f in truths], [f.lane_lane for f in predictions]
        top_ll[t] = topology(*graphs, rows, rows, version)
        graphs = [f.lane_element for f in truths], [f.lane_element for f in predictions]
        top_lt[t] = topology(*graphs, rows, elements, version)
    parts = {
        "det_l": float(np.mean(list(det_l.values()))),
        "det_t": float(np.mean(det_t)),
        "top_ll": float(np.mean(list(top_ll.values()))),
        "top_lt": float(np.mean(list(top_lt.values()))),
    }
    present = sorted({int(a) for own in attributes[0] for a in own})
    occurring = float(np.mean([det_t[a] for a in present])) if present else None
    return {
        "metric_version": version,
        "frames": len(truths),
        "ols": _ols(**parts),
        **parts,
        "det_t_occurring": occurring,
        "ols_occurring": None if occurring is None else _ols(**{**parts, "det_t": occurring}),
        "det_l_by_threshold": det_l,
        "det_t_by_attribute": det_t,
        "top_ll_by_threshold": top_ll,
        "top_lt_by_threshold": top_lt,
    }
