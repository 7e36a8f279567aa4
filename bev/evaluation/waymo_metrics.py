"""Waymo's 3D detection scores in NumPy: standard AP / APH and the camera-only LET-3D AP / APH / APL.

Shape legend: n predictions, m ground truths, k candidate pairs, C = 101 score cut-offs, S = 16 breakdown shards.

In words. Boxes of one frame and type may match if their 3D IoU reaches the threshold of the type. With longitudinal
error tolerance (LET) the prediction P (seen from the camera at SENSOR_M) first slides along its own line of sight to
the point nearest to the ground truth G,

    P' = P (P.G) / |P|^2,    affinity a = clip(1 - | P.G / |G| - |G| | / max(0.1 |G|, 0.5 m), 0, 1),

IoU is that of P' with G, and pairs need a > 0. For each score cut-off 0, 0.01, ..., 1 the predictions that reach it
are assigned to ground truths so that the sum of round(1e6 IoU a) is largest. Then

    precision = sum of w over matches / (TP + FP),    recall = TP / (TP + FN),

with w = 1 (AP), 1 - |heading error| / pi (APH), a (APL; w = 1 without LET). A match with a harder ground truth is a
true positive at LEVEL_1 too; a miss of one is no false negative there. AP is the area under the interpolated curve
(see :func:`average_precision`).

Sources: Hung et al., "LET-3D-AP: Longitudinal Error Tolerant 3D Average Precision for Camera-Only 3D Detection",
arXiv 2206.07705, sections 3 and 4; waymo-open-dataset 1.6.7 (metrics/detection_metrics, matcher, iou,
compute_detection_let_metrics_main), whose TensorFlow op tests/bev/evaluation/test_waymo_metrics.py reproduces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from logging import getLogger

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from shapely import area, intersection, polygons

from ...core.errors import DataError
from ...core.ids import ids_apart
from ...core.waymo import OBJECT_TYPES
from ...geometry import box_corners_bev, wrap_angle

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

RANKED_TYPES = ("VEHICLE", "PEDESTRIAN", "CYCLIST")
"""Types that the leaderboard averages."""

IOU_STANDARD: Mapping[str, float] = {"VEHICLE": 0.7, "PEDESTRIAN": 0.5, "SIGN": 0.5, "CYCLIST": 0.5}
IOU_LET: Mapping[str, float] = {"VEHICLE": 0.5, "PEDESTRIAN": 0.3, "SIGN": 0.3, "CYCLIST": 0.3}
"""IoU thresholds of the official tools (the tutorial notebook has others)."""

SENSOR_M = np.array([1.43, 0.0, 2.18])
"""Mean camera position in the vehicle frame."""

TOLERANCE_FRACTION, TOLERANCE_MIN_M = 0.1, 0.5
SCORE_CUTOFFS = (np.arange(101) * 0.01).astype(np.float32)  # the official comparison is in single precision
RECALL_STEP = 0.05

RANGES_M = (30.0, 50.0)
RANGE_NAMES = ("[0, 30)", "[30, 50)", "[50, +inf)")
_MIN_SIZE_M = 1e-2  # thinner boxes overlap nothing


@dataclass(frozen=True)
class WaymoPredictions:
    """Predictions of any number of frames, flat.

    boxes: [n, >=7] as in geometry.boxes, vehicle frame at the frame timestamp; types: [n] see OBJECT_TYPES;
    scores: [n] in [0, 1]; frames: [n] ids, integers or strings; in_no_label_zone: [n] bool, where an unmatched
    prediction is no false positive (None: nowhere).
    """

    boxes: ArrayLike
    types: ArrayLike
    scores: ArrayLike
    frames: ArrayLike
    in_no_label_zone: ArrayLike | None = None


@dataclass(frozen=True)
class WaymoGroundTruths:
    """Ground truths, flat: boxes [m, >=7], types [m] and frames [m] as in WaymoPredictions, difficulties [m] 1 or 2.

    For the camera-only benchmark these are the ``camera_synced_box`` of labels with ``num_top_lidar_points_in_box``
    > 0 and a ``most_visible_camera_name``; difficulty is the label's, or where it has none 2 if that number is <= 5,
    else 1.
    """

    boxes: ArrayLike
    types: ArrayLike
    difficulties: ArrayLike
    frames: ArrayLike


@dataclass(frozen=True)
class WaymoScore:
    """Scores of one breakdown; the arrays [C] are the measurements at SCORE_CUTOFFS."""

    ap: float
    aph: float
    apl: float
    recall: Floats
    precision: Floats
    precision_heading: Floats
    precision_longitudinal: Floats
    true_positives: Ints
    false_positives: Ints
    false_negatives: Ints


def evaluate_waymo(
    predictions: WaymoPredictions, ground_truths: WaymoGroundTruths, longitudinal_tolerance: bool = True
) -> dict[str, WaymoScore]:
    """Scores per breakdown: LET-3D (camera-only benchmark), or the standard ones without ``longitudinal_tolerance``.

    Keys are the official names in the official order, ``OBJECT_TYPE_TYPE_VEHICLE_LEVEL_1`` ...
    ``RANGE_TYPE_CYCLIST_[50, +inf)_LEVEL_2``: each type, and each type within distances from the vehicle origin
    (matched among themselves), at LEVEL_1 and LEVEL_2 (which includes LEVEL_1). A breakdown without true positives
    scores 0. Formulas and sources: see the top of this file.

    Raises DataError if an array has the wrong shape or a value out of its domain, or if predictions and ground truths
    have no frame in common; where most of the predictions' frames have no ground truth a warning is logged, since
    ids may differ, or those frames be empty.
    """
    pd_box, pd_type, pd_frame = _boxes(predictions, "predictions")
    gt_box, gt_type, gt_frame = _boxes(ground_truths, "ground truths")
    _check_meeting(pd_frame, gt_frame)
    scores = _column(predictions.scores, "scores of predictions", len(pd_box)).astype(np.float32)
    if not np.all((scores >= 0) & (scores <= 1)):
        raise DataError("scores of predictions: must be numbers in [0, 1]; apply a sigmoid, drop NaN")
    difficulties = _column(ground_truths.difficulties, "difficulties of ground truths", len(gt_box))
    if not np.isin(difficulties, (1, 2)).all():
        raise DataError("difficulties of ground truths: must be 1 or 2 (see WaymoGroundTruths for the rule)")
    zone = predictions.in_no_label_zone
    counts_as_false = ~_column(np.zeros(len(pd_box)) if zone is None else zone, "in_no_label_zone", len(pd_box)).astype(
        bool
    )

    thresholds = IOU_LET if longitudinal_tolerance else IOU_STANDARD
    pairs = _candidate_pairs(pd_box, pd_type, pd_frame, gt_box, gt_type, gt_frame, thresholds, longitudinal_tolerance)
    num_passed = np.searchsorted(SCORE_CUTOFFS, scores, side="right")  # [n] cut-offs that a prediction reaches
    result = {}
    for prefix, shard_names, shard_of in (
        ("OBJECT_TYPE", ("",), lambda box: 0),
        ("RANGE", tuple(f"_{name}" for name in RANGE_NAMES), _range_shard),
    ):
        per_type = len(shard_names)
        num_shards = per_type * len(OBJECT_TYPES)
        pd_shard = (pd_type - 1) * per_type + shard_of(pd_box)
        gt_shard = (gt_type - 1) * per_type + shard_of(gt_box)
        match = _assign(pairs.where(pd_shard[pairs.prediction] == gt_shard[pairs.truth]), num_passed, len(gt_box))

        curve = partial(_sum_over_cutoffs, pd_shard[match.prediction], match.first, match.last, num_shards=num_shards)
        heading_error = np.abs(wrap_angle(pd_box[match.prediction, 6] - gt_box[match.truth, 6]))
        tp = curve(np.ones(len(match.prediction)))
        tp_heading = curve(1 - heading_error / np.pi)
        tp_longitudinal = curve(match.affinity)
        spared = curve(counts_as_false[match.prediction])
        fp = _sum_over_cutoffs(pd_shard, np.zeros_like(num_passed), num_passed, counts_as_false, num_shards) - spared
        for shard in range(num_shards):
            name = f"{prefix}_TYPE_{OBJECT_TYPES[shard // per_type + 1]}{shard_names[shard % per_type]}"
            for level in (1, 2):
                counted = difficulties <= level
                fn = np.sum(counted & (gt_shard == shard)) - curve(counted[match.truth])[shard]
                result[f"{name}_LEVEL_{level}"] = _score(
                    tp[shard], fp[shard], fn, tp_heading[shard], tp_longitudinal[shard]
                )
    return result


def waymo_mean(
    scores: Mapping[str, WaymoScore], level: int = 2, types: Sequence[str] = RANKED_TYPES
) -> dict[str, float]:
    """``map``, ``maph`` and ``mapl`` over ``types``; LET-3D-mAPL (level 2) ranks the camera-only leaderboard."""
    chosen = [scores[f"OBJECT_TYPE_TYPE_{name}_LEVEL_{level}"] for name in types]
    return {f"m{key}": float(np.mean([getattr(score, key) for score in chosen])) for key in ("ap", "aph", "apl")}


def average_precision(precision: ArrayLike, recall: ArrayLike) -> float:
    """Area under the interpolated precision-recall curve of points ([C], [C]), as Waymo computes it.

    Precision at a recall becomes the best at that recall or a higher one; recall 0 takes that of the next point. The
    curve is held constant, from each point towards lower recall, on a grid of RECALL_STEP as long as a full step fits,
    and is straight on what is left.
    """
    points = np.unique(np.append(recall, 0.0))  # ascending
    if len(points) == 1:
        return 0.0
    best = np.zeros(len(points))
    np.maximum.at(best, np.searchsorted(points, recall), precision)
    best = np.maximum.accumulate(best[::-1])[::-1]
    best[0] = best[1]
    gap = np.diff(points)
    held = RECALL_STEP * np.maximum(np.ceil((gap - 1e-6) / RECALL_STEP) - 1, 0)
    return float(np.sum(held * best[1:] + (gap - held) * (best[1:] + best[:-1]) / 2))


def longitudinal_affinity(predicted_m: Floats, truth_m: Floats) -> tuple[Floats, Floats]:
    """Affinity [k] in [0, 1] and aligned centres [k, 3] of predicted centres [k, 3] for ground truths [k, 3].

    All in the vehicle frame. LET-3D-AP, arXiv 2206.07705, equations of "longitudinal affinity" and "range alignment".
    """
    p, g = predicted_m - SENSOR_M, truth_m - SENSOR_M
    dot = np.sum(p * g, -1)
    range_m = np.maximum(np.linalg.norm(g, axis=-1), 1e-6)
    error_m = np.abs(dot / range_m - range_m)
    affinity = np.clip(1 - error_m / np.maximum(TOLERANCE_FRACTION * range_m, TOLERANCE_MIN_M), 0, 1)
    along = dot / np.maximum(np.sum(p * p, -1), 1e-6)
    return affinity, p * along[:, None] + SENSOR_M


def iou_3d(boxes_a: Floats, boxes_b: Floats) -> Floats:
    """Intersection over union of volumes [k], row by row, of upright boxes [k, >=7] and [k, >=7]."""
    top = np.minimum(*(b[:, 2] + b[:, 5] / 2 for b in (boxes_a, boxes_b)))
    bottom = np.maximum(*(b[:, 2] - b[:, 5] / 2 for b in (boxes_a, boxes_b)))
    reach = (np.hypot(boxes_a[:, 3], boxes_a[:, 4]) + np.hypot(boxes_b[:, 3], boxes_b[:, 4])) / 2
    near = np.hypot(*(boxes_a - boxes_b)[:, :2].T) < reach
    solid = np.minimum(boxes_a[:, 3:6], boxes_b[:, 3:6]).min(-1, initial=np.inf) > _MIN_SIZE_M
    row = np.flatnonzero(near & solid & (top > bottom))
    a, b = boxes_a[row], boxes_b[row]
    common = area(intersection(polygons(box_corners_bev(a)), polygons(box_corners_bev(b)))) * (top - bottom)[row]
    iou = np.zeros(len(boxes_a))
    iou[row] = common / np.maximum(a[:, 3:6].prod(-1) + b[:, 3:6].prod(-1) - common, 1e-12)
    return iou


@dataclass(frozen=True)
class _Pairs:
    """Pairs that may match: indices of prediction and truth, weight in the assignment, affinity; all [k]."""

    prediction: Ints
    truth: Ints
    weight: Floats
    affinity: Floats

    def where(self, keep: NDArray[np.bool_]) -> _Pairs:
        return _Pairs(self.prediction[keep], self.truth[keep], self.weight[keep], self.affinity[keep])


@dataclass(frozen=True)
class _Matches:
    """Matched pairs, each with the cut-offs first <= c < last at which it holds."""

    prediction: Ints
    truth: Ints
    affinity: Floats
    first: Ints
    last: Ints


def _candidate_pairs(
    pd_box: Floats,
    pd_type: Ints,
    pd_frame: NDArray,
    gt_box: Floats,
    gt_type: Ints,
    gt_frame: NDArray,
    thresholds: Mapping[str, float],
    tolerant: bool,
) -> _Pairs:
    threshold = np.array([thresholds[name] for name in OBJECT_TYPES.values()], dtype=np.float32)
    _, key = np.unique(np.concatenate([pd_frame, gt_frame]), return_inverse=True)
    pd_of_frame, gt_of_frame = _rows_by_key(key[: len(pd_box)]), _rows_by_key(key[len(pd_box) :])
    none, nowhere = np.zeros(0, np.int64), np.zeros(0)
    found = [_Pairs(none, none, nowhere, nowhere)]
    for frame in pd_of_frame.keys() & gt_of_frame.keys():
        pd_row, gt_row = pd_of_frame[frame], gt_of_frame[frame]
        i, j = np.nonzero(pd_type[pd_row, None] == gt_type[None, gt_row])
        i, j = pd_row[i], gt_row[j]
        moved, affinity = pd_box[i], np.ones(len(i))
        if tolerant:
            affinity, moved[:, :3] = longitudinal_affinity(moved[:, :3], gt_box[j, :3])
            seen = affinity > 0
            i, j, moved, affinity = i[seen], j[seen], moved[seen], affinity[seen]
        iou = iou_3d(moved, gt_box[j])
        pairs = _Pairs(i, j, np.rint(1e6 * iou * affinity), affinity)
        # single precision forgives an IoU that rounding puts a hair below its threshold
        found.append(pairs.where(iou.astype(np.float32) >= threshold[pd_type[i] - 1]))
    return _Pairs(*(np.concatenate([getattr(f, k) for f in found]) for k in _Pairs.__dataclass_fields__))


def _assign(pairs: _Pairs, num_passed: Ints, num_truths: int) -> _Matches:
    """Best assignment at every cut-off.

    The problem falls apart into connected components of the graph of candidate pairs, mostly one or two ground truths
    each, and changes only at cut-offs that drop one of its predictions.
    """
    num = len(num_passed)
    links = coo_array(
        (np.ones(len(pairs.weight)), (pairs.prediction, num + pairs.truth)), shape=(num + num_truths, num + num_truths)
    )
    _, component = connected_components(links, directed=False)
    chosen, first, last = [], [], []
    for rows in _rows_by_key(component[pairs.prediction]).values():
        pd, i = np.unique(pairs.prediction[rows], return_inverse=True)
        gt, j = np.unique(pairs.truth[rows], return_inverse=True)
        weight = np.zeros((len(pd), len(gt)))
        weight[i, j] = pairs.weight[rows]
        pair = np.zeros((len(pd), len(gt)), dtype=np.int64)
        pair[i, j] = rows
        start = 0
        for stop in np.unique(num_passed[pd]):
            active = np.flatnonzero(num_passed[pd] >= stop)
            a, b = linear_sum_assignment(weight[active], maximize=True)
            taken = pair[active[a], b][weight[active[a], b] > 0]
            chosen.extend(taken)
            first.extend([start] * len(taken))
            last.extend([stop] * len(taken))
            start = stop
    index = np.array(chosen, dtype=np.int64)
    return _Matches(
        pairs.prediction[index],
        pairs.truth[index],
        pairs.affinity[index],
        np.array(first, dtype=np.int64),
        np.array(last, dtype=np.int64),
    )


def _sum_over_cutoffs(shard: Ints, first: Ints, last: Ints, values: NDArray, num_shards: int) -> Floats:
    """[num_shards, C]: sums of values [k] over the cut-offs first <= c < last at which each holds."""
    steps = np.zeros((num_shards, len(SCORE_CUTOFFS) + 1))
    np.add.at(steps, (shard, first), values)
    np.add.at(steps, (shard, last), -np.asarray(values, dtype=np.float64))
    return steps.cumsum(-1)[:, :-1]


def _score(tp: Floats, fp: Floats, fn: Floats, tp_heading: Floats, tp_longitudinal: Floats) -> WaymoScore:
    recall = tp / np.maximum(tp + fn, 1)
    # nothing found has precision 1 by definition
    ap, aph, apl = (np.where(tp > 0, x / np.maximum(tp + fp, 1), 1.0) for x in (tp, tp_heading, tp_longitudinal))
    return WaymoScore(
        average_precision(ap, recall),
        average_precision(aph, recall),
        average_precision(apl, recall),
        recall,
        ap,
        aph,
        apl,
        *(np.rint(x).astype(np.int64) for x in (tp, fp, fn)),
    )


def _range_shard(box: Floats) -> Ints:
    return np.searchsorted(RANGES_M, np.linalg.norm(box[:, :3], axis=-1), side="right")


def _rows_by_key(keys: Ints) -> dict[int, Ints]:
    """Indices of each distinct key."""
    order = np.argsort(keys, kind="stable")
    values, start = np.unique(keys[order], return_index=True)
    return dict(zip(values.tolist(), np.split(order, start[1:]), strict=False))


def _boxes(rows: WaymoPredictions | WaymoGroundTruths, what: str) -> tuple[Floats, Ints, NDArray]:
    """boxes [n, 7], types [n], frames [n]."""
    boxes = np.asarray(rows.boxes, dtype=np.float64)
    if boxes.size == 0:
        boxes = boxes.reshape(0, 7)
    if boxes.ndim != 2 or boxes.shape[1] < 7:
        raise DataError(f"boxes of {what}: shape {boxes.shape}; expected [n, 7] (x, y, z, l, w, h, yaw)")
    if not np.isfinite(boxes[:, :7]).all() or (boxes[:, 3:6] < 0).any():
        raise DataError(f"boxes of {what}: NaN, infinite or of negative size; drop or correct them")
    types = _column(rows.types, f"types of {what}", len(boxes))
    if not np.isin(types, list(OBJECT_TYPES)).all():
        raise DataError(f"types of {what}: must be of {dict(OBJECT_TYPES)}; map or drop others")
    return boxes[:, :7], types.astype(np.int64), _column(rows.frames, f"frames of {what}", len(boxes))


def _check_meeting(predicted: NDArray, labelled: NDArray) -> None:
    """Frame ids of predictions [n] and ground truths [m] must meet: boxes of other frames match nothing."""
    ids = np.concatenate([predicted, labelled]).astype(str).tolist()  # in one dtype, as they are matched
    found, expected = set(ids[: len(predicted)]), set(ids[len(predicted) :])
    if apart := ids_apart(found, expected, "predicted frames"):
        raise DataError(f"frames of predictions: {apart}")
    strange = found - expected
    if len(strange) > len(found) / 2:
        missing = f", and {len(expected - found)} labelled frames no prediction" * bool(expected - found)
        getLogger("drivestack").warning(
            "%d of %d predicted frames have no ground truth, such as %s%s; if they are not empty, the ids differ",
            len(strange), len(found), min(strange), missing,
        )  # fmt: skip


def _column(values: ArrayLike, what: str, length: int) -> NDArray:
    array = np.asarray(values)
    if array.shape != (length,):
        raise DataError(f"{what}: shape {array.shape}; expected [{length}], one per box")
    return array
