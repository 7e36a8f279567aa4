"""Tracks: nuScenes tracking submissions and scores; boxes of one object have one id in all keyframes of a scene.

They are made of the boxes: with the model's ids where it gives any, else linked over time (bev/evaluation/linking.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..bev.evaluation import tracking_metrics
from ..bev.evaluation.linking import LinkSettings
from ..bev.evaluation.oddities import all_far_away, oddities
from ..bev.evaluation.tracking_rules import TRACKING_CLASSES, check_tracks
from ..bev.evaluation.tracking_submission import TrackingSubmission, read_tracks, tracked_detections
from ..core.answers import NO_TRACK, Detections
from ..core.errors import NoLabelsError, SubmissionError
from ..core.frames import Frame
from .base import GroundTruth, Predictions, Reader, all_there, foreign, refuse


def untracked(class_names: Sequence[str], benchmark: str = "nuscenes") -> str:
    """Why there are no tracks of boxes of these classes; empty where there are."""
    if benchmark != "nuscenes":
        return f"tracks are of nuScenes' score, and the config's benchmark is {benchmark}: leave tracks out"
    if not set(class_names) & set(TRACKING_CLASSES):
        known, own = ", ".join(TRACKING_CLASSES), ", ".join(class_names)
        return f"nuScenes tracks {known}, and the model's classes are {own}: leave tracks out"
    return ""


@dataclass(frozen=True)
class Tracks:
    """settings: how boxes are linked where the model gives no ids."""

    title: ClassVar[str] = "tracks (nuScenes)"
    file: ClassVar[str] = "tracks.json"
    scores_file: ClassVar[str] = "tracks_summary.json"
    summary_names: ClassVar[tuple[str, ...]] = ("AMOTA", "AMOTP", "IDS")
    settings: LinkSettings | None = None

    def write(self, path: Path, predictions: Predictions, split: str) -> str:
        found, names = predictions.detections, predictions.class_names
        if refused := untracked(names):
            raise SubmissionError(refused)
        made = TrackingSubmission.from_detections(found.values(), predictions.frames, names, self.settings)
        made.write(path)
        how = "" if all(own.track_ids is not None for own in found.values()) else ", linked: the model gives no ids"
        return f"{made.num_boxes} boxes of {made.num_tracks} tracks{how}"

    def check(self, path: Path, truth: GroundTruth | None) -> list[str]:
        problems = [str(problem) for problem in check_tracks(path, None if truth is None else truth.tokens)]
        if truth is not None and not problems and (far := all_far_away(self._boxes(path), truth.frames)):
            return [far]
        return problems

    @staticmethod
    def _boxes(path: Path) -> dict[str, Any]:
        return {token: own.boxes for token, own in read_tracks(path).items()}

    def compared(self, truth: GroundTruth) -> str:
        return all_there(truth)

    def oddities(self, path: Path, truth: GroundTruth | None) -> list[str]:
        return oddities(self._boxes(path), [] if truth is None else truth.frames)

    def demand_names(self, truth: GroundTruth) -> None:
        """Nothing: samples go by their tokens, which readers hold to be distinct."""

    def demand(self, truth: GroundTruth) -> None:
        notes = [frame.annotations for frame in truth.frames if frame.annotations is not None]
        instances = {
            token for own in notes for token, name in zip(own.instance_tokens, own.names) if name in TRACKING_CLASSES
        }
        if not instances:
            raise NoLabelsError(
                f"{truth.source}: no label is of the classes that are tracked ({', '.join(TRACKING_CLASSES)})"
            )
        if instances == {""}:
            raise NoLabelsError(
                f"{truth.source}: no label states its instance, so that nobody can tell which objects are the same in "
                "two keyframes; leave tracks out"
            )

    def score(self, path: Path, truth: GroundTruth, progress: bool = True) -> dict[str, Any]:
        tracks = read_tracks(path, truth.tokens)
        far = all_far_away({token: own.boxes for token, own in tracks.items()}, truth.frames)
        refuse(path, [far] if far else [])
        return tracking_metrics.evaluate_tracks(truth.frames, tracks)

    def drawing_problems(self, path: Path, truth: GroundTruth, frames: Sequence[Frame]) -> list[str]:
        return foreign(read_tracks(path), truth.tokens)

    def table(self, scores: dict[str, Any]) -> list[str]:
        return tracking_metrics.table(scores)

    def summary(self, scores: dict[str, Any]) -> dict[str, float]:
        return {"AMOTA": scores["amota"], "AMOTP": scores["amotp"], "IDS": scores["ids"]}

    def reader(self, path: Path, frames: Sequence[Frame], class_names: Sequence[str], split: str) -> Reader:
        found = tracked_detections(path, frames, class_names)
        return lambda frame: found.get(frame.token)


def with_tracks(boxes: Detections | None, tracks: Detections | None, class_names: Sequence[str]) -> Detections | None:
    """The boxes of two submissions of one model in one picture: tracks, and boxes of classes that are not tracked."""
    if boxes is None or tracks is None:
        return tracks or boxes
    others = np.array([class_names[label] not in TRACKING_CLASSES for label in boxes.labels], dtype=bool)
    parts = [(tracks.boxes, boxes.boxes[others]), (tracks.scores, boxes.scores[others])]
    joined = [np.concatenate(part) for part in parts]
    labels = np.concatenate([tracks.labels, boxes.labels[others]])
    ids = np.concatenate([tracks.track_ids, np.full(int(others.sum()), NO_TRACK)])
    order = np.argsort(-joined[1], kind="stable")
    return Detections(boxes.token, joined[0][order], joined[1][order], labels[order], ids[order])
