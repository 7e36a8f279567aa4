"""What teachers of the box head are to change, counted.

False boxes on an object's line of sight, and whether the score of a true box says how near its centre is.

Boxes and labels lie in one BEV frame per sample. A found box is true where it takes a label of its class within 2 m,
best score first.

Shapes: m found boxes, n labels of a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from ...core.answers import Detections
from .matching import match, pairs_within

TRUE_WITHIN_M = 2.0


@dataclass(frozen=True)
class Found:
    """All boxes of a split above a score, one after the other."""

    sample: NDArray[np.int64]
    label: NDArray[np.int64]
    xy_m: NDArray[np.float64]
    score: NDArray[np.float64]
    error_m: NDArray[np.float64]
    """Distance from the label that the box takes, inf for a false one."""
    truth_sample: NDArray[np.int64]
    truth_label: NDArray[np.int64]
    truth_xy_m: NDArray[np.float64]


def find(
    detections: Sequence[Detections],
    boxes: Sequence[NDArray[np.floating]],
    labels: Sequence[NDArray[np.int64]],
    min_score: float = 0.1,
) -> Found:
    """Found boxes of samples held against their labelled ones: boxes, [n, 9] each, labels, [n] each."""
    kept = [own.scores >= min_score for own in detections]
    sample = np.repeat(np.arange(len(detections)), [k.sum() for k in kept])
    truth_sample = np.repeat(np.arange(len(labels)), [len(own) for own in labels])
    whole = lambda parts, empty: np.concatenate([*parts, empty]).astype(empty.dtype)
    label = whole([d.labels[k] for d, k in zip(detections, kept)], np.zeros(0, np.int64))
    truth_label = whole(labels, np.zeros(0, np.int64))
    xy_m = whole([d.boxes[k, :2] for d, k in zip(detections, kept)], np.zeros((0, 2)))
    truth_xy_m = whole([own[:, :2] for own in boxes], np.zeros((0, 2)))
    score = whole([d.scores[k] for d, k in zip(detections, kept)], np.zeros(0))
    classes = int(max(label.max(initial=0), truth_label.max(initial=0))) + 1
    groups = sample * classes + label, truth_sample * classes + truth_label
    pairs = pairs_within(groups[0], xy_m, groups[1], truth_xy_m, TRUE_WITHIN_M)
    rank = np.empty(len(score), np.int64)
    rank[np.argsort(-score, kind="stable")] = np.arange(len(score))
    taken = match(pairs, rank, len(truth_label), TRUE_WITHIN_M)
    error = np.full(len(score), np.inf)
    true = taken >= 0
    error[true] = np.linalg.norm(xy_m[true] - truth_xy_m[taken[true]], axis=1)
    return Found(sample, label, xy_m, score, error, truth_sample, truth_label, truth_xy_m)


def false_on_lines_of_sight(
    found: Found,
    sensor_xy_m: tuple[float, float] = (0.0, 0.0),
    within_deg: float = 2.0,
    range_m: tuple[float, float] = (1.5, 6.0),
) -> tuple[int, int]:
    """False boxes that lie on the line of sight of a label of their class, before or behind it; and all false boxes.

    sensor_xy_m: where one looks from, in the BEV frame. On the line: within so many degrees, and so many metres nearer
    or farther than the label.
    """
    on_line, false = 0, np.flatnonzero(np.isinf(found.error_m))
    seen, truth = (xy - np.array(sensor_xy_m) for xy in (found.xy_m, found.truth_xy_m))
    azimuth, truth_azimuth = (np.arctan2(xy[:, 1], xy[:, 0]) for xy in (seen, truth))
    reach, truth_reach = (np.linalg.norm(xy, axis=1) for xy in (seen, truth))
    for i in false:
        own = (found.truth_sample == found.sample[i]) & (found.truth_label == found.label[i])
        turn = np.abs((truth_azimuth[own] - azimuth[i] + np.pi) % (2 * np.pi) - np.pi)
        apart = np.abs(truth_reach[own] - reach[i])
        on_line += bool(((turn < np.radians(within_deg)) & (apart >= range_m[0]) & (apart <= range_m[1])).any())
    return on_line, len(false)


def score_error_correlation(found: Found) -> float:
    """Spearman's rank correlation of the score of true boxes with how near they are: 1 where a better score is always
    a nearer centre; NaN for fewer than three true boxes, or scores that are all equal."""
    true = np.isfinite(found.error_m)
    if true.sum() < 3 or np.ptp(found.score[true]) == 0 or np.ptp(found.error_m[true]) == 0:
        return float("nan")
    return float(spearmanr(found.score[true], -found.error_m[true]).statistic)
