"""nuScenes tracking scores: AMOTA, AMOTP and the CLEAR MOT numbers, for cars, trucks, buses, trailers, pedestrians,
bicycles and motorcycles.

In words: boxes count as in the detection score (radius by class; labels with a LiDAR or radar point; no bicycles in
racks). The score of a track is the mean of its boxes' scores. A keyframe that a track misses between two others gets a
box on the straight line between them, for labels and predictions alike. Tracks are matched with labels within 2 m on
the ground (clear_mot.py) at 40 thresholds on the tracks' score: those at which recalls from 0.1 to 1, evenly spaced,
are reached by all that matches without any threshold. At recall r

    MOTAR = max(0, 1 - (switches + false alarms + misses - (1 - r) P) / (r P)),    P labels,

AMOTA is its mean over the thresholds, AMOTP that of the mean distance of matches; a recall that is not reached counts
0, and 2 m. All other numbers are those at the threshold of the highest MOTA, of equal ones the lowest threshold. Means
and sums over classes leave out classes without labels.

Source: https://www.nuscenes.org/tracking, Weng and Kitani, "A Baseline for 3D Multi-Object Tracking"
(arXiv 1907.03961), and the behaviour of nuscenes-devkit 1.2.0 (configuration tracking_nips_2019) with motmetrics 1.4.0,
with which a test compares every number.

Shapes: n boxes of all samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.errors import DataError, NoLabelsError, SubmissionError
from ...core.frames import Annotations, Frame
from .clear_mot import Comparison, Keyframe, compare
from .nuscenes_boxes import ScoredBoxes
from .nuscenes_filters import counted
from .nuscenes_submission import CLASS_RANGE_M
from .tracking_rules import TRACKING_CLASSES
from .tracking_submission import TrackedBoxes

TRACKING_RANGE_M: Mapping[str, float] = {name: CLASS_RANGE_M[name] for name in TRACKING_CLASSES}
KEYS = (
    "amota", "amotp", "recall", "motar", "gt", "mota", "motp", "mt", "ml", "faf", "tp", "fp", "fn", "ids", "frag",
    "tid", "lgd",
)  # fmt: skip
SUMS = ("mt", "ml", "tp", "fp", "fn", "ids", "frag")
"""Numbers that are added up over classes; the others are averaged."""
_REACH_M, _WORST_AMOTP_M = 2.0, 2.0
_RECALLS = np.linspace(0.1, 1, 40).round(12)


def evaluate_tracks(frames: Iterable[Frame], predictions: Mapping[str, TrackedBoxes]) -> dict[str, Any]:
    """Score tracks by sample token against the labels of frames; frames without labels (None) are left out.

    Returns over all classes, and under ``per_class`` for each: ``amota``, ``amotp`` (m), ``motar``, ``mota``, ``motp``
    (m), ``recall``, ``tp``, ``fp``, ``fn``, ``ids`` (switches of identity), ``frag`` (objects lost for a while),
    ``mt`` and ``ml`` (objects found in at least 80 %, in less than 20 % of their keyframes), ``faf`` (false alarms in
    100 keyframes), ``tid`` and ``lgd`` (s until an object is found, of its longest gap), ``gt`` (labels); None where
    undefined, as for classes without labels. Also ``num_samples``.

    Raises NoLabelsError if no frame has labels of these classes, DataError if a label has no instance, SubmissionError
    naming the sample if one has no entry in ``predictions``.
    """
    labelled = [frame for frame in frames if frame.annotations is not None]
    if not labelled:
        raise NoLabelsError("the split has no annotations; score a labelled split")
    scenes = _scenes(labelled)
    truths, boxes = _of_labels(labelled), _of_predictions(predictions, labelled)
    if not len(truths.sample):
        raise NoLabelsError(f"no label is of the classes that are tracked: {', '.join(TRACKING_CLASSES)}")
    per_class: dict[str, dict[str, float]] = {}
    for label, name in enumerate(TRACKING_CLASSES):
        true, found = (rows.take(rows.label == label) for rows in (truths, boxes))
        per_class[name] = _class_scores([_keyframes(true, found, scene, labelled) for scene in scenes])
    overall = {key: _over_classes([own[key] for own in per_class.values()], key in SUMS) for key in KEYS}
    return {
        **{key: _number(value) for key, value in overall.items()},
        "per_class": {name: {key: _number(own[key]) for key in KEYS} for name, own in per_class.items()},
        "num_samples": len(labelled),
    }


def _over_classes(values: Sequence[float], add: bool) -> float:
    known = [value for value in values if not math.isnan(value)]
    if add:
        return float(np.sum(known))
    return float(np.mean(known)) if known else math.nan


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


# -------------------------------------------------------------------------------------------------- boxes that count


@dataclass(frozen=True)
class _Rows:
    """Boxes of all samples, one row each, in the order of the samples."""

    sample: NDArray[np.int64]  # [n] index of the frame
    label: NDArray[np.int64]  # [n] index of the class
    track: NDArray[np.int64]  # [n]
    centre_m: NDArray[np.float64]  # [n, 3]
    score: NDArray[np.float64]  # [n]

    def take(self, chosen: NDArray[np.bool_]) -> _Rows:
        return _Rows(**{name: values[chosen] for name, values in vars(self).items()})


def _of_labels(frames: Sequence[Frame]) -> _Rows:
    notes = [frame.annotations for frame in frames if frame.annotations is not None]
    points = [own.num_lidar_points + own.num_radar_points for own in notes]
    rows = _rows(notes, [own.instance_tokens for own in notes], [np.full(len(own), -1.0) for own in notes], frames)
    counts = np.concatenate([np.zeros(0), *points]) >= 1
    unnamed = np.array([not token for own in notes for token in own.instance_tokens], dtype=bool)
    if lost := np.flatnonzero(unnamed & (rows.label >= 0)).tolist():
        token = frames[rows.sample[lost[0]]].token
        raise DataError(
            f"sample {token}: a label of an object has no instance, so that nobody can tell which objects are the same "
            "in two keyframes; give instance tokens (tracks= of Annotations.of_boxes), or score boxes alone"
        )
    return rows.take(counts & counted(rows.sample, rows.label, rows.centre_m, frames, TRACKING_RANGE_M))


def _of_predictions(predictions: Mapping[str, TrackedBoxes], frames: Sequence[Frame]) -> _Rows:
    for frame in frames:
        if frame.token not in predictions:
            raise SubmissionError(f"sample {frame.token}: no prediction; give an entry for every sample, empty if none")
    held = [predictions[frame.token] for frame in frames]
    rows = _rows([own.boxes for own in held], [own.ids for own in held], [own.boxes.scores for own in held], frames)
    return rows.take(counted(rows.sample, rows.label, rows.centre_m, frames, TRACKING_RANGE_M))


def _rows(
    parts: Sequence[Annotations | ScoredBoxes],
    ids: Sequence[Sequence[str]],
    scores: Sequence[NDArray[np.float64]],
    frames: Sequence[Frame],
) -> _Rows:
    """Boxes as rows; a class that is not tracked is -1. A track is the same id in the same scene."""
    labels = {name: label for label, name in enumerate(TRACKING_CLASSES)}
    numbers: dict[tuple[str, str], int] = {}
    tracks = [
        numbers.setdefault((frame.scene_token, own), len(numbers)) for frame, every in zip(frames, ids) for own in every
    ]
    return _Rows(
        sample=np.repeat(np.arange(len(parts)), [len(part) for part in parts]),
        label=np.array([labels.get(name, -1) for part in parts for name in part.names], dtype=np.int64),
        track=np.array(tracks, dtype=np.int64),
        centre_m=np.concatenate([np.zeros((0, 3)), *(part.centre_global_m for part in parts)]),
        score=np.concatenate([np.zeros(0), *scores]),
    )


def _scenes(frames: Sequence[Frame]) -> list[list[int]]:
    """The frames of each scene, by index, in time order."""
    found: dict[str, list[int]] = {}
    for i, frame in enumerate(frames):
        found.setdefault(frame.scene_token, []).append(i)
    return [sorted(own, key=lambda i: frames[i].timestamp_us) for own in found.values()]


# ------------------------------------------------------------------------------------------------- tracks of a scene


@dataclass
class _Places:
    """What is where in one keyframe, in a list per number."""

    tracks: list[int]
    xy_m: list[NDArray[np.float64]]
    scores: list[float]

    def add(self, track: int, xy_m: NDArray[np.float64], score: float) -> None:
        self.tracks.append(track)
        self.xy_m.append(xy_m)
        self.scores.append(score)


def _keyframes(truths: _Rows, boxes: _Rows, scene: Sequence[int], frames: Sequence[Frame]) -> list[Keyframe]:
    """The keyframes of a scene with the labels and predictions of one class, gaps filled."""
    times_us = [frames[i].timestamp_us for i in scene]
    found = []
    for truth, own in zip(_filled(truths, scene, times_us), _filled(boxes, scene, times_us)):
        where = [np.array(places.xy_m).reshape(-1, 2) for places in (truth, own)]
        ids = [np.array(places.tracks, dtype=np.int64) for places in (truth, own)]
        found.append(Keyframe.of(ids[0], where[0], ids[1], where[1], np.array(own.scores), _REACH_M))
    return found


def _filled(rows: _Rows, scene: Sequence[int], times_us: Sequence[int]) -> list[_Places]:
    """What each keyframe of a scene holds: its boxes with the mean score of their track, and those of gaps."""
    places = [_Places([], [], []) for _ in scene]
    tracks: dict[int, list[tuple[int, int]]] = {}  # track -> (keyframe, row), in time order
    for k, i in enumerate(scene):
        for row in range(*np.searchsorted(rows.sample, [i, i + 1])):
            tracks.setdefault(int(rows.track[row]), []).append((k, row))
    means = {track: float(np.mean([rows.score[row] for _, row in own])) for track, own in tracks.items()}
    for track, own in tracks.items():
        for k, row in own:
            places[k].add(track, rows.centre_m[row, :2], means[track])
    for track, own in tracks.items():
        for (left, a), (right, b) in pairwise(own):
            for k in range(left + 1, right):
                # As the devkit has it: the share of the later box is how near the EARLIER one is in time. The two
                # shares are equal where one keyframe is missing.
                share = float(times_us[right] - times_us[k]) / (times_us[right] - times_us[left])
                xy = (1.0 - share) * rows.centre_m[a, :2] + share * rows.centre_m[b, :2]
                places[k].add(track, xy, (1.0 - share) * means[track] + share * means[track])
    return places


# --------------------------------------------------------------------------------------------------- scores of a class


def _class_scores(scenes: Sequence[Sequence[Keyframe]]) -> dict[str, float]:
    """All numbers of one class; NaN where undefined."""
    labels = sum(len(keyframe.truth_ids) for keyframes in scenes for keyframe in keyframes)
    if not labels:
        return dict.fromkeys(KEYS, math.nan)
    thresholds = _thresholds(compare(scenes).match_scores, labels)
    if not len(thresholds):
        objects = {(s, int(i)) for s, keyframes in enumerate(scenes) for one in keyframes for i in one.truth_ids}
        return {
            "amota": 0.0, "amotp": _WORST_AMOTP_M, "recall": 0.0, "motar": 0.0, "gt": labels, "mota": 0.0, "motp": 2.0,
            "mt": 0.0, "ml": len(objects), "faf": 500.0, "tp": 0.0, "fp": math.nan, "fn": labels, "ids": math.nan,
            "frag": math.nan, "tid": 20.0, "lgd": 20.0,
        }  # fmt: skip
    distinct, repeats = np.unique(thresholds, return_counts=True)
    at = [_at_threshold(compare(scenes, threshold), labels) for threshold in distinct.tolist()]
    motar = np.repeat([own["motar"] for own in at], repeats)
    motp = np.repeat([own["motp"] for own in at], repeats)
    missed = len(_RECALLS) - len(thresholds)
    best = max(at, key=lambda own: own["mota"])  # of equal ones the first, at the lowest threshold
    return best | {
        "amota": float(np.nan_to_num(motar, nan=0.0).sum()) / len(_RECALLS),
        "amotp": float(np.nan_to_num(motp, nan=_WORST_AMOTP_M).sum() + missed * _WORST_AMOTP_M) / len(_RECALLS),
    }


def _thresholds(match_scores: Sequence[float], labels: int) -> NDArray[np.float64]:
    """The score at each of the recalls that are reached."""
    if not match_scores:
        return np.zeros(0)
    scores = np.sort(np.array(match_scores))[::-1]
    recall = np.arange(1, len(scores) + 1) / labels
    return np.interp(_RECALLS, recall, scores, right=0)[: np.searchsorted(_RECALLS, recall[-1], "right")]


def _at_threshold(found: Comparison, labels: int) -> dict[str, float]:
    recall = found.matches / labels
    errors = found.misses + found.switches + found.false_alarms
    shares = found.shares_found
    return {
        "recall": found.detections / labels,
        "motar": max(0.0, 1 - (errors - (1 - recall) * labels) / (recall * labels)) if recall else math.nan,
        "gt": labels,
        "mota": max(0.0, 1 - errors / labels),
        "motp": found.distance_m / found.detections if found.detections else math.nan,
        "mt": int((shares >= 0.8).sum()),
        "ml": int((shares < 0.2).sum()),
        "faf": 100 * found.false_alarms / found.keyframes,
        "tp": found.matches,
        "fp": found.false_alarms,
        "fn": found.misses,
        "ids": found.switches,
        "frag": found.fragments,
        "tid": found.seconds_to_first(),
        "lgd": found.longest_gap_s(),
    }


# --------------------------------------------------------------------------------------------------------- in words


def table(scores: Mapping[str, Any]) -> list[str]:
    """The scores as lines of text: the sums, and a row per class."""
    columns = ("amota", "amotp", "mota", "recall", "ids", "frag", "fp", "fn", "mt", "ml", "gt")
    lines = [
        f"AMOTA {_digits(scores['amota'])}    AMOTP {_digits(scores['amotp'])} m    MOTA {_digits(scores['mota'])}    "
        f"recall {_digits(scores['recall'])}    IDS {scores['ids']:.0f}    FRAG {scores['frag']:.0f}",
        "",
        f"{'class':<14}" + "".join(f"{key.upper():>8}" for key in columns),
    ]
    rows = sorted(scores["per_class"].items(), key=lambda entry: -(entry[1]["amota"] or 0))
    for name, own in rows:
        numbers = (_digits(own[key], 0 if key in SUMS or key == "gt" else 3) for key in columns)
        lines.append(f"{name:<14}" + "".join(f"{text:>8}" for text in numbers))
    return lines


def _digits(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
