"""Submissions to Waymo's camera-only 3D detection challenge: from detections to a .tar.gz of shards, and back.

Each shard is a message Submission: who and how, the same in all of them, and a part of the boxes, in the vehicle frame
at the frame's timestamp. As the official create_submission does, boxes of a score below MIN_SCORE are left out and
sizes are at least MIN_SIZE_M; a box that is not finite is an error here. Rules: waymo_rules.py. Messages:
waymo_wire.py. Source: waymo-open-dataset 1.6.7, protos/submission.proto and metrics/tools/create_submission.cc.

Shapes: n boxes, k of a frame.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np

from ...core.answers import Detections
from ...core.errors import SubmissionError
from ...core.files import atomic_path
from ...core.frames import Frame
from ...core.waymo import CLASS_TYPES
from ...geometry import invert_pose, transform_boxes, wrap_angle
from .waymo_wire import MAX_MESSAGE_BYTES, WaymoObjects, encode_objects, encode_submission, token_of

CAMERA_ONLY_DETECTION_3D, CAMERA_ALL = 6, 3
MIN_SCORE = 0.03
MIN_SIZE_M = 1e-6
MAX_METHOD_LETTERS = 25
NUM_SHARDS = 4
MAX_SHARD_BYTES = 1 << 28


@dataclass(frozen=True)
class Entry:
    """Who submits what. past_frames, future_frames: of the data, beside the current one, that the method looks at."""

    account: str = "nobody@example.com"
    """The e-mail address of the account on Waymo's site."""
    method: str = "unnamed"
    """At most 25 characters, unique."""
    authors: tuple[str, ...] = ("nobody",)
    affiliation: str = "none"
    description: str = ""
    link: str = ""
    past_frames: int = 0
    future_frames: int = 0

    def message(self, class_names: Iterable[str]) -> dict[str, Any]:
        """The fields of a Submission beside the boxes, for a method that finds these classes."""
        return {
            "task": CAMERA_ONLY_DETECTION_3D,
            "account_name": self.account,
            "unique_method_name": self.method,
            "authors": list(self.authors),
            "affiliation": self.affiliation,
            "description": self.description or None,
            "method_link": self.link or None,
            "sensor_type": CAMERA_ALL,
            "number_past_frames_exclude_current": self.past_frames,
            "number_future_frames_exclude_current": self.future_frames,
            "object_types": sorted(CLASS_TYPES[name] for name in class_names),
        }

    @classmethod
    def of_message(cls, meta: Mapping[str, Any]) -> Entry:
        """From the fields of a Submission, by name."""
        names = {
            "account": "account_name",
            "method": "unique_method_name",
            "affiliation": "affiliation",
            "description": "description",
            "link": "method_link",
            "past_frames": "number_past_frames_exclude_current",
            "future_frames": "number_future_frames_exclude_current",
        }
        known: dict[str, Any] = {own: meta[name] for own, name in names.items() if name in meta}
        if "authors" in meta:
            known["authors"] = tuple(meta["authors"])
        return cls(**known)


NOBODY = Entry()
"""Placeholder for files that are only scored locally."""


def entry_of(content: Any, where: str) -> dict[str, Any]:
    """Fields of an Entry, some or all, from a JSON file or a config. Raises SubmissionError naming a wrong one."""
    known = asdict(NOBODY)
    if not isinstance(content, Mapping) or (strange := [name for name in content if name not in known]):
        wrong = f", not {strange[0]!r}" if isinstance(content, Mapping) else ""
        raise SubmissionError(f"{where}: must be an object of {', '.join(known)}{wrong}")
    for name, value in content.items():
        if name == "authors":
            good = isinstance(value, (list, tuple)) and all(isinstance(text, str) for text in value)
        elif isinstance(known[name], int):
            good = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        else:
            good = isinstance(value, str)
        kind = {"authors": "a list of texts"}.get(name, "a number from 0" if isinstance(known[name], int) else "a text")
        if not good:
            raise SubmissionError(f"{where}: {name} must be {kind}, got {str(value)[:80]!r}")
    return {name: tuple(value) if name == "authors" else value for name, value in content.items()}


def read_entry(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Fields of an Entry from a JSON file. Raises SubmissionError for one that cannot be read, or a wrong field."""
    names = ", ".join(field.name for field in fields(Entry))
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SubmissionError(f"{path}: cannot be read as JSON ({error}); write some of {names}") from None
    return entry_of(content, str(path))


def frame_key(frame: Frame) -> tuple[str, int]:
    """Context name and timestamp of a frame of Waymo's. Raises SubmissionError for a frame of another set."""
    if frame.token != token_of(frame.scene_name, frame.timestamp_us):
        raise SubmissionError(
            f"sample {frame.token}: is no frame of Waymo's, whose token is CONTEXT_TIMESTAMP, here "
            f"{token_of(frame.scene_name, frame.timestamp_us)}; read the set with the reader waymo"
        )
    return frame.scene_name, frame.timestamp_us


def objects_of(detections: Iterable[Detections], frames: Sequence[Frame], class_names: Sequence[str]) -> WaymoObjects:
    """Boxes of the BEV frame as Waymo's, in the vehicle (EGO) frame; every frame is among the keys, also without boxes.

    Boxes of a score below MIN_SCORE are left out, sizes are raised to MIN_SIZE_M; both are logged with their counts.

    Raises SubmissionError for a class that Waymo does not have, a frame of another set, a frame without a prediction or
    with two, a prediction without a frame, a label without a class, a box that is not finite (named by sample token).
    """
    if unknown := [name for name in class_names if name not in CLASS_TYPES]:
        raise SubmissionError(
            f"class {unknown[0]!r} is not one of Waymo's; name the model's classes as in {', '.join(CLASS_TYPES)}"
        )
    by_token: dict[str, Detections] = {}
    for found in detections:
        if found.token in by_token:
            raise SubmissionError(f"sample {found.token}: predicted twice; keep one Detections per frame")
        by_token[found.token] = found
    types = np.array([CLASS_TYPES[name] for name in class_names], np.int64)
    keys, boxes, scores, labels, index = [], [np.zeros((0, 7))], [np.zeros(0)], [np.zeros(0, np.int64)], []
    for number, frame in enumerate(frames):
        keys.append(frame_key(frame))
        if frame.token not in by_token:
            raise SubmissionError(f"sample {frame.token}: no prediction; run the model on every frame of the split")
        found = by_token.pop(frame.token)
        own = transform_boxes(frame.ego_from_bev, np.asarray(found.boxes, np.float64)[:, :7])  # [k, 7]
        _check(frame.token, own, found, len(class_names))
        boxes.append(own)
        scores.append(np.asarray(found.scores, np.float64))
        labels.append(np.asarray(found.labels, np.int64))
        index.append(np.full(len(own), number, np.int64))
    if by_token:
        raise SubmissionError(
            f"sample {next(iter(by_token))}: predicted, but not among the split's frames; predict on the same split"
        )
    frame_index = np.concatenate([np.zeros(0, np.int64), *index])
    every = WaymoObjects(
        np.concatenate(boxes),
        types[np.concatenate(labels)],
        np.concatenate(scores).astype(np.float32),
        frame_index,
        keys,
    )
    return as_submitted(every)


def _check(token: str, boxes: np.ndarray, found: Detections, num_classes: int) -> None:
    broken = ~(np.isfinite(boxes).all(1) & np.isfinite(found.scores)) | (boxes[:, 3:6] < 0).any(1)
    if broken.any():
        row = int(np.flatnonzero(broken)[0])
        raise SubmissionError(
            f"sample {token}: predicted box {row} is not finite or of negative size {boxes[row].tolist()}; the "
            "checkpoint has diverged, use an earlier one"
        )
    labels = np.asarray(found.labels)
    if ((labels < 0) | (labels >= num_classes)).any():
        raise SubmissionError(
            f"sample {token}: a predicted label is none of the {num_classes} classes; give the class list that the "
            "model was trained with"
        )


def as_submitted(every: WaymoObjects) -> WaymoObjects:
    """What is written of boxes: scores from MIN_SCORE on, sizes from MIN_SIZE_M on, headings in [-pi, pi)."""
    log = getLogger("drivestack")
    kept = every.where(every.scores >= np.float32(MIN_SCORE))
    if len(kept) < len(every):
        log.info(
            "%d of %d boxes score below %g and are left out, as in official submissions",
            len(every) - len(kept), len(every), MIN_SCORE,
        )  # fmt: skip
    boxes = kept.boxes.copy()
    if thin := int((boxes[:, 3:6] < MIN_SIZE_M).any(1).sum()):
        log.warning("%d boxes have no volume; their sizes are raised to %g m, as officially", thin, MIN_SIZE_M)
    boxes[:, 3:6] = np.maximum(boxes[:, 3:6], MIN_SIZE_M)
    boxes[:, 6] = wrap_angle(boxes[:, 6])
    boxes[boxes[:, 6] >= np.pi, 6] = -np.pi  # rounding
    return WaymoObjects(boxes, kept.types, kept.scores, kept.frame, kept.keys)


def write_submission(
    path: str | os.PathLike[str],
    found: WaymoObjects,
    entry: Entry = NOBODY,
    class_names: Iterable[str] = ("vehicle", "pedestrian", "cyclist"),
    num_shards: int = NUM_SHARDS,
) -> int:
    """Write the .tar.gz of shards part0, part1, ...; a reader sees the old file or the whole new one.

    A frame lies in one shard. More than ``num_shards`` are written where one would exceed MAX_SHARD_BYTES. The same
    boxes give the same bytes. Returns the number of shards.
    """
    parts = encode_objects(found)
    total = sum(map(len, parts))
    limit = min(max(1, -(-total // max(1, num_shards))), MAX_SHARD_BYTES)
    groups: list[list[bytes]] = [[]]
    size = 0
    for part in parts:
        if size and size + len(part) > limit and (len(groups) < num_shards or size + len(part) > MAX_SHARD_BYTES):
            groups.append([])
            size = 0
        groups[-1].append(part)
        size += len(part)
    message = entry.message(class_names)
    with (
        atomic_path(path) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for number, group in enumerate(groups):
            content = encode_submission(message, group)
            if len(content) > MAX_MESSAGE_BYTES:
                raise SubmissionError(
                    f"{path}: a frame has more boxes than a message holds; keep the best of each frame"
                )
            info = tarfile.TarInfo(f"part{number}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return len(groups)


def detections_in(found: WaymoObjects, frames: Iterable[Frame], class_names: Sequence[str]) -> dict[str, Detections]:
    """Boxes in the BEV frame of each of ``frames``, by sample token, best first, for pictures; at rest, as the files
    hold no velocities. Frames without boxes have none of them; boxes of other types than ``class_names`` have no place.

    Raises SubmissionError for a type that is none of ``class_names``.
    """
    labels = {CLASS_TYPES[name]: label for label, name in enumerate(class_names) if name in CLASS_TYPES}
    if strange := sorted(set(found.types.tolist()) - set(labels)):
        raise SubmissionError(
            f"holds type {strange[0]}, which is not among the classes {', '.join(class_names)}; name all the classes"
        )
    rows = {token: index for index, token in enumerate(found.tokens)}
    order = np.lexsort((-found.scores, found.frame))
    start = np.searchsorted(found.frame[order], np.arange(len(found.keys) + 1))
    made = {}
    for frame in frames:
        if (index := rows.get(frame.token)) is None:
            chosen = order[:0]
        else:
            chosen = order[start[index] : start[index + 1]]
        boxes = np.concatenate([found.boxes[chosen], np.zeros((len(chosen), 2))], 1)
        made[frame.token] = Detections(
            frame.token,
            transform_boxes(invert_pose(frame.ego_from_bev), boxes).astype(np.float32),
            found.scores[chosen],
            np.array([labels[kind] for kind in found.types[chosen].tolist()], np.int64),
        )
    return made
