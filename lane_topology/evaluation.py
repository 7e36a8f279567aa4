"""The OpenLane-V2 score (OLS) with its parts, of version 2.1 of the official evaluation.

Differences from the official package, none of which changes a score: arguments are not written into, ties of
confidence are broken by order instead of by an unstable sort, and NumPy 2 gives the numbers of NumPy 1 (recall is
compared with its ticks in float32).

Shapes: n lanes, k traffic elements, m and j predicted ones. Source: spec/lane_topology.md section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..structures import LaneGraph, LaneLabels
from .distances import box_distances, lane_distances

METRIC_VERSION = "v2.1"
LANE_THRESHOLDS_M = (1.0, 2.0, 3.0)
ELEMENT_THRESHOLD = 0.75
NUM_ATTRIBUTES = 13
_TICKS = np.arange(0, 1.001, 0.1).astype(np.float32)
_UNMATCHED = 0.5 + np.finfo(np.float32).eps
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
    truth: NDArray[np.integer],
    confidence: NDArray[np.floating],
    row_match: NDArray[np.int64],
    column_match: NDArray[np.int64],
) -> list[float]:
    """Precision of every row (outgoing edges) and column (incoming edges) of truth [n, k].

    confidence [m, j] between predicted items; row_match [m] and column_match [j]: which true item each one found.
    Edges of true items that nobody found count as wrong, there and not there alike.
    """
    if not truth.size:
        return []
    seen = np.where(truth > 0, 0.0, _UNMATCHED)  # (1 - truth) * (0.5 + eps)
    rows, columns = np.flatnonzero(row_match >= 0), np.flatnonzero(column_match >= 0)
    seen[np.ix_(row_match[rows], column_match[columns])] = confidence[np.ix_(rows, columns)]
    edges = truth > 0
    outgoing = [vertex_precision(edge, value) for edge, value in zip(edges, seen)]
    return outgoing + [vertex_precision(edge, value) for edge, value in zip(edges.T, seen.T)]


@dataclass
class _Frame:
    truth: LaneLabels
    found: LaneGraph
    lanes: NDArray[np.float64]
    boxes: NDArray[np.float64]


def evaluate(
    truths: Sequence[LaneLabels],
    predictions: Sequence[LaneGraph],
    on_frame: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Scores of predictions against the labels of the same frames, in the same order.

    Returns ``ols`` with its parts ``det_l``, ``det_t``, ``top_ll``, ``top_lt`` (0..1), each part by threshold or
    attribute, ``frames`` and ``metric_version``. An attribute that neither labels nor predictions have scores 1, as
    officially: an empty prediction has a det_t above 0.

    Raises ValueError for a different number of labels and predictions.
    """
    if len(truths) != len(predictions):
        raise ValueError(f"{len(predictions)} predictions for {len(truths)} labelled frames")
    frames = []
    for truth, found in zip(truths, predictions):
        lanes = lane_distances(truth.centrelines, list(found.centrelines))
        frames.append(_Frame(truth, found, lanes, box_distances(truth.elements_xyxy_px, found.elements_xyxy_px)))
        on_frame()
    lane_matches = {t: [match(f.lanes, f.found.lane_scores, t) for f in frames] for t in LANE_THRESHOLDS_M}
    det_l = {t: _detection(frames, matches) for t, matches in lane_matches.items()}
    det_t = [_attribute_detection(frames, attribute) for attribute in range(NUM_ATTRIBUTES)]
    element_matches = [match(f.boxes, f.found.element_scores, ELEMENT_THRESHOLD) for f in frames]
    top_ll, top_lt = {}, {}
    for t, matches in lane_matches.items():
        top_ll[t] = _mean(
            topology_precisions(f.truth.lane_lane, f.found.lane_lane, m, m) for f, m in zip(frames, matches)
        )
        top_lt[t] = _mean(
            topology_precisions(f.truth.lane_element, f.found.lane_element, m, e)
            for f, m, e in zip(frames, matches, element_matches)
        )
    parts = {
        "det_l": float(np.mean(list(det_l.values()))),
        "det_t": float(np.mean(det_t)),
        "top_ll": float(np.mean(list(top_ll.values()))),
        "top_lt": float(np.mean(list(top_lt.values()))),
    }
    ols = np.mean([parts["det_l"], parts["det_t"], np.sqrt(parts["top_ll"]), np.sqrt(parts["top_lt"])])
    return {
        "metric_version": METRIC_VERSION,
        "frames": len(frames),
        "ols": float(ols),
        **parts,
        "det_l_by_threshold": det_l,
        "det_t_by_attribute": det_t,
        "top_ll_by_threshold": top_ll,
        "top_lt_by_threshold": top_lt,
    }


def _detection(frames: Sequence[_Frame], matches: Sequence[NDArray[np.int64]]) -> float:
    hits = np.concatenate([m >= 0 for m in matches]) if matches else np.zeros(0, bool)
    scores = np.concatenate([f.found.lane_scores for f in frames]) if frames else np.zeros(0)
    return average_precision(hits, scores, sum(len(f.truth.centrelines) for f in frames))


def _attribute_detection(frames: Sequence[_Frame], attribute: int) -> float:
    hits, scores, count = [np.zeros(0, bool)], [np.zeros(0)], 0
    for frame in frames:
        true, found = frame.truth.attributes == attribute, frame.found.attributes == attribute
        confidence = frame.found.element_scores[found]
        hits.append(match(frame.boxes[np.ix_(true, found)], confidence, ELEMENT_THRESHOLD) >= 0)
        scores.append(confidence)
        count += int(true.sum())
    return average_precision(np.concatenate(hits), np.concatenate(scores), count)


def _mean(per_frame) -> float:
    """Mean over the vertices of all frames; 0 where no frame has any, as officially."""
    values = [value for frame in per_frame for value in frame]
    return float(np.mean(values)) if values else 0.0
