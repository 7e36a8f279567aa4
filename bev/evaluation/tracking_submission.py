"""nuScenes tracking submissions: a type, its writer and reader; the rules are in tracking_rules.py."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...core.errors import SubmissionError
from ...core.files import write_json
from .nuscenes_boxes import ScoredBoxes, boxes_of_entries
from .nuscenes_submission import CAMERA_META
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


def read_tracks(
    path: str | os.PathLike[str], expected_tokens: Iterable[str] | None = None
) -> dict[str, TrackedBoxes]:
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
