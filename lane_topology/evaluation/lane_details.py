"""Lane measures beside OLS: by distance, gaps between lanes that connect, and end points as objects.

Shapes: n true and m predicted lanes, p points.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.answers import LaneGraph
from ...core.frames import Frame
from ...core.labels import LaneLabels
from .distances import Line, lane_distances
from .evaluate import thinned
from .ols import LANE_THRESHOLDS_M, average_precision, match

BANDS_M = ((0.0, 20.0), (20.0, 35.0), (35.0, 50.0))
SURE = 0.3
"""Lanes above this score are claimed where a measure needs a decision."""
NEAR_M, FAR_M = 1.0, 5.0
_SPACING_M = 1.0
_ONE_POINT_M = 0.5


def by_distance(
    truths: Sequence[LaneLabels], predictions: Sequence[LaneGraph], bands_m: Sequence[tuple[float, float]] = BANDS_M
) -> dict[str, dict[str, float | None]]:
    """Lanes point by point, in rings around the car's origin.

    All lines are cut to points 1 m apart; predicted lanes are those above a score of 0.3. For each band, named "0-20":
    ``recall``, the share of true points with a predicted one nearer than 1 m; ``precision`` the other way;
    ``distance_m``, the mean distance of true points to the nearest predicted one, 5 m at most. None without points.
    """
    found: dict[str, list[NDArray[np.float64]]] = {}
    for truth, graph in zip(truths, predictions):
        true = _points(truth.centrelines)
        claimed = _points([line for line, s in zip(graph.centrelines, graph.lane_scores) if s > SURE])
        there, back = _nearest_m(true, claimed), _nearest_m(claimed, true)
        for low, high in bands_m:
            for name, own, gaps in (("true", true, there), ("claimed", claimed, back)):
                radius = np.hypot(own[:, 0], own[:, 1])
                found.setdefault(f"{low:g}-{high:g} {name}", []).append(gaps[(radius >= low) & (radius < high)])
    out: dict[str, dict[str, float | None]] = {}
    for low, high in bands_m:
        band = f"{low:g}-{high:g}"
        true_m, claimed_m = (np.concatenate([np.zeros(0), *found.get(f"{band} {n}", [])]) for n in ("true", "claimed"))
        out[band] = {
            "recall": _mean(true_m < NEAR_M),
            "precision": _mean(claimed_m < NEAR_M),
            "distance_m": _mean(true_m),
        }
    return out


def _points(lines: Sequence[Line]) -> NDArray[np.float64]:
    """[p, 3] evenly spaced along each line, both ends among them."""
    parts = [np.zeros((0, 3))]
    for line in lines:
        line = np.asarray(line, np.float64)
        way = np.concatenate([[0.0], np.linalg.norm(np.diff(line, axis=0), axis=1).cumsum()])
        at = np.linspace(0, way[-1], int(np.ceil(way[-1] / _SPACING_M)) + 1)
        parts.append(np.stack([np.interp(at, way, line[:, k]) for k in range(3)], 1))
    return np.concatenate(parts)


def _nearest_m(points: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """[p] distance to the nearest of the others, FAR_M at most."""
    if not len(points) or not len(others):
        return np.full(len(points), FAR_M)
    squared = (points**2).sum(1)[:, None] + (others**2).sum(1) - 2 * points @ others.T
    return np.minimum(np.sqrt(np.maximum(squared.min(1), 0.0)), FAR_M)


def connection_gaps(truths: Sequence[LaneLabels], predictions: Sequence[LaneGraph]) -> dict[str, Any]:
    """|end of lane i - start of lane j| in metres where the labels connect i to j and both are found, as OLS matches
    lanes at 3 m: ``mean_m``, ``median_m`` (None without any) and ``connections``."""
    gaps = []
    for truth, graph in zip(truths, predictions):
        lines = list(graph.centrelines)
        found = match(lane_distances(truth.centrelines, lines), graph.lane_scores, LANE_THRESHOLDS_M[-1])
        finder = {int(true): own for own, true in enumerate(found) if true >= 0}
        for i, j in np.argwhere(truth.lane_lane > 0):
            if i in finder and j in finder:
                gaps.append(float(np.linalg.norm(lines[finder[i]][-1] - lines[finder[j]][0])))
    return {
        "mean_m": float(np.mean(gaps)) if gaps else None,
        "median_m": float(np.median(gaps)) if gaps else None,
        "connections": len(gaps),
    }


def end_point_precision(
    truths: Sequence[LaneLabels],
    predictions: Sequence[LaneGraph],
    thresholds_m: Sequence[float] = LANE_THRESHOLDS_M,
) -> dict[str, float]:
    """DET_p: average precision of lanes' starts and ends as objects, by distance, and ``DET_p``, the mean.

    A definition of this project, as no published one was at hand. Points of one kind (start or end) less than 0.5 m
    apart are one; of predicted ones the best score stays. Points match in space as OLS matches lanes (best score first,
    each looks at its nearest true point only), starts and ends by themselves; the two average precisions (eleven
    recalls) are averaged.
    """
    kinds = [
        ([_ends(t.centrelines, k) for t in truths], [_ends(g.centrelines, k) for g in predictions]) for k in (0, -1)
    ]
    scores = [g.lane_scores for g in predictions]
    found = {
        f"DET_p@{t:g}": float(np.mean([point_precision(*kind, scores, t) for kind in kinds])) for t in thresholds_m
    }
    return {"DET_p": float(np.mean(list(found.values()))), **found}


def _ends(lines: Sequence[Line] | NDArray[np.floating], k: int) -> NDArray[np.float64]:
    return np.array([line[k] for line in lines], np.float64).reshape(-1, 3)


def point_precision(
    truths: Sequence[NDArray[np.float64]],
    points: Sequence[NDArray[np.float64]],
    scores: Sequence[NDArray[np.floating]],
    threshold_m: float,
) -> float:
    """Average precision over frames of points [p, 3] with scores [p] against true points, see end_point_precision."""
    hits, confidence, count = [np.zeros(0, bool)], [np.zeros(0)], 0
    for truth, own, score in zip(truths, points, scores):
        truth = truth[_distinct(truth, np.zeros(len(truth)))]
        kept = _distinct(own, score)
        distance = np.linalg.norm(truth[:, None] - own[kept][None], axis=-1)
        hits.append(match(distance, score[kept], threshold_m) >= 0)
        confidence.append(score[kept])
        count += len(truth)
    return average_precision(np.concatenate(hits), np.concatenate(confidence), count)


def _distinct(points: NDArray[np.float64], scores: NDArray[np.floating]) -> NDArray[np.int64]:
    """Indices of the points that are not near one of a better score."""
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable"):
        if all(np.linalg.norm(points[i] - points[j]) >= _ONE_POINT_M for j in kept):
            kept.append(int(i))
    return np.array(kept, np.int64)


def lane_details(frames: Sequence[Frame], predicted: Callable[[str], LaneGraph]) -> dict[str, Any]:
    """All of the above on frames with lane labels: ``bands``, ``gaps``, ``end_points``."""
    labelled = [(thinned(frame.lanes), predicted(frame.token)) for frame in frames if frame.lanes is not None]
    truths, graphs = [truth for truth, _ in labelled], [graph for _, graph in labelled]
    return {
        "bands": by_distance(truths, graphs),
        "gaps": connection_gaps(truths, graphs),
        "end_points": end_point_precision(truths, graphs),
    }


def table(details: Mapping[str, Any]) -> list[str]:
    """As lines of text."""
    text = lambda value: "-" if value is None else f"{value:.3f}"
    lines = [f"{'lane points, metres from the car':<34}{'recall':>9}{'precision':>11}{'distance m':>12}"]
    for band, own in details["bands"].items():
        lines.append(f"{band:<34}{text(own['recall']):>9}{text(own['precision']):>11}{text(own['distance_m']):>12}")
    gaps, points = details["gaps"], details["end_points"]
    lines.append(
        f"gap of connected ends: mean {text(gaps['mean_m'])} m, median {text(gaps['median_m'])} m "
        f"({gaps['connections']} connections found)"
    )
    return [*lines, "end points: " + "   ".join(f"{name} {value:.3f}" for name, value in points.items())]


def _mean(values: NDArray[Any]) -> float | None:
    return float(values.mean()) if len(values) else None
