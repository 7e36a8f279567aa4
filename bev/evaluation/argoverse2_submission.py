"""Argoverse 2's detection submissions: one Feather file of boxes in the EGO frame of each sweep; writer and reader.

Columns: ``tx_m ty_m tz_m length_m width_m height_m qw qx qy qz score log_id timestamp_ns category``, a row per box.
Source: argoverse/av2-api, src/av2/evaluation/detection/SUBMISSION_FORMAT.md. Rules: argoverse2_rules.py.

Shapes: n boxes, k boxes of a sweep.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.answers import Detections
from ...core.argoverse2 import EVALUATED_CLASSES, sweep_time_ns, sweep_token
from ...core.errors import SubmissionError
from ...core.feather import FeatherTable, write_feather
from ...core.frames import Frame
from ...core.once import warn_once
from ...geometry import invert_pose, matrix_to_quaternion, quaternion_to_matrix, rotation_z, transform_boxes, yaw_of
from .argoverse2_metrics import MAX_PREDICTIONS, MAX_RANGE_M, Scores, SweepBoxes, argoverse2_scores
from .argoverse2_region import RegionOfInterest

CENTRE = ("tx_m", "ty_m", "tz_m")
SIZE = ("length_m", "width_m", "height_m")
QUATERNION = ("qw", "qx", "qy", "qz")
WRITE_AGAIN = "write the file again with `drivestack predict`"


@dataclass(frozen=True)
class BoxRows:
    """Rows of a table of boxes: a submission, or annotations."""

    log_names: list[str]
    log: NDArray[np.int64]
    """[n], of log_names."""
    time_ns: NDArray[np.int64]
    category_names: list[str]
    category: NDArray[np.int64]
    """[n], of category_names."""
    boxes: NDArray[np.float64]
    """[n, 7], EGO frame of the sweep."""
    counts: NDArray[np.float64]
    """[n] scores, or LiDAR points."""

    def where(self, rows: NDArray[Any]) -> BoxRows:
        own = (self.log[rows], self.time_ns[rows], self.category_names, self.category[rows])
        return BoxRows(self.log_names, *own, self.boxes[rows], self.counts[rows])

    def sweeps(self) -> tuple[list[str], NDArray[np.int64]]:
        """Tokens of all sweeps that have boxes, and which of them each row [n] belongs to."""
        times, at = np.unique(self.time_ns, return_inverse=True)
        pairs, sweep = np.unique(self.log * len(times) + at, return_inverse=True)
        tokens = [sweep_token(self.log_names[pair // len(times)], int(times[pair % len(times)])) for pair in pairs]
        return tokens, sweep

    def sweep_boxes(self, class_names: Sequence[str]) -> SweepBoxes:
        """As the metric takes them; rows of other categories get the label -1."""
        names, sweep = self.sweeps()
        label_of = {name: label for label, name in enumerate(class_names)}
        labels = np.array([label_of.get(name, -1) for name in self.category_names], np.int64)
        return SweepBoxes(sweep, labels[self.category], self.boxes, self.counts, names)


def read_rows(path: str | os.PathLike[str], count: str = "score", log: str = "") -> BoxRows:
    """Rows of a file as they stand there. count: the column of counts; log: of a file without the column ``log_id``.

    Raises DataError for a file that cannot be read, or lacks a column; ConfigError without pyarrow.
    """
    table = FeatherTable(path, WRITE_AGAIN)
    categories, category = table.texts("category")
    logs, of_log = ([log], np.zeros(len(table), np.int64)) if log else table.texts("log_id")
    yaw = yaw_of(quaternion_to_matrix(table.numbers(*QUATERNION)))
    boxes = np.concatenate([table.numbers(*CENTRE, *SIZE), yaw[:, None]], 1)
    time_ns = table.whole_numbers("timestamp_ns")
    return BoxRows(logs, of_log, time_ns, categories, category, boxes, table.numbers(count))


def write_submission(
    path: str | os.PathLike[str],
    detections: Mapping[str, Detections],
    frames: Sequence[Frame],
    class_names: Sequence[str] = EVALUATED_CLASSES,
) -> int:
    """Write a model's answers by sample token; returns the number of boxes.

    Of each sweep and class the 100 best within 150 m of the car are written: others do not count. A sweep without a box
    has no row.
    Raises SubmissionError for frames without an answer and answers without a frame, a class that the benchmark does not
    have, a label without a class, and boxes that are not finite or have no volume; DataError for frames that are no
    sweeps of Argoverse 2.
    """
    if unknown := [name for name in class_names if name not in EVALUATED_CLASSES]:
        raise SubmissionError(
            f"class {unknown[0]!r} is not one of the 26 of Argoverse 2's benchmark; train on its own categories "
            f"({', '.join(EVALUATED_CLASSES[:3])}, ...)"
        )
    tokens = {frame.token for frame in frames}
    if foreign := sorted(detections.keys() - tokens):
        raise SubmissionError(f"sample {foreign[0]}: predicted, but not among the frames; predict on the same split")
    if missing := [frame.token for frame in frames if frame.token not in detections]:
        raise SubmissionError(f"sample {missing[0]}: no prediction; run the model on every frame of the split")
    kept = [_best(detections[frame.token], frame, len(class_names)) for frame in frames]
    if empty := [frame.token for frame, own in zip(frames, kept) if not len(own.scores)]:
        warn_once(
            f"{path}: {len(empty)} of {len(frames)} sweeps have no box, such as {empty[0]}, and no row in the file"
        )
    repeat = lambda values, kind: np.repeat(np.array(values, kind), [len(own.scores) for own in kept])
    boxes = np.concatenate([np.zeros((0, 7)), *(own.boxes for own in kept)])
    quaternion = matrix_to_quaternion(rotation_z(boxes[:, 6])) if len(boxes) else np.zeros((0, 4))
    labels = np.concatenate([np.zeros(0, np.int64), *(own.labels for own in kept)])
    numbers = np.concatenate([boxes[:, :6], quaternion], 1)
    columns: dict[str, Any] = {name: numbers[:, i] for i, name in enumerate((*CENTRE, *SIZE, *QUATERNION))}
    columns["score"] = np.concatenate([np.zeros(0), *(own.scores for own in kept)])
    columns["log_id"] = repeat([frame.scene_token for frame in frames], object)
    columns["timestamp_ns"] = repeat([sweep_time_ns(frame) for frame in frames], np.int64)
    columns["category"] = np.array([*class_names], object)[labels]
    write_feather(path, columns, texts=("log_id", "category"))
    return len(boxes)


def score_submission(
    path: str | os.PathLike[str],
    frames: Sequence[Frame],
    class_names: Sequence[str] = EVALUATED_CLASSES,
    region_of: Callable[[str], RegionOfInterest] | None = None,
) -> Scores:
    """Scores of a file on labelled frames; see argoverse2_metrics. Raises as read_rows and argoverse2_scores."""
    return argoverse2_scores(read_rows(path).sweep_boxes(class_names), frames, class_names, region_of)


def read_detections(
    path: str | os.PathLike[str], frames: Sequence[Frame], class_names: Sequence[str] = EVALUATED_CLASSES
) -> dict[str, Detections]:
    """Boxes of a file in the BEV frame of each of ``frames``, by sample token, best first, for pictures.

    Frames that the file does not hold are left out. Raises SubmissionError for a box of none of ``class_names``.
    """
    rows = read_rows(path)
    if foreign := [name for name in rows.category_names if name not in class_names]:
        raise SubmissionError(f"{path}: holds a {foreign[0]!r}, which is none of {', '.join(class_names)}; name all")
    flat = rows.sweep_boxes(class_names)
    sweep, labels = np.asarray(flat.sweeps), np.asarray(flat.labels)
    order = np.lexsort((-rows.counts, sweep))
    ends = np.searchsorted(sweep[order], np.arange(len(flat.names) + 1))
    number = {name: i for i, name in enumerate(flat.names)}
    found = {}
    for frame in frames:
        if (i := number.get(frame.token)) is None:
            continue
        own = order[ends[i] : ends[i + 1]]
        boxes = np.concatenate([rows.boxes[own], np.full((len(own), 2), np.nan)], 1)  # velocities are not submitted
        boxes = transform_boxes(invert_pose(frame.ego_from_bev), boxes).astype(np.float32)
        found[frame.token] = Detections(frame.token, boxes, rows.counts[own].astype(np.float32), labels[own])
    return found


def _best(found: Detections, frame: Frame, num_classes: int) -> Detections:
    """The boxes that count, in the EGO frame [k, 7]."""
    boxes, scores = np.asarray(found.boxes, np.float64).reshape(-1, 9)[:, :7], np.asarray(found.scores, np.float64)
    labels = np.asarray(found.labels, np.int64)
    broken = ~np.isfinite(boxes).all(1) | ~np.isfinite(scores) | (boxes[:, 3:6] <= 0).any(1)
    for i in np.flatnonzero(broken)[:1]:
        raise SubmissionError(
            f"sample {frame.token}: predicted box {i} is not finite or has no volume {boxes[i].tolist()}; the "
            "checkpoint has diverged, use an earlier one"
        )
    for label in labels[(labels < 0) | (labels >= num_classes)][:1]:
        raise SubmissionError(
            f"sample {frame.token}: predicted label {label}, but there are {num_classes} class names; give the class "
            "list that the model was trained with"
        )
    boxes = transform_boxes(frame.ego_from_bev, boxes)
    near = np.linalg.norm(boxes[:, :3], axis=1) < MAX_RANGE_M
    order = np.argsort(-scores, kind="stable")
    kept = [order[near[order] & (labels[order] == label)][:MAX_PREDICTIONS] for label in np.unique(labels)]
    rows = np.concatenate([np.zeros(0, np.int64), *kept])
    return Detections(frame.token, boxes[rows], scores[rows], labels[rows])
