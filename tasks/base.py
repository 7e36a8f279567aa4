"""What every task does with its answers: write, check, score, read back; and what it does that with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from logging import getLogger
from pathlib import Path
from typing import Any, ClassVar, Protocol

from ..core.answers import Detections, SceneAnswer
from ..core.errors import NoLabelsError, SubmissionError
from ..core.frames import Frame
from ..core.ids import ids_apart
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
    summary_names: ClassVar[tuple[str, ...]]

    def demand_names(self, truth: GroundTruth) -> None:
        """Raises DataError, naming them, where two samples of the split would be one in the submission."""

    def write(self, path: Path, predictions: Predictions, split: str) -> str:
        """Write the submission; what it holds, in words."""

    def check(self, path: Path, truth: GroundTruth | None) -> list[str]:
        """Every broken rule; without a ground truth missing and foreign samples are not reported."""

    def compared(self, truth: GroundTruth) -> str:
        """What of the split a valid submission is known to hold, in words."""

    def oddities(self, path: Path, truth: GroundTruth | None) -> list[str]:
        """What a valid submission says that the physical world does not have; it is scored all the same."""

    def demand(self, truth: GroundTruth) -> None:
        """Raises DataError or ConfigError, naming what is missing or unusable, if this task cannot be scored there."""

    def score(self, path: Path, truth: GroundTruth, progress: bool = True) -> dict[str, Any]:
        """Scores of the submission; ``progress`` shows how far it is where that takes long.

        Raises SubmissionError if the file breaks a rule, DataError if the split has no labels.
        """

    def table(self, scores: dict[str, Any]) -> list[str]:
        """The scores as lines of text."""

    def summary(self, scores: dict[str, Any]) -> dict[str, float]:
        """The few numbers that stand for the task, such as NDS: for logs and for choosing the best checkpoint.

        Their names are ``summary_names``.
        """

    def drawing_problems(self, path: Path, truth: GroundTruth, frames: Sequence[Frame]) -> list[str]:
        """What keeps a submission from being drawn: broken rules, or no sample of ``truth``, the split.

        Unlike in ``check`` samples may be missing or of another split. frames: those that are drawn; voxels are looked
        at there alone. Raises SubmissionError where the file as a whole cannot be read.
        """

    def reader(self, path: Path, frames: Sequence[Frame], class_names: Sequence[str], split: str) -> Reader:
        """Raises SubmissionError for a file that cannot be read."""


def labelled(chosen: Mapping[str, Task], truth: GroundTruth) -> dict[str, Task]:
    """The tasks that the data have labels for; what is left out is logged with the reason.

    Raises NoLabelsError where that is every task, and whatever else ``demand`` does: labels that are there, but cannot
    be used, are an error.
    """
    usable, reasons = {}, {}
    for name, task in chosen.items():
        try:
            task.demand(truth)
        except NoLabelsError as error:
            reasons[name] = str(error)
        else:
            usable[name] = task
    if not usable:
        raise NoLabelsError(f"the data have labels for none of {', '.join(chosen)}: {next(iter(reasons.values()), '')}")
    for name, reason in reasons.items():
        getLogger("drivestack").info("%s are not scored: %s", name, reason)
    return usable


def all_there(truth: GroundTruth) -> str:
    """``compared`` of a task whose files name every sample."""
    return f"all {len(truth.tokens)} samples are there"


def foreign(found: Iterable[str], expected: Iterable[str]) -> list[str]:
    """A line where no sample of a submission is of the split: nothing of it could be drawn. A few are reported.

    That of all of nuScenes' val may be drawn on mini_val.
    """
    found, expected = list(found), set(expected)
    if apart := ids_apart(found, expected):
        return [apart]
    if strange := [token for token in found if token not in expected]:
        getLogger("drivestack").warning(
            "%d of its %d samples are not of the split, such as %s; they are not drawn",
            len(strange),
            len(found),
            strange[0],
        )
    return []


def refuse(path: Path, problems: Sequence[str]) -> None:
    """Raises SubmissionError naming the first of the problems, if there are any."""
    if problems:
        more = f" (and {len(problems) - 1} more; see `drivestack check-submission`)" if len(problems) > 1 else ""
        raise SubmissionError(f"{path}: {problems[0]}{more}")
