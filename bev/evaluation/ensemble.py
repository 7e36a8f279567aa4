"""Several detectors' boxes as one answer: weighted box fusion and matrix NMS, with IoU or LET-IoU.

LET-IoU of a box P with a reference G is the IoU of P, moved along its own line of sight to the point nearest to G, with
G; 0 where P is off by more than the tolerance along the sight, max(0.1 |G|, 0.5 m) (waymo_metrics.py; LET-3D-AP, arXiv
2206.07705). Camera detectors are wrong in depth above all: two of them that mean one car often do not overlap at all.

Weighted box fusion (arXiv 1910.13302), for each frame and class. Boxes of all models, best weighted score w_m s first,
join the cluster whose first box they overlap most, if by the threshold or more, else they begin one. Of a cluster each
model's best box counts, the others of that model are duplicates. With these, m over the models that are there,

    box = sum_m w_m s_m box_m / sum_m w_m s_m,      score = sum_m w_m s_m / sum over all models of w_m:

a model that does not see the object counts as a score of 0. Sizes and centres are averaged as they are, headings as
axes (their doubled angles), with the direction that has most weight; velocities over the models that state one. The
paper compares with the box fused so far instead of the cluster's first: then every comparison waits for the one before.

Matrix NMS (SOLOv2, arXiv 2003.10152, eq. 3 to 5): nothing is removed; the score of box j falls by

    min over i with s_i > s_j of f(IoU_ij) / f(max over k with s_k > s_i of IoU_ki),

f(x) = exp(-x^2 / sigma), or 1 - x where sigma is 0.

Shapes: n boxes of one frame, C columns (7, or 9 with velocity), M models, k pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...core.errors import ConfigError
from .waymo_metrics import (
    IOU_LET,
    SENSOR_M,
    TOLERANCE_FRACTION,
    TOLERANCE_MIN_M,
    iou_3d,
    longitudinal_affinity,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
METHODS = ("wbf", "matrix-nms", "wbf+matrix-nms")
OTHER_THRESHOLD = 0.3
"""For classes that Waymo does not have."""
SIGMA = 0.5


@dataclass(frozen=True)
class Fusion:
    """How boxes become one answer.

    method: of METHODS. let: compare with LET-IoU, else with IoU. thresholds: of the fusion by class name; default
    Waymo's for LET-IoU (vehicle 0.5, others 0.3). sigma: of matrix NMS, default SIGMA. min_score: lower ones are left
    out, before and after. max_boxes: only so many best of a frame; default: all.

    Raises ConfigError for values out of range, and for what the method does not use.
    """

    method: str = "wbf"
    let: bool = True
    thresholds: Mapping[str, float] = field(default_factory=dict)
    sigma: float | None = None
    min_score: float = 0.0
    max_boxes: int | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"unknown method {self.method!r}: choose from {', '.join(METHODS)}")
        if bad := [f"{name}={value}" for name, value in self.thresholds.items() if not 0 < value <= 1]:
            raise ConfigError(f"threshold {bad[0]}: an IoU is above 0 and at most 1")
        if self.sigma is not None and not (self.sigma >= 0 and np.isfinite(self.sigma)):
            raise ConfigError(f"sigma {self.sigma}: must be a number from 0")
        if self.sigma is not None and self.method == "wbf":
            raise ConfigError(f"sigma {self.sigma} is of matrix NMS: leave it out, or choose method wbf+matrix-nms")
        if self.thresholds and self.method == "matrix-nms":
            raise ConfigError("thresholds are of wbf, which matrix-nms alone does not use: leave them out")
        if not 0 <= self.min_score <= 1:
            raise ConfigError(f"min_score {self.min_score}: scores are from 0 to 1")
        if self.max_boxes is not None and self.max_boxes < 1:
            raise ConfigError(f"max_boxes {self.max_boxes}: keep at least 1, or leave it out to keep all")

    def threshold(self, class_name: str) -> float:
        """Of the fusion of a class."""
        default = IOU_LET.get(class_name.upper(), OTHER_THRESHOLD)
        return self.thresholds.get(class_name, default)


def let_iou(boxes: Floats, references: Floats, sensor_m: Floats = SENSOR_M) -> Floats:
    """LET-IoU [k], row by row, of boxes [k, >=7] with references [k, >=7]; all in the frame of ``sensor_m`` [3]."""
    shift = SENSOR_M - np.asarray(sensor_m)
    affinity, aligned = longitudinal_affinity(boxes[:, :3] + shift, references[:, :3] + shift)
    moved = boxes[:, :7].copy()
    moved[:, :3] = aligned - shift
    seen = affinity > 0
    iou = np.zeros(len(boxes))
    iou[seen] = iou_3d(moved[seen], references[seen, :7])
    return iou


def overlaps(boxes: Floats, labels: Ints, order: Ints, let: bool, sensor_m: Floats = SENSOR_M) -> Floats:
    """[n, n]: how much box j (column) overlaps box i (row) of the same label ahead of it in ``order`` [n]; else 0."""
    count = len(boxes)
    found = np.zeros((count, count))
    if not count:
        return found
    ordered, own = boxes[order], labels[order]
    reach = np.hypot(ordered[:, 3], ordered[:, 4]) / 2
    if let:
        range_m = np.linalg.norm(ordered[:, :3] - sensor_m, axis=1)
        slack = np.maximum(TOLERANCE_FRACTION * range_m, TOLERANCE_MIN_M)
    else:
        slack = np.zeros(count)
    first, second = np.triu_indices(count, 1)
    distance = np.hypot(*(ordered[first, :2] - ordered[second, :2]).T)
    # moving along the sight takes a box by the tolerance, and a little more where both are beside the sight
    near = (own[first] == own[second]) & (distance <= 1.5 * (reach[first] + reach[second] + slack[first]))
    first, second = first[near], second[near]
    if let:
        values = let_iou(ordered[second], ordered[first], sensor_m)
    else:
        values = iou_3d(ordered[second, :7], ordered[first, :7])
    found[order[first], order[second]] = values
    return found


def weighted_box_fusion(
    boxes: Floats,
    scores: Floats,
    labels: Ints,
    models: Ints,
    weights: Sequence[float],
    thresholds: Sequence[float],
    let: bool = True,
    sensor_m: Floats = SENSOR_M,
) -> tuple[Floats, Floats, Ints, Ints]:
    """Fused boxes [m, C], scores [m] and labels [m], best first, and for each the best input box [m] it is made of.

    boxes [n, C], scores [n] and labels [n] of all models; models [n] in 0 .. M - 1; weights [M], thresholds by label.
    """
    weight = np.asarray(weights, np.float64)
    weighted = scores * weight[models]
    order = np.argsort(-weighted, kind="stable")
    overlap = overlaps(boxes, labels, order, let, sensor_m)
    limit = np.asarray(thresholds, np.float64)[labels]
    leaders: list[int] = []
    members: list[list[int]] = []
    for row in order.tolist():
        if leaders:
            best = int(np.argmax(overlap[leaders, row]))
            if overlap[leaders[best], row] >= limit[row]:
                if all(models[row] != models[other] for other in members[best]):  # else a duplicate
                    members[best].append(row)
                continue
        leaders.append(row)
        members.append([row])
    if not leaders:
        return boxes[:0], scores[:0], labels[:0], np.zeros(0, np.int64)
    fused = np.stack([_average(boxes[rows], weighted[rows]) for rows in members])
    total = np.array([weighted[rows].sum() for rows in members]) / weight.sum()
    first = np.array(leaders, np.int64)
    ranked = np.argsort(-total, kind="stable")
    return fused[ranked], total[ranked], labels[first][ranked], first[ranked]


def _average(boxes: Floats, weight: Floats) -> Floats:
    """One box [C] of several [k, C], the first the best; weight [k]."""
    weight = np.maximum(weight, 1e-12)
    mean = np.average(boxes, axis=0, weights=weight)
    yaw = boxes[:, 6]
    axis = np.angle(np.sum(weight * np.exp(2j * yaw))) / 2
    forward = np.sum(weight * np.sign(np.cos(yaw - axis))) >= 0
    mean[6] = axis if forward else axis - np.sign(axis or 1.0) * np.pi
    for column in range(7, boxes.shape[1]):
        known = np.isfinite(boxes[:, column])
        mean[column] = np.average(boxes[known, column], weights=weight[known]) if known.any() else np.nan
    return mean


def matrix_nms(
    boxes: Floats, scores: Floats, labels: Ints, sigma: float = SIGMA, let: bool = True, sensor_m: Floats = SENSOR_M
) -> Floats:
    """Scores [n] of boxes [n, C] after matrix NMS, in their order. sigma 0: the linear form."""
    order = np.argsort(-scores, kind="stable")
    overlap = overlaps(boxes, labels, order, let, sensor_m)  # [i, j], i ahead of j
    if not len(boxes):
        return scores
    covered = overlap.max(0)  # of i by what is ahead of it
    if sigma > 0:
        decay = np.exp((covered[:, None] ** 2 - overlap**2) / sigma)
    else:
        decay = (1 - overlap) / np.maximum(1 - covered[:, None], 1e-9)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    ahead = rank[:, None] < rank[None, :]
    same = labels[:, None] == labels[None, :]
    return scores * np.where(ahead & same, decay, 1.0).min(0).clip(0, 1)


def fuse(
    boxes: Floats,
    scores: Floats,
    labels: Ints,
    models: Ints,
    weights: Sequence[float],
    class_names: Sequence[str],
    how: Fusion,
    sensor_m: Floats = SENSOR_M,
) -> tuple[Floats, Floats, Ints, Ints]:
    """Boxes, scores, labels of one frame as ``how`` says, best first, and the input box that each comes from.

    As weighted_box_fusion; matrix NMS alone takes weighted scores, each divided by the largest weight.
    """
    kept = np.flatnonzero(scores >= how.min_score)
    boxes, scores, labels, models = boxes[kept], scores[kept], labels[kept], models[kept]
    source: Ints = np.arange(len(boxes), dtype=np.int64)
    if how.method.startswith("wbf"):
        thresholds = [how.threshold(name) for name in class_names]
        boxes, scores, labels, source = weighted_box_fusion(
            boxes, scores, labels, models, weights, thresholds, how.let, sensor_m
        )
    else:
        weight = np.asarray(weights, np.float64)
        scores = scores * weight[models] / weight.max()
    if how.method.endswith("matrix-nms"):
        sigma = SIGMA if how.sigma is None else how.sigma
        scores = matrix_nms(boxes, scores, labels, sigma, how.let, sensor_m)
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= how.min_score][: how.max_boxes]
    return boxes[order], scores[order], labels[order], kept[source[order]]
