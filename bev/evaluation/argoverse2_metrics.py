"""Argoverse 2's 3D detection scores in NumPy: ATE, ASE, AOE, CDS and AP for each class, equal to the official package.

Shapes: n predictions or ground truths of any number of sweeps, flat; T thresholds.

In words. Counted are, of each sweep and class, the 100 best-scored predictions within 150 m of the car, and ground
truths within 150 m that hold at least one LiDAR point; with a region of interest only those of them that have a corner
on the map's drivable area, grown by 5 m. Every prediction goes with its nearest ground truth of sweep and class, by the
3D distance of their centres. Of those that go with one ground truth only the best-scored may be right: it is a true
positive at each threshold (0.5, 1, 2, 4 m) that is above its distance; there is no second choice. AP is the mean over
thresholds of the precision, made monotone, at 101 recalls. ATE (m), ASE (1 - IoU of aligned boxes) and AOE (rad) are
means over the true positives at 2 m, and 2, 1, pi where there are none.

    CDS = AP * mean(1 - ATE / 2, 1 - ASE, 1 - AOE / pi)

The official mean is over all classes that are scored: one without a ground truth counts with AP 0, CDS 0 and the worst
errors, so that a log with 10 of the 26 classes scores at most 10/26. ``classes_with_truth`` is the mean over the rest.

Source: av2 0.3.6, evaluation/detection/{utils,eval}.py, whose numbers tests/bev/evaluation reproduce. Of predictions
with equal scores the first is taken here; the package's order of them is not defined.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...core.answers import Detections
from ...core.argoverse2 import EVALUATED_CLASSES
from ...core.errors import DataError, NoLabelsError
from ...core.frames import Frame
from ...core.ids import ids_apart
from ...geometry import box_corners, invert_pose, transform_boxes, transform_points, wrap_angle
from .argoverse2_region import RegionOfInterest
from .matching import nearest_truth

THRESHOLDS_M = (0.5, 1.0, 2.0, 4.0)
ERRORS_AT_M = 2.0
MAX_RANGE_M = 150.0
MAX_PREDICTIONS = 100
"""Of a sweep and class."""
RECALLS = np.linspace(0, 1, 101)
WORST_ERRORS = (ERRORS_AT_M, 1.0, math.pi)
"""ATE, ASE, AOE; also what they are divided by."""
NUMBERS = ("ATE", "ASE", "AOE", "CDS", "AP")

NOTHING_COUNTS = (
    f"no label of the {len(EVALUATED_CLASSES)} classes counts: all lack LiDAR points, lie farther than "
    f"{MAX_RANGE_M:g} m or outside the region of interest; score a labelled split, or everywhere"
)

Scores = dict[str, Any]


@dataclass(frozen=True)
class SweepBoxes:
    """Boxes of any number of sweeps, flat, each in the EGO frame of its sweep.

    sweeps: [n] ids, integers or texts, or numbers of ``names`` where these are given; labels: [n] numbers of classes;
    boxes: [n, >=7] as in geometry.boxes; counts: of predictions their scores [n], of ground truths their LiDAR points
    [n]; names: ids of sweeps; in_region: [n] bool, None: all are.
    """

    sweeps: ArrayLike
    labels: ArrayLike
    boxes: ArrayLike
    counts: ArrayLike
    names: Sequence[str] = ()
    in_region: ArrayLike | None = None


def detection_scores(
    predictions: SweepBoxes, truths: SweepBoxes, class_names: Sequence[str] = EVALUATED_CLASSES
) -> Scores:
    """NUMBERS over all of ``class_names``, then ``classes_with_truth`` (the same over these) and ``classes``, by name.

    Labels outside ``class_names`` are not scored. Each class has NUMBERS, ``num_truths`` and ``num_predictions`` that
    count. Raises DataError for arrays of other shapes, and numbers that are not finite; NoLabelsError where no ground
    truth counts.
    """
    num_classes = len(class_names)
    if predictions.names or truths.names:
        joint = sorted({*predictions.names, *truths.names})
        predictions, truths = _renumbered(predictions, joint), _renumbered(truths, joint)
    pd, gt = _Flat.of(predictions, num_classes, "predictions"), _Flat.of(truths, num_classes, "ground truths")
    names = np.unique(np.concatenate([np.unique(pd.sweeps), np.unique(gt.sweeps)]))
    pd_group, gt_group = (np.searchsorted(names, own.sweeps) * num_classes + own.labels for own in (pd, gt))
    order = np.lexsort((-pd.counts, pd_group))  # by group, best score first: groups lie together in memory
    order = order[np.linalg.norm(pd.boxes[order, :3], axis=1) < MAX_RANGE_M]
    group = pd_group[order]
    first_100 = np.arange(len(order)) - np.searchsorted(group, group, "left") < MAX_PREDICTIONS
    order = order[first_100 & pd.in_region[order]]  # the region is looked at after the 100, as officially
    pd, pd_group = pd.where(order), pd_group[order]
    counted = (np.linalg.norm(gt.boxes[:, :3], axis=1) < MAX_RANGE_M) & (gt.counts > 0) & gt.in_region
    gt, gt_group = gt.where(counted), gt_group[counted]
    if not len(gt.labels):
        raise NoLabelsError(NOTHING_COUNTS)

    nearest, distance = nearest_truth(pd_group, pd.boxes[:, :3], gt_group, gt.boxes[:, :3])
    has = np.flatnonzero(nearest >= 0)
    _, first = np.unique(nearest[has], return_index=True)
    may_be_right = np.zeros(len(nearest), bool)
    may_be_right[has[first]] = True
    right = may_be_right[:, None] & (distance[:, None] < np.array(THRESHOLDS_M))  # [n, T]
    matched = right[:, THRESHOLDS_M.index(ERRORS_AT_M)]
    errors = np.zeros((len(nearest), 3))
    errors[matched] = _errors(pd.boxes[matched], gt.boxes[nearest[matched]], distance[matched])

    classes = {}
    for label, name in enumerate(class_names):
        own = np.flatnonzero(pd.labels == label)
        own = own[np.argsort(-pd.counts[own], kind="stable")]
        num_truths = int(np.sum(gt.labels == label))
        numbers = _class_scores(right[own], errors[own[matched[own]]], num_truths)
        classes[name] = numbers | {"num_truths": num_truths, "num_predictions": len(own)}
    present = [own for own in classes.values() if own["num_truths"]]
    return _mean(list(classes.values())) | {"classes_with_truth": _mean(present), "classes": classes}


def argoverse2_scores(
    predictions: SweepBoxes,
    frames: Sequence[Frame],
    class_names: Sequence[str] = EVALUATED_CLASSES,
    region_of: Callable[[str], RegionOfInterest] | None = None,
) -> Scores:
    """Scores of predictions on labelled frames, see detection_scores.

    predictions: their ``names`` are tokens of frames, labels are as in ``class_names``. region_of: the region of
    interest of a log by its scene token; called once for each log. Labels that are none of ``class_names`` are left
    out, as the package leaves out categories that are not evaluated.
    Raises DataError for frames without labels, predictions of sweeps that are not among the frames, and bad arrays;
    NoLabelsError where no label counts.
    """
    if unlabelled := [frame.token for frame in frames if frame.annotations is None]:
        raise DataError(f"sample {unlabelled[0]}: has no labels, as the test split; score a labelled split")
    frames = sorted(frames, key=lambda frame: frame.token)  # of equal scores the first counts more
    tokens = [frame.token for frame in frames]
    if strange := ids_apart(predictions.names, tokens, "sweeps"):
        raise DataError(f"predictions: {strange}")
    if foreign := sorted(set(predictions.names) - set(tokens)):
        raise DataError(f"predictions: sweep {foreign[0]!r} is none of the frames; predict the same split")
    predictions, truths = _renumbered(predictions, tokens), _truths(frames, class_names)
    if region_of is not None:
        predictions, truths = (_with_region(boxes, frames, region_of) for boxes in (predictions, truths))
    return detection_scores(predictions, truths, class_names)


def any_counts(
    frames: Sequence[Frame],
    class_names: Sequence[str] = EVALUATED_CLASSES,
    region_of: Callable[[str], RegionOfInterest] | None = None,
) -> bool:
    """Whether a label of the frames, which all have labels, counts in the score; one log after the other, up to it."""
    of_log: dict[str, list[Frame]] = {}
    for frame in frames:
        of_log.setdefault(frame.scene_token, []).append(frame)
    for own in of_log.values():
        truths = _truths(own, class_names)
        near = np.linalg.norm(np.asarray(truths.boxes)[:, :3], axis=1) < MAX_RANGE_M
        counted = near & (np.asarray(truths.labels) >= 0) & (np.asarray(truths.counts) > 0)
        if counted.any() and region_of is not None:
            counted &= np.asarray(_with_region(truths, own, region_of).in_region)
        if counted.any():
            return True
    return False


def sweep_boxes(detections: Mapping[str, Detections], frames: Sequence[Frame]) -> SweepBoxes:
    """A model's answers by sample token as predictions, with the model's own labels."""
    of_frame = [(frame, detections[frame.token]) for frame in frames if frame.token in detections]
    boxes = [transform_boxes(f.ego_from_bev, np.asarray(d.boxes, np.float64).reshape(-1, 9)) for f, d in of_frame]
    join = lambda parts: np.concatenate([np.zeros(0), *parts])
    return SweepBoxes(
        np.repeat(np.arange(len(boxes)), [len(own) for own in boxes]),
        join([d.labels for _, d in of_frame]).astype(np.int64),
        np.concatenate([np.zeros((0, 9)), *boxes]),
        join([d.scores for _, d in of_frame]),
        [frame.token for frame, _ in of_frame],
    )


def table(scores: Scores) -> list[str]:
    """Lines for people: the classes that have a ground truth, and both means."""
    width = max(map(len, [*scores["classes"], "classes with ground truth"]))
    row = lambda name, own: f"{name:<{width}} " + " ".join(f"{own[key]:6.3f}" for key in NUMBERS)
    present = {name: own for name, own in scores["classes"].items() if own["num_truths"]}
    head = f"{'class':<{width}} " + " ".join(f"{key:>6}" for key in NUMBERS)
    lines = [head, *(row(name, own) for name, own in present.items())]
    if len(present) < len(scores["classes"]) and present:
        lines.append(row(f"{len(present)} classes with truth", scores["classes_with_truth"]))
    return [*lines, row(f"all {len(scores['classes'])} classes", scores)]


SUMMARY = ("CDS", "AP", "ATE", "ASE", "AOE")


def summary(scores: Scores) -> dict[str, float]:
    """The numbers that a leaderboard shows."""
    return {key: scores[key] for key in SUMMARY}


@dataclass(frozen=True)
class _Flat:
    """Checked arrays of SweepBoxes."""

    sweeps: NDArray[Any]
    labels: NDArray[np.int64]
    boxes: NDArray[np.float64]
    counts: NDArray[np.float64]
    in_region: NDArray[np.bool_]

    @classmethod
    def of(cls, given: SweepBoxes, num_classes: int, what: str) -> _Flat:
        boxes = np.asarray(given.boxes, np.float64)
        n = len(boxes)
        if boxes.ndim != 2 or boxes.shape[1] < 7:
            raise DataError(f"boxes of {what}: have shape {boxes.shape}; give [n, 7] or more: x y z l w h yaw")
        inside = np.ones(n, bool) if given.in_region is None else np.asarray(given.in_region, bool)
        sweeps, labels, counts = np.asarray(given.sweeps), np.asarray(given.labels), np.asarray(given.counts, float)
        for name, column in (("sweeps", sweeps), ("labels", labels), ("counts", counts), ("in_region", inside)):
            if column.shape != (n,):
                raise DataError(f"{name} of {what}: have shape {column.shape}; give one for each of {n} boxes")
        for name, values in (("boxes", boxes[:, :7]), ("counts", counts)):
            if not np.isfinite(values).all():
                raise DataError(f"{name} of {what}: hold NaN or infinity; leave these boxes out, or fix the model")
        if n and not (boxes[:, 3:6] > 0).all():
            raise DataError(f"boxes of {what}: a size is not above 0; leave these boxes out, or fix the model")
        whole = cls(sweeps if n else np.zeros(0, sweeps.dtype), labels.astype(np.int64), boxes[:, :7], counts, inside)
        known = (whole.labels >= 0) & (whole.labels < num_classes)
        return whole if known.all() else whole.where(known)

    def where(self, rows: NDArray[Any]) -> _Flat:
        return _Flat(self.sweeps[rows], self.labels[rows], self.boxes[rows], self.counts[rows], self.in_region[rows])


def _errors(pd: NDArray[np.float64], gt: NDArray[np.float64], distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n, 3]: distance, 1 - IoU of boxes laid upon each other, and difference of headings."""
    common, union = np.minimum(pd[:, 3:6], gt[:, 3:6]).prod(1), np.maximum(pd[:, 3:6], gt[:, 3:6]).prod(1)
    return np.stack([distance, 1 - common / union, np.abs(wrap_angle(pd[:, 6] - gt[:, 6]))], 1)


def _class_scores(right: NDArray[np.bool_], errors: NDArray[np.float64], num_truths: int) -> dict[str, float]:
    """Of one class: right [n, T] by score, best first; errors [matches, 3]."""
    if not num_truths:
        return dict(zip(NUMBERS, (*WORST_ERRORS, 0.0, 0.0)))
    precisions = []
    for true_positive in right.T if len(right) else ():
        found = np.cumsum(true_positive)
        precision = np.maximum.accumulate((found / np.arange(1, len(found) + 1))[::-1])[::-1]
        precisions.append(np.interp(RECALLS, found / num_truths, precision, right=0).mean())
    ap = float(np.mean(precisions)) if precisions else 0.0
    mean_errors = errors.mean(0) if len(errors) else np.array(WORST_ERRORS)
    cds = ap * float(np.mean(1 - mean_errors / np.array(WORST_ERRORS)))
    return dict(zip(NUMBERS, (*map(float, mean_errors), cds, ap)))


def _mean(classes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([own[key] for own in classes])) for key in NUMBERS}


def _renumbered(boxes: SweepBoxes, names: Sequence[str]) -> SweepBoxes:
    """The same with sweeps as numbers of ``names``, without names."""
    sweeps = np.asarray(boxes.sweeps)
    n = len(boxes.names)
    if len(sweeps) and (sweeps.dtype.kind not in "iu" or sweeps.min() < 0 or sweeps.max() >= n):
        raise DataError(f"sweeps: must be numbers of the {n} names; give both predictions and ground truths names")
    number = {name: i for i, name in enumerate(names)}
    new = np.array([number[name] for name in boxes.names], np.int64)
    return replace(boxes, sweeps=new[sweeps.astype(np.int64)], names=())


def _truths(frames: Sequence[Frame], class_names: Sequence[str]) -> SweepBoxes:
    """Labels of frames, sweeps as numbers of frames."""
    label_of = {name: label for label, name in enumerate(class_names)}
    sweeps, labels = [], []
    boxes, points = [np.zeros((0, 9))], [np.zeros(0, np.int64)]
    for number, frame in enumerate(frames):
        notes = frame.annotations
        assert notes is not None
        sweeps += [number] * len(notes)
        labels += [label_of.get(name, -1) for name in notes.names]
        boxes.append(notes.boxes_in(invert_pose(frame.global_from_ego)))
        points.append(notes.num_lidar_points)
    ids, classes = np.array(sweeps, np.int64), np.array(labels, np.int64)
    return SweepBoxes(ids, classes, np.concatenate(boxes), np.concatenate(points))


def _with_region(
    boxes: SweepBoxes, frames: Sequence[Frame], region_of: Callable[[str], RegionOfInterest]
) -> SweepBoxes:
    """The same with ``in_region``; sweeps are numbers of frames."""
    by_scene: dict[str, list[int]] = {}
    for number, frame in enumerate(frames):
        by_scene.setdefault(frame.scene_token, []).append(number)
    sweeps, values = np.asarray(boxes.sweeps), np.asarray(boxes.boxes, np.float64)
    order = np.argsort(sweeps, kind="stable")
    start, stop = (np.searchsorted(sweeps[order], np.arange(len(frames)), side) for side in ("left", "right"))
    inside = np.zeros(len(sweeps), bool)
    for scene, numbers in by_scene.items():
        region = region_of(scene)  # of one log at a time: a grid takes tens of megabytes
        for number in numbers:
            rows = order[start[number] : stop[number]]
            corners = box_corners(values[rows, :7]).reshape(-1, 3)
            corners = transform_points(frames[number].global_from_ego, corners)
            inside[rows] = region.contains(corners[:, :2]).reshape(-1, 8).any(1)
    return replace(boxes, in_region=inside)
