"""Lane segments and areas (the Map Element Bucket of OpenLane-V2 2.x) and their score, OLUS.

A lane segment is a centreline with its left and right boundary. Shapes: n segments, a areas, k traffic elements.
Source: the package openlanev2 2.1.0; LaneSegNet, arXiv 2312.16108.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.labels import LaneSegments
from .distances import FAR, PREFILTER_M, Line, box_distances, chamfer, frechet, relaxation
from .ols import ELEMENT_THRESHOLD, LANE_THRESHOLDS_M, NUM_ATTRIBUTES, detection, match, topology

AREA_THRESHOLDS_M = (0.5, 1.0, 1.5)
AREA_CATEGORIES = {"pedestrian_crossing": 1, "road_boundary": 2}
LINE_TYPES = ("none", "solid", "dash")


def segment_distances(truth: LaneSegments, found: LaneSegments) -> NDArray[np.float64]:
    """[n, m] half the sum of the centrelines' Frechet and the boundaries' chamfer distances, relaxed by the centreline.

    FAR where the relaxed chamfer distance of the centrelines is 3 m or more.
    """
    out = np.full((len(truth.centrelines), len(found.centrelines)), FAR)
    for i, line in enumerate(truth.centrelines):
        factor = relaxation(line)
        for j, other in enumerate(found.centrelines):
            if factor * chamfer(line, other) < PREFILTER_M:
                sides = chamfer(truth.left[i], found.left[j]) + chamfer(truth.right[i], found.right[j])
                out[i, j] = factor * 0.5 * (frechet(line, other) + sides)
    return out


def area_distances(truth: Sequence[Line], found: Sequence[Line]) -> NDArray[np.float64]:
    """[a, b] chamfer distances, not relaxed."""
    distances = [[chamfer(a, b) for b in found] for a in truth]
    return np.array(distances, np.float64).reshape(len(truth), len(found))


def evaluate_segments(truths: Sequence[LaneSegments], predictions: Sequence[LaneSegments]) -> dict[str, Any]:
    """``olus`` with its parts ``det_l``, ``det_a``, ``det_t``, ``top_ll``, ``top_lt`` (0..1), version 2.1.

    Raises ValueError for a different number of labels and predictions.
    """
    if len(truths) != len(predictions):
        raise ValueError(f"{len(predictions)} predictions for {len(truths)} labelled frames")
    pairs = list(zip(truths, predictions))
    lanes = [segment_distances(t, f) for t, f in pairs]
    areas = [area_distances(t.areas, f.areas) for t, f in pairs]
    boxes = [box_distances(t.elements_xyxy_px, f.elements_xyxy_px) for t, f in pairs]
    lane_scores = [f.lane_scores for f in predictions]
    area_scores = [f.area_scores for f in predictions]
    element_scores = [f.element_scores for f in predictions]
    categories = [t.area_categories for t in truths], [f.area_categories for f in predictions]
    attributes = [t.attributes for t in truths], [f.attributes for f in predictions]
    det_l = {t: detection(lanes, lane_scores, t) for t in LANE_THRESHOLDS_M}
    det_a = {
        f"{name}@{t}": detection(areas, area_scores, t, (*categories, number))
        for name, number in AREA_CATEGORIES.items()
        for t in AREA_THRESHOLDS_M
    }
    det_t = [detection(boxes, element_scores, ELEMENT_THRESHOLD, (*attributes, a)) for a in range(NUM_ATTRIBUTES)]
    elements = [match(d, s, ELEMENT_THRESHOLD) for d, s in zip(boxes, element_scores)], element_scores
    top_ll, top_lt = {}, {}
    for t in LANE_THRESHOLDS_M:
        rows = [match(d, s, t) for d, s in zip(lanes, lane_scores)], lane_scores
        top_ll[t] = topology([f.lane_lane for f in truths], [f.lane_lane for f in predictions], rows, rows)
        top_lt[t] = topology([f.lane_element for f in truths], [f.lane_element for f in predictions], rows, elements)
    parts = {
        "det_l": float(np.mean(list(det_l.values()))),
        "det_a": float(np.mean(list(det_a.values()))),
        "det_t": float(np.mean(det_t)),
        "top_ll": float(np.mean(list(top_ll.values()))),
        "top_lt": float(np.mean(list(top_lt.values()))),
    }
    roots = [parts["det_l"], parts["det_a"], parts["det_t"], np.sqrt(parts["top_ll"]), np.sqrt(parts["top_lt"])]
    return {
        "metric_version": "v2.1",
        "frames": len(truths),
        "olus": float(np.mean(roots)),
        **parts,
        "det_l_by_threshold": det_l,
        "det_a_by_category": det_a,
        "top_ll_by_threshold": top_ll,
        "top_lt_by_threshold": top_lt,
    }
