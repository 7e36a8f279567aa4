"""nuScenes tracking submissions: a type, its writer and reader; the rules are in tracking_rules.py."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.answers import NO_TRACK, Detections
from ...core.errors import SubmissionError
from ...core.files import write_json
from ...core.frames import Frame
from .linking import LinkSettings, link_boxes
from .nuscenes_boxes import ScoredBoxes, boxes_of_entries
from .nuscenes_submission import CAMERA_META, CLASS_RANGE_M, OTHER_RANGE_M, bev_detections, submitted_boxes
from .tracking_rules import TRACKING_CLASSES, check_tracks


@dataclass(frozen=True)
class TrackedBoxes:
    """The boxes of tracks in one sample."""

    boxes: ScoredBoxes
    ids: list[str]
    """Name of the track of each box."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class TrackingSubmission:
    """Results of a whole split: boxes of tracks in the global frame by sample token, and which inputs made them."""

    results: dict[str, list[dict[str, Any]]]
    meta: dict[str, bool] = field(default_factory=lambda: dict(CAMERA_META))

    @classmethod
    def of_detections(
        cls,
        results: Mapping[str, Iterable[Mapping[str, Any]]],
        ids: Mapping[str, Iterable[str | None]],
        meta: Mapping[str, bool] = CAMERA_META,
    ) -> TrackingSubmission:
        """From the entries of a detection submission (nuscenes_submission.py) and the track of each, None: no track.

        Boxes of classes that are not tracked are left out. A track has one class: that of most of its boxes (the sum
        of their scores decides between equals), which its other boxes take over.
        """
        kept = {
            token: [
                (box, own)
                for box, own in zip(boxes, ids[token], strict=True)
                if own is not None and box["detection_name"] in TRACKING_CLASSES
            ]
            for token, boxes in results.items()
        }
        votes: dict[str, dict[str, tuple[int, float]]] = {}
        for pairs in kept.values():
            for box, own in pairs:
                count, total = votes.setdefault(own, {}).get(box["detection_name"], (0, 0.0))
                votes[own][box["detection_name"]] = count + 1, total + box["detection_score"]
        names = {own: max(sorted(held), key=lambda name: held[name]) for own, held in votes.items()}
        return cls({token: [_entry(box, own, names[own]) for box, own in pairs] for token, pairs in kept.items()},
                   dict(meta))  # fmt: skip

    @classmethod
    def from_detections(
        cls,
        detections: Iterable[Detections],
        frames: Sequence[Frame],
        class_names: Sequence[str],
        settings: LinkSettings | None = None,
        meta: Mapping[str, bool] = CAMERA_META,
    ) -> TrackingSubmission:
        """Boxes of the BEV frame with their ``track_ids``; where a model gives none, they are linked (linking.py).

        Classes that are not tracked are left out, whatever they are. Raises what NuScenesSubmission.from_detections
        does otherwise, and SubmissionError where only some frames have ids.
        """
        every = {found.token: found for found in detections}
        range_m = {**dict.fromkeys(class_names, OTHER_RANGE_M), **CLASS_RANGE_M}
        made = submitted_boxes(every.values(), frames, class_names, range_m)
        given = {token: every[token].track_ids for token in made}
        if without := [token for token, own in given.items() if own is None]:
            if len(without) < len(given):
                raise SubmissionError(
                    f"sample {without[0]}: has no track ids, but others have; give them to all or none"
                )
            return cls.linked({token: entries for token, (entries, _) in made.items()}, frames, settings, meta)
        ids = {token: own[made[token][1]] for token, own in given.items() if own is not None}
        return cls.of_ids({token: entries for token, (entries, _) in made.items()}, ids, frames, meta)

    @classmethod
    def linked(
        cls,
        results: Mapping[str, Sequence[Mapping[str, Any]]],
        frames: Sequence[Frame],
        settings: LinkSettings | None = None,
        meta: Mapping[str, bool] = CAMERA_META,
    ) -> TrackingSubmission:
        """From the entries of a detection submission, linked over the keyframes of each scene."""
        boxes = {token: boxes_of_entries(entries) for token, entries in results.items()}
        return cls.of_ids(results, link_boxes(frames, boxes, settings), frames, meta)

    @classmethod
    def of_ids(
        cls,
        results: Mapping[str, Sequence[Mapping[str, Any]]],
        ids: Mapping[str, NDArray[np.int64]],
        frames: Sequence[Frame],
        meta: Mapping[str, bool] = CAMERA_META,
    ) -> TrackingSubmission:
        """From the entries of a detection submission and the number of each one's track in its scene."""
        scenes = {frame.token: frame.scene_token for frame in frames}
        names = {
            token: [None if k == NO_TRACK else f"{scenes[token]}-{k}" for k in own.tolist()]
            for token, own in ids.items()
        }
        return cls.of_detections(results, names, meta)

    @property
    def num_tracks(self) -> int:
        return len({box["tracking_id"] for boxes in self.results.values() for box in boxes})

    @property
    def num_boxes(self) -> int:
        return sum(map(len, self.results.values()))

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the submission JSON; a reader sees the old file or the whole new one."""
        write_json(path, {"meta": self.meta, "results": self.results})


def _entry(box: Mapping[str, Any], track: str, name: str) -> dict[str, Any]:
    same = {key: box[key] for key in ("sample_token", "translation", "size", "rotation", "velocity")}
    return same | {"tracking_id": track, "tracking_name": name, "tracking_score": box["detection_score"]}


def read_tracks(path: str | os.PathLike[str], expected_tokens: Iterable[str] | None = None) -> dict[str, TrackedBoxes]:
    """Boxes of a tracking submission by sample token, in the order of the file.

    Raises SubmissionError naming the first broken rule, DataError if the file cannot be opened.
    """
    if problems := check_tracks(path, expected_tokens):
        more = f" (and {len(problems) - 1} more; see `drivestack check-submission`)" if len(problems) > 1 else ""
        raise SubmissionError(f"{path}: {problems[0]}{more}")
    results = json.loads(Path(path).read_text(encoding="utf-8"))["results"]
    return {
        token: TrackedBoxes(boxes_of_entries(boxes, "tracking"), [box["tracking_id"] for box in boxes])
        for token, boxes in results.items()
    }


def tracked_detections(
    path: str | os.PathLike[str], frames: Iterable[Frame], class_names: Sequence[str]
) -> dict[str, Detections]:
    """Boxes of a tracking submission with their tracks, numbered in the order of the file, in the BEV frame of each of
    ``frames``, by sample token, for pictures; frames that the file does not hold are left out.

    Raises SubmissionError if the file breaks a rule, or holds a class that is none of ``class_names``.
    """
    results = read_tracks(path)
    numbers: dict[str, int] = {}
    for tracked in results.values():
        for track in tracked.ids:
            numbers.setdefault(track, len(numbers))
    found = {}
    for frame in frames:
        if (own := results.get(frame.token)) is not None:
            ids = np.array([numbers[track] for track in own.ids], dtype=np.int64)
            found[frame.token] = replace(bev_detections(own.boxes, frame, class_names, path), track_ids=ids)
    return found
