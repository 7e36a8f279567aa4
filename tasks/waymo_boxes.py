"""3D boxes on Waymo: submissions to the camera-only challenge, LET-3D and standard scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from ..bev.evaluation import waymo_rules, waymo_scores
from ..bev.evaluation.waymo_submission import (
    CLASS_TYPES,
    MAX_METHOD_LETTERS,
    NOBODY,
    Entry,
    detections_in,
    entry_of,
    frame_key,
    objects_of,
    write_submission,
)
from ..core.errors import ConfigError, NoLabelsError, SubmissionError
from ..core.frames import Frame
from .base import GroundTruth, Predictions, Reader, foreign, refuse


@dataclass(frozen=True)
class WaymoBoxes:
    """class_names: those of the model; default: Waymo's that are ranked. entry: who submits what, fields of Entry.

    Raises ConfigError for class names that are not Waymo's, and a method's name that is too long.
    """

    title: ClassVar[str] = "3D boxes (Waymo, camera only)"
    file: ClassVar[str] = "waymo_submission.tar.gz"
    scores_file: ClassVar[str] = "waymo_scores.json"
    summary_names: ClassVar[tuple[str, ...]] = ("LET-3D-mAPL", "LET-3D-mAP", "LET-3D-mAPH", "mAP", "mAPH")
    class_names: Sequence[str] = ()
    entry: Mapping[str, Any] = field(default_factory=dict)
    _answered: dict[str, frozenset[str]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """By path of what this object has written: the frames that were predicted, also those without a box."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.class_names if name not in CLASS_TYPES]:
            raise ConfigError(
                f"benchmark waymo: class {unknown[0]!r} is not one of Waymo's ({', '.join(CLASS_TYPES)}); name the "
                "config's classes so, or leave benchmark out"
            )
        if len(self._entry.method) > MAX_METHOD_LETTERS:
            raise ConfigError(
                f"waymo entry: method {self._entry.method!r} has more than {MAX_METHOD_LETTERS} characters"
            )

    @property
    def _entry(self) -> Entry:
        try:
            return replace(NOBODY, **entry_of(self.entry, "waymo entry"))
        except SubmissionError as error:
            raise ConfigError(str(error)) from None

    def write(self, path: Path, predictions: Predictions, split: str) -> str:
        found = objects_of(predictions.detections.values(), predictions.frames, predictions.class_names)
        shards = write_submission(path, found, self._entry, predictions.class_names)
        self._answered[str(path.absolute())] = frozenset(frame.token for frame in predictions.frames)
        return f"{len(found)} boxes in {shards} shards"

    def check(self, path: Path, truth: GroundTruth | None) -> list[str]:
        frames = None if truth is None else truth.frames
        return [str(problem) for problem in waymo_rules.check_submission(path, frames)]

    def compared(self, truth: GroundTruth) -> str:
        segments = len({frame.scene_name for frame in truth.frames})
        return (
            f"no frame is foreign, and each of the {segments} segments has boxes; which of the {len(truth.tokens)} "
            "frames were predicted is not stated in a file of boxes"
        )

    def oddities(self, path: Path, truth: GroundTruth | None) -> list[str]:
        return waymo_rules.oddities(path, [] if truth is None else truth.frames)

    def demand_names(self, truth: GroundTruth) -> None:
        for frame in truth.frames:
            frame_key(frame)

    def demand(self, truth: GroundTruth) -> None:
        self.demand_names(truth)
        notes = [frame.annotations for frame in truth.frames]
        if not any(own is not None and len(own) for own in notes):
            raise NoLabelsError(f"{truth.source} has no annotations; score a labelled split")
        if bare := [frame.token for frame in truth.frames if frame.annotations is None]:
            raise NoLabelsError(f"{truth.source}: {len(bare)} frames have no annotations, such as {bare[0]}")
        names = {name for own in notes if own is not None for name in own.names}
        if not names & set(CLASS_TYPES):
            found = ", ".join(sorted(names - {""})[:20]) or "no class"
            raise NoLabelsError(
                f"{truth.source}: its labels are of {found}, none of Waymo's ({', '.join(CLASS_TYPES)})"
            )
        if not len(waymo_scores.ground_truths(truth.frames)):
            raise NoLabelsError(f"{truth.source}: no label counts: all lack points of the top LiDAR, or a camera")

    def score(self, path: Path, truth: GroundTruth, progress: bool = True) -> dict[str, Any]:
        answered = self._answered.get(str(path.absolute()), frozenset())
        found = waymo_rules.read_submission(path, truth.frames, answered)
        return waymo_scores.evaluate(truth.frames, found)

    def table(self, scores: dict[str, Any]) -> list[str]:
        return waymo_scores.table(scores)

    def summary(self, scores: dict[str, Any]) -> dict[str, float]:
        let, standard = scores["let"], scores["standard"]
        return {
            "LET-3D-mAPL": let["mapl"],
            "LET-3D-mAP": let["map"],
            "LET-3D-mAPH": let["maph"],
            "mAP": standard["map"],
            "mAPH": standard["maph"],
        }

    def drawing_problems(self, path: Path, truth: GroundTruth, frames: Sequence[Frame]) -> list[str]:
        found = waymo_rules.read_submission(path)
        return foreign(dict.fromkeys(found.tokens[i] for i in found.frame.tolist()), truth.tokens)

    def reader(self, path: Path, frames: Sequence[Frame], class_names: Sequence[str], split: str) -> Reader:
        read = waymo_rules.read_submission(path)
        try:
            found = detections_in(read, frames, class_names)
        except SubmissionError as error:
            refuse(path, [str(error)])
        return lambda frame: found.get(frame.token)
