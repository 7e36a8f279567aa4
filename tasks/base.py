"""What every task does with its answers: write, check, score, read back; and what it does that with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

from ..core.answers import Detections, SceneAnswer
from ..core.errors import SubmissionError
from ..core.frames import Frame
from ..data_tools.readers.registry import DataSource

Reader = Callable[[Frame], Any]
"""Gives what a submission says about a frame, None where it says nothing."""


@dataclass(frozen=True)
class Predictions:
    """What a model answered on a list of frames."""

    frames: list[Frame]
    answers: dict[str, SceneAnswer]
    """By sample token, without what was not kept in memory."""
    class_names: list[str]
    """Of the boxes' labels."""
    times_s: dict[str, float]

    @property
    def detections(self) -> dict[str, Detections]:
        """The boxes, by sample token."""
        return {token: answer.boxes for token, answer in self.answers.items() if answer.boxes is not None}


class GroundTruth:
    """The split that submissions are compared with; its frames are read once, and only where they are needed."""

    def __init__(self, source: DataSource, frames: Sequence[Frame] | None = None) -> None:
        self.source = source
        if frames is not None:
            self.frames = list(frames)

    @cached_property
    def frames(self) -> list[Frame]:
        return self.source.read()

    @cached_property
    def tokens(self) -> list[str]:
        return [frame.token for frame in self.frames]

    @property
    def split(self) -> str:
        return self.source.split


class Task(Protocol):
    """What is done with one kind of answer."""

    title: ClassVar[str]
    file: ClassVar[str]
    """Name in a folder of submissions."""
    scores_file: ClassVar[str]

    def write(self, path: Path, predictions: Predictions, split: str) -> str:
        """Write the submission; what it holds, in words."""

    def check(self, path: Path, truth: GroundTruth | None) -> list[str]:
        """Every broken rule; without a ground truth missing and foreign samples are not reported."""

    def demand(self, truth: GroundTruth) -> None:
        """Raises DataError or ConfigError, naming what is missing, if this task cannot be scored there."""

    def score(self, path: Path, truth: GroundTruth, progress: bool = True) -> dict[str, Any]:
        """Scores of the submission; ``progress`` shows how far it is where that takes long.

        Raises SubmissionError if the file breaks a rule, DataError if the split has no labels.
        """

    def table(self, scores: dict[str, Any]) -> list[str]:
        """The scores as lines of text."""

    def summary(self, scores: dict[str, Any]) -> dict[str, float]:
        """The few numbers that stand for the task, such as NDS: for logs and for choosing the best checkpoint."""

    def reader(self, path: Path, frames: Sequence[Frame], class_names: Sequence[str], split: str) -> Reader:
        """Raises SubmissionError for a file that cannot be read."""


def refuse(path: Path, problems: Sequence[str]) -> None:
    """Raises SubmissionError naming the first of the problems, if there are any."""
    if problems:
        more = f" (and {len(problems) - 1} more; see `drivestack check-submission`)" if len(problems) > 1 else ""
        raise SubmissionError(f"{path}: {problems[0]}{more}")
