"""Boxes of all keyframes as rows: what measures beside the benchmark's score are made from.

Shapes: n boxes, F frames, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...core.errors import SubmissionError
from ...core.frames import Annotations, Frame
from .matching import match, pairs_within
from .nuscenes_boxes import ScoredBoxes

MIN_SCORE = 0.15
"""Boxes below are not looked at: most of a model's queries find nothing."""
MATCH_M = 2.0
"""Centres on the ground this near match, as for the errors of nuScenes' score."""


@dataclass(frozen=True)
class BoxRows:
    """Labels or predictions of a list of frames, one row each."""

    class_names: tuple[str, ...]
    frame: NDArray[np.int64]
    """[n] index of the frame."""
    label: NDArray[np.int64]
    """[n] index of the class."""
    centre_global_m: NDArray[np.float64]
    """[n, 2] on the ground."""
    velocity_global_mps: NDArray[np.float64]
    """[n, 2], NaN where unknown."""
    score: NDArray[np.float64]
    """[n], 1 of labels."""
    source: NDArray[np.int64]
    """[n] the box's index in its frame's labels or predictions."""

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def group(self) -> NDArray[np.int64]:
        """[n] numbers of (frame, class)."""
        return self.frame * len(self.class_names) + self.label

    def take(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> BoxRows:
        arrays = {name: values[chosen] for name, values in vars(self).items() if name != "class_names"}
        return BoxRows(self.class_names, **arrays)


def prediction_rows(
    frames: Sequence[Frame],
    boxes: Mapping[str, ScoredBoxes],
    class_names: Sequence[str],
    min_score: float = MIN_SCORE,
) -> BoxRows:
    """The predictions above a score, of the classes named. Raises SubmissionError for a frame that has no entry."""
    if missing := [frame.token for frame in frames if frame.token not in boxes]:
        raise SubmissionError(f"sample {missing[0]}: no prediction; give an entry for every sample, empty if none")
    parts = [boxes[frame.token] for frame in frames]
    rows = _rows(parts, class_names, np.concatenate([np.zeros(0), *(part.scores for part in parts)]))
    return rows.take(rows.score > min_score)


def label_rows(frames: Sequence[Frame], class_names: Sequence[str], min_points: int = 1) -> BoxRows:
    """The labels of the classes named that hold as many LiDAR and radar points; frames without labels have none."""
    parts = [notes_of(frame) for frame in frames]
    rows = _rows(parts, class_names, None)
    points = [part.num_lidar_points + part.num_radar_points for part in parts]
    return rows.take(np.array([points[f][k] for f, k in zip(rows.frame, rows.source)], int) >= min_points)


def notes_of(frame: Frame) -> Annotations:
    """The frame's labels, none where it has none."""
    return Annotations.of_boxes([], [], [], []) if frame.annotations is None else frame.annotations


def _rows(
    parts: Sequence[Annotations | ScoredBoxes], class_names: Sequence[str], scores: NDArray[np.float64] | None
) -> BoxRows:
    numbers = {name: i for i, name in enumerate(class_names)}
    counts = [len(part) for part in parts]
    label = np.array([numbers.get(name, -1) for part in parts for name in part.names], np.int64)
    rows = BoxRows(
        tuple(class_names),
        np.repeat(np.arange(len(parts)), counts),
        label,
        np.concatenate([np.zeros((0, 2)), *(part.centre_global_m[:, :2] for part in parts)]),
        np.concatenate([np.zeros((0, 2)), *(part.velocity_global_mps for part in parts)]),
        np.ones(len(label)) if scores is None else scores,
        np.concatenate([np.zeros(0, np.int64), *(np.arange(count) for count in counts)]),
    )
    return rows.take(label >= 0)


def matched(predictions: BoxRows, labels: BoxRows, distance_m: float = MATCH_M) -> NDArray[np.int64]:
    """[n] the label that each prediction finds, -1: none. Best score first, each takes the nearest label of its frame
    and class that is left, as nuScenes' score does."""
    pairs = pairs_within(
        predictions.group, predictions.centre_global_m, labels.group, labels.centre_global_m, distance_m
    )
    rank = np.empty(len(predictions), np.int64)
    rank[np.argsort(predictions.score, kind="stable")[::-1]] = np.arange(len(predictions))
    return match(pairs, rank, len(labels), distance_m)
