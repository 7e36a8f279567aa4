"""nuScenes detection scores, for the benchmark's classes and for any others.

In words: predictions and labels count up to a radius around the ego that depends on their class; labels that no LiDAR
or radar point lies in do not count, nor do bicycles and motorcycles, labelled or predicted, whose centre lies inside of
a labelled bicycle rack. For each class and each of four distances (0.5, 1, 2, 4 m between centres on the ground)
predictions take labels of their sample greedily, best score first, each the nearest that is left and closer than the
distance (of equal scores the one that stands later in the predictions comes first). Precision is read off at recalls
0, 0.01, ..., 1, between the measured points by linear interpolation, 0 beyond the last one; average precision (AP) is
the mean over the recalls above 0.1 of what exceeds a precision of 0.1, scaled so that 1 is perfect. mAP averages
classes and distances.

Matches within 2 m give five errors per class: translation (m, on the ground), scale (1 - IoU of the boxes laid on one
another), orientation (rad; up to half a turn for barriers), velocity (m/s) and attribute (1 - accuracy). An error is
averaged over the matches down to each score, ignoring those where it is unknown (labels without velocity or attribute;
NaN predictions); these running means are read off at the scores that belong to the recalls above 0.1 up to the highest
one reached, and averaged. A class that does not reach recall 0.11 has errors 1, one without labels AP 0 too. Cones have
no orientation, velocity and attribute, barriers no velocity and attribute: those do not enter the mean over classes.
NDS = (5 mAP + sum over the five errors of max(0, 1 - mean error)) / 10.

Source: Caesar et al., "nuScenes: A multimodal dataset for autonomous driving", CVPR 2020, section 3.1, and the
behaviour of nuscenes-devkit 1.2.0 (configuration detection_cvpr_2019), with which a test compares every number.

Shapes: n boxes, S samples, C classes, R = 101 recalls, m matches.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.errors import ConfigError, DataError, SubmissionError
from ...core.files import write_json
from ...core.frames import Annotations, Frame
from ...geometry import yaw_of
from .matching import match, pairs_within
from .nuscenes_boxes import ScoredBoxes, read_submission
from .nuscenes_filters import RACKS, counted
from .nuscenes_rules import MAX_BOXES_PER_SAMPLE
from .nuscenes_submission import CLASS_RANGE_M

TP_ERRORS = ("mATE", "mASE", "mAOE", "mAVE", "mAAE")
"""Translation, scale, orientation, velocity, attribute."""
_RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class DetectionSettings:
    """What is scored, and how. Raises ConfigError for values out of range."""

    class_range_m: Mapping[str, float]
    """The classes, and the radius around the ego within which each is scored; boxes of other classes are ignored."""
    distances_m: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    """Between centres; AP is averaged over them."""
    tp_distance_m: float = 2.0
    """The one of ``distances_m`` whose matches give the errors."""
    min_recall: float = 0.1
    min_precision: float = 0.1
    max_boxes_per_sample: int = MAX_BOXES_PER_SAMPLE
    mean_ap_weight: float = 5.0
    """Of mAP in NDS, where each of the five errors has 1."""
    undefined_errors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Class -> which of ``TP_ERRORS`` it does not have. One that no class has drops out of NDS and of its weights."""
    half_turn_classes: tuple[str, ...] = ()
    """Classes whose front and back look alike."""
    excluded_in: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Category of the data set -> classes that do not count inside of its boxes."""
    min_points: int = 1
    """LiDAR and radar points of a label that counts; 0 for data without such counts."""

    def __post_init__(self) -> None:
        if not self.class_range_m or min(self.class_range_m.values()) <= 0:
            raise ConfigError(f"class_range_m is {dict(self.class_range_m)}; give each class a radius above 0 m")
        if self.tp_distance_m not in self.distances_m:
            raise ConfigError(f"tp_distance_m is {self.tp_distance_m}; choose one of distances_m {self.distances_m}")
        if not (0 <= self.min_recall < 1 and 0 <= self.min_precision < 1):
            raise ConfigError(
                f"min_recall {self.min_recall}, min_precision {self.min_precision}; choose them from 0 to below 1"
            )
        wrong = [e for errors in self.undefined_errors.values() for e in errors if e not in TP_ERRORS]
        if wrong:
            raise ConfigError(f"undefined_errors names {wrong[0]!r}; use names of {', '.join(TP_ERRORS)}")

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.class_range_m)


DETECTION_CVPR_2019 = DetectionSettings(
    class_range_m=CLASS_RANGE_M,
    undefined_errors={"traffic_cone": ("mAOE", "mAVE", "mAAE"), "barrier": ("mAVE", "mAAE")},
    half_turn_classes=("barrier",),
    excluded_in=RACKS,
)
"""The benchmark's settings, named as nuscenes-devkit names them."""


def evaluate_submission(
    path: str | os.PathLike[str],
    frames: Sequence[Frame],
    settings: DetectionSettings = DETECTION_CVPR_2019,
    out_dir: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Score a submission file; it must hold exactly the samples of ``frames``. Returns what :func:`evaluate` does.

    With ``out_dir`` the same lies in ``out_dir/metrics_summary.json``.
    Raises SubmissionError if the file breaks a rule, DataError if it cannot be read or the frames have no labels.
    """
    predictions = read_submission(path, [frame.token for frame in frames], settings.class_names)
    scores = evaluate(frames, predictions, settings)
    if out_dir is not None:
        write_json(Path(out_dir) / "metrics_summary.json", scores, indent=2)
    return scores


def evaluate(
    frames: Iterable[Frame],
    predictions: Mapping[str, ScoredBoxes],
    settings: DetectionSettings = DETECTION_CVPR_2019,
) -> dict[str, Any]:
    """Score boxes by sample token against the labels of frames; frames without labels (None) are left out.

    Returns ``nds``, ``map``, ``ap`` (per class), ``ap_per_distance`` (class -> metres -> AP), ``tp_errors`` (mATE,
    mASE, mAOE, mAVE, mAAE), ``tp_errors_per_class`` (None where undefined, as orientation of a cone),
    ``num_ground_truths`` and ``num_predictions`` (per class, after the filters) and ``num_samples``. ``nds_occurring``
    and ``map_occurring`` are the same over the classes that labels have (None: none); officially the others count 0.

    Raises DataError if no frame has labels; SubmissionError naming the sample if one has no entry in ``predictions``,
    too many boxes, a score that is negative or not finite, or a box that is not finite or flat.
    """
    labelled = [frame for frame in frames if frame.annotations is not None]
    if not any(map(len, _notes(labelled))):
        raise DataError("the split has no annotations; score a labelled split")
    codes: dict[str, int] = {"": 0}
    truths = _counted(_of_labels(labelled, settings, codes), labelled, settings)
    boxes = _counted(_of_predictions(predictions, labelled, settings, codes), labelled, settings)
    return _scores(truths, boxes, settings) | {"num_samples": len(labelled)}


@dataclass(frozen=True)
class _Boxes:
    """Boxes of all samples, one row each."""

    sample: NDArray[np.int64]  # [n] index of the frame
    label: NDArray[np.int64]  # [n] index of the class
    centre_m: NDArray[np.float64]  # [n, 3]
    size_m: NDArray[np.float64]  # [n, 3]
    yaw_rad: NDArray[np.float64]  # [n]
    velocity_mps: NDArray[np.float64]  # [n, 2]
    attribute: NDArray[np.int64]  # [n] 0: none
    score: NDArray[np.float64]  # [n] of predictions, 0 of labels

    def __len__(self) -> int:
        return len(self.sample)

    def take(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> _Boxes:
        return _Boxes(**{name: values[chosen] for name, values in vars(self).items()})


def _stack(
    parts: Sequence[Annotations | ScoredBoxes],
    samples: Sequence[int],
    yaw_rad: Sequence[NDArray[np.float64]],
    score: Sequence[NDArray[np.float64]],
    class_names: Sequence[str],
    codes: dict[str, int],
) -> _Boxes:
    """Boxes of samples as rows; a class of none of ``class_names`` is -1; ``codes`` numbers the attributes."""
    labels = {name: label for label, name in enumerate(class_names)}

    def joined(values: Sequence[NDArray[np.float64]], *shape: int) -> NDArray[np.float64]:
        return np.concatenate([np.zeros((0, *shape)), *values])

    return _Boxes(
        sample=np.repeat(np.array(samples, dtype=np.int64), [len(part) for part in parts]),
        label=np.array([labels.get(name, -1) for part in parts for name in part.names], dtype=np.int64),
        centre_m=joined([part.centre_global_m for part in parts], 3),
        size_m=joined([part.size_lwh_m for part in parts], 3),
        yaw_rad=joined(yaw_rad),
        velocity_mps=joined([part.velocity_global_mps for part in parts], 2),
        attribute=np.array([codes.setdefault(a, len(codes)) for part in parts for a in part.attributes], np.int64),
        score=joined(score),
    )


def _notes(frames: Sequence[Frame]) -> list[Annotations]:
    return [frame.annotations for frame in frames if frame.annotations is not None]


def _of_labels(frames: Sequence[Frame], settings: DetectionSettings, codes: dict[str, int]) -> _Boxes:
    notes = _notes(frames)
    yaws = [yaw_of(each.rotation_global) for each in notes]
    zeros = [np.zeros(len(each)) for each in notes]
    boxes = _stack(notes, range(len(notes)), yaws, zeros, settings.class_names, codes)
    points = np.concatenate([np.zeros(0), *(each.num_lidar_points + each.num_radar_points for each in notes)])
    return boxes.take(points >= settings.min_points)


def _of_predictions(
    predictions: Mapping[str, ScoredBoxes],
    frames: Sequence[Frame],
    settings: DetectionSettings,
    codes: dict[str, int],
) -> _Boxes:
    order = {frame.token: i for i, frame in enumerate(frames)}
    for token in order:
        if token not in predictions:
            raise SubmissionError(f"sample {token}: no prediction; give an entry for every sample, empty if none")
        if len(predictions[token]) > settings.max_boxes_per_sample:
            raise SubmissionError(
                f"sample {token}: has {len(predictions[token])} boxes, at most {settings.max_boxes_per_sample} are"
                " allowed; keep the best-scored ones"
            )
    held = {token: boxes for token, boxes in predictions.items() if token in order}
    parts = list(held.values())
    samples = [order[token] for token in held]
    yaws, scores = [part.yaw_rad for part in parts], [part.scores for part in parts]
    boxes = _stack(parts, samples, yaws, scores, settings.class_names, codes)
    usable = {
        "a score that is negative or not finite": np.isfinite(boxes.score) & (boxes.score >= 0),
        "a centre or heading that is not finite": np.isfinite(boxes.centre_m).all(1) & np.isfinite(boxes.yaw_rad),
        "a size that is not positive": np.isfinite(boxes.size_m).all(1) & (boxes.size_m > 0).all(1),
    }
    for what, fine in usable.items():
        if not fine.all():
            token = frames[boxes.sample[fine.argmin()]].token
            raise SubmissionError(f"sample {token}: a predicted box has {what}; drop the box or correct the model")
    return boxes


def _counted(boxes: _Boxes, frames: Sequence[Frame], settings: DetectionSettings) -> _Boxes:
    """The boxes of the classes that are scored, in their radius, outside of what excludes them."""
    where = boxes.sample, boxes.label, boxes.centre_m
    return boxes.take(counted(*where, frames, settings.class_range_m, settings.excluded_in))


def _scores(truths: _Boxes, boxes: _Boxes, settings: DetectionSettings) -> dict[str, Any]:
    names = settings.class_names
    choosing = np.argsort(boxes.score, kind="stable")[::-1]  # best score first, of equal ones the later
    boxes = boxes.take(choosing)
    reach = max(settings.distances_m)
    groups = [each.sample * len(names) + each.label for each in (boxes, truths)]
    pairs = pairs_within(groups[0], boxes.centre_m[:, :2], groups[1], truths.centre_m[:, :2], reach)
    rank = np.arange(len(boxes))
    taken = {distance: match(pairs, rank, len(truths), distance) for distance in settings.distances_m}

    num_truths = np.bincount(truths.label, minlength=len(names))
    num_boxes = np.bincount(boxes.label, minlength=len(names))
    ap: dict[str, dict[str, float]] = {}
    errors: dict[str, dict[str, float | None]] = {}
    for label, name in enumerate(names):
        own = np.flatnonzero(boxes.label == label)  # best first
        curves = {distance: _curves(boxes.score[own], taken[distance][own], num_truths[label]) for distance in taken}
        ap[name] = {str(distance): _average_precision(curve[0], settings) for distance, curve in curves.items()}
        matched = own[taken[settings.tp_distance_m][own] >= 0]
        found = _errors(
            boxes.take(matched),
            truths.take(taken[settings.tp_distance_m][matched]),
            curves[settings.tp_distance_m][1],
            math.pi if name in settings.half_turn_classes else 2 * math.pi,
            settings,
        )
        undefined = settings.undefined_errors.get(name, ())
        errors[name] = {error: None if error in undefined else value for error, value in found.items()}

    mean_ap = {name: float(np.mean(list(own.values()))) for name, own in ap.items()}
    nds, total_ap, means = _means(names, mean_ap, errors, settings)
    present = [name for name, count in zip(names, num_truths) if count]
    nds_occurring, ap_occurring, _ = _means(present, mean_ap, errors, settings) if present else (None, None, {})
    return {
        "nds": nds,
        "map": total_ap,
        "nds_occurring": nds_occurring,
        "map_occurring": ap_occurring,
        "ap": mean_ap,
        "ap_per_distance": ap,
        "tp_errors": means,
        "tp_errors_per_class": errors,
        "num_ground_truths": {name: int(num) for name, num in zip(names, num_truths) if num},
        "num_predictions": {name: int(num) for name, num in zip(names, num_boxes) if num},
    }


def _means(
    names: Sequence[str],
    mean_ap: Mapping[str, float],
    errors: Mapping[str, Mapping[str, float | None]],
    settings: DetectionSettings,
) -> tuple[float, float, dict[str, float | None]]:
    """NDS, mAP and the mean errors over the classes named."""
    means: dict[str, float | None] = {}
    for error in TP_ERRORS:
        defined = [value for name in names if (value := errors[name][error]) is not None]
        means[error] = float(np.mean(defined)) if defined else None
    parts = [max(0.0, 1.0 - value) for value in means.values() if value is not None]
    total_ap = float(np.mean([mean_ap[name] for name in names]))
    nds = (settings.mean_ap_weight * total_ap + sum(parts)) / (settings.mean_ap_weight + len(parts))
    return float(nds), total_ap, means


def _curves(
    score: NDArray[np.float64], taken: NDArray[np.int64], num_truths: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Precision [R] and score [R] at each recall, 0 beyond the highest; score [n], best first; taken [n], -1: none."""
    hit = taken >= 0
    if num_truths == 0 or not hit.any():
        return np.zeros(len(_RECALLS)), np.zeros(len(_RECALLS))
    hits = np.cumsum(hit).astype(np.float64)
    precision, recall = hits / np.arange(1, len(hit) + 1), hits / num_truths
    return np.interp(_RECALLS, recall, precision, right=0), np.interp(_RECALLS, recall, score, right=0)


def _first_recall(settings: DetectionSettings) -> int:
    return round(100 * settings.min_recall) + 1


def _average_precision(precision: NDArray[np.float64], settings: DetectionSettings) -> float:
    above = np.maximum(precision[_first_recall(settings) :] - settings.min_precision, 0)
    return float(np.mean(above)) / (1.0 - settings.min_precision)


def _errors(
    boxes: _Boxes, truths: _Boxes, score_at_recall: NDArray[np.float64], period_rad: float, settings: DetectionSettings
) -> dict[str, float]:
    """The five errors of matches, row by row: boxes [m], best score first, and truths [m]."""
    reached = np.flatnonzero(score_at_recall)
    first, last = _first_recall(settings), reached[-1] if len(reached) else 0
    if last < first:
        return dict.fromkeys(TP_ERRORS, 1.0)
    dx, dy = (boxes.centre_m - truths.centre_m)[:, :2].T
    vx, vy = (boxes.velocity_mps - truths.velocity_mps).T
    common = np.minimum(boxes.size_m, truths.size_m).prod(1)
    turn = (truths.yaw_rad - boxes.yaw_rad + period_rad / 2) % period_rad - period_rad / 2
    per_match = (
        np.sqrt(dx * dx + dy * dy),
        1 - common / (truths.size_m.prod(1) + boxes.size_m.prod(1) - common),
        np.abs(turn),
        np.sqrt(vx * vx + vy * vy),
        np.where(truths.attribute == 0, np.nan, boxes.attribute != truths.attribute),
    )
    at_recall = score_at_recall[first : last + 1][::-1]  # np.interp wants rising places
    return {
        error: float(np.mean(np.interp(at_recall, boxes.score[::-1], _running_mean(values)[::-1])))
        for error, values in zip(TP_ERRORS, per_match)
    }


def _running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of values [m] up to each place, ignoring NaN: 0 before the first number, 1 if there is none."""
    known = ~np.isnan(values)
    if not known.any():
        return np.ones(len(values))
    return np.cumsum(np.where(known, values, 0)) / np.maximum(np.cumsum(known), 1)


def table(scores: Mapping[str, Any]) -> list[str]:
    """The scores as lines of text: the two sums, the errors, and a row per class."""
    errors = scores["tp_errors"]
    lines = [
        f"NDS {scores['nds']:.4f}    mAP {scores['map']:.4f}    "
        + "  ".join(f"{name} {_digits(value)}" for name, value in errors.items()),
        *_occurring(scores),
        "",
        f"{'class':<22}{'AP':>8}" + "".join(f"{name[1:]:>8}" for name in errors) + f"{'labels':>9}{'boxes':>8}",
    ]
    for name, ap in sorted(scores["ap"].items(), key=lambda entry: -entry[1]):
        row = "".join(f"{_digits(value):>8}" for value in scores["tp_errors_per_class"][name].values())
        labels, boxes = (scores[key].get(name, 0) for key in ("num_ground_truths", "num_predictions"))
        lines.append(f"{name:<22}{ap:>8.3f}{row}{labels:>9}{boxes:>8}")
    return lines


def _occurring(scores: Mapping[str, Any]) -> list[str]:
    """A line where classes are scored that no label has."""
    absent = [name for name in scores["ap"] if name not in scores["num_ground_truths"]]
    if not absent or scores.get("nds_occurring") is None:
        return []
    values = f"NDS {scores['nds_occurring']:.4f}    mAP {scores['map_occurring']:.4f}"
    return [f"{values}    over the classes that labels have (not official; they lack {', '.join(absent)})"]


def _digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
