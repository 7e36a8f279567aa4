"""Three kinds of answers, and for each: the submission it becomes, its rules, its scores, and how they read.

    boxes       submission.json    nuScenes detection
    occupancy   occupancy.zip      one npz per sample, which also lie in occupancy/
    lanes       lanes.pkl          OpenLane-V2

These are the names in a folder of submissions; the kind of a file of another name shows in its ending.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

from ..bev.evaluation import nuscenes_metrics as box_metrics
from ..bev.evaluation import nuscenes_official as box_judge
from ..bev.evaluation import nuscenes_rules as box_rules
from ..bev.evaluation.nuscenes_submission import NuScenesSubmission, read_detections
from ..core.answers import OccupancyGrid, SceneAnswer
from ..core.errors import ConfigError, DataError, SubmissionError
from ..core.frames import Frame
from ..data_tools.readers.nuscenes_tables import split_tokens
from ..data_tools.readers.openlane_files import identifier_of
from ..lane_topology.evaluation import evaluate as lane_scores
from ..lane_topology.evaluation import rules as lane_rules
from ..lane_topology.evaluation import submission as lane_files
from ..occupancy.evaluation import evaluate as voxel_scores
from ..occupancy.evaluation import rules as voxel_rules
from ..occupancy.evaluation import submission as voxel_files
from .run import Outcome, Source, labelled_split

Reader = Callable[[Frame], Any]
"""Gives what a submission says about a frame, None where it says nothing."""


class Reference:
    """The split that submissions are compared with; its frames are read once, and only where they are needed."""

    def __init__(self, source: Source, frames: Sequence[Frame] | None = None) -> None:
        self.source = source
        if frames is not None:
            self.frames = list(frames)

    @cached_property
    def frames(self) -> list[Frame]:
        return self.source.read()

    @cached_property
    def tokens(self) -> list[str]:
        if "frames" in self.__dict__ or self.source.info_pickle or self.source.openlane:
            return [frame.token for frame in self.frames]
        return split_tokens(*labelled_split(self.source))

    @property
    def split(self) -> str:
        return self.source.split or "val"


class Kind(Protocol):
    """What is done with one kind of answers."""

    title: str
    file: str
    """Name in a folder of submissions."""
    scores_file: str

    def write(self, path: Path, outcome: Outcome, split: str) -> str:
        """Write the submission; what it holds, in words."""

    def check(self, path: Path, reference: Reference | None) -> list[str]:
        """Every broken rule; without a reference missing and foreign samples cannot be told."""

    def demand(self, reference: Reference) -> None:
        """Raises DataError or ConfigError, naming what is missing, if this kind cannot be scored there."""

    def score(self, path: Path, reference: Reference) -> dict[str, Any]:
        """Raises SubmissionError if the file breaks a rule, DataError if the split has no labels."""

    def table(self, scores: dict[str, Any]) -> list[str]:
        """The scores as lines of text."""

    def reader(self, path: Path, frames: Sequence[Frame], class_names: Sequence[str], split: str) -> Reader:
        """Raises SubmissionError for a file that cannot be read."""


@dataclass(frozen=True)
class Boxes:
    """official: score with nuscenes-devkit instead of our own, equal metric."""

    title: ClassVar[str] = "3D boxes (nuScenes)"
    file: ClassVar[str] = "submission.json"
    scores_file: ClassVar[str] = "metrics_summary.json"
    official: bool = False

    def write(self, path: Path, outcome: Outcome, split: str) -> str:
        found = outcome.detections
        NuScenesSubmission.from_detections(found.values(), outcome.frames, outcome.class_names).write(path)
        return f"{sum(len(own.boxes) for own in found.values())} boxes found"

    def check(self, path: Path, reference: Reference | None) -> list[str]:
        return [str(problem) for problem in box_rules.check_submission(path, reference and reference.tokens)]

    def demand(self, reference: Reference) -> None:
        dataroot, version, split = labelled_split(reference.source)
        if self.official:
            box_judge.require_devkit()
        if not any(frame.annotations is not None and len(frame.annotations) for frame in reference.frames):
            raise DataError(f"split {split!r} of {Path(dataroot) / version} has no annotations; score a labelled split")

    def score(self, path: Path, reference: Reference) -> dict[str, Any]:
        if self.official:
            return box_judge.evaluate_official(path, *labelled_split(reference.source), reference.tokens)
        return box_metrics.evaluate_submission(path, reference.frames)

    def table(self, scores: dict[str, Any]) -> list[str]:
        return box_metrics.table(scores)

    def reader(self, path: Path, frames: Sequence[Frame], class_names: Sequence[str], split: str) -> Reader:
        found = read_detections(path, frames, class_names)
        return lambda frame: found.get(frame.token)


@dataclass(frozen=True)
class Occupancy:
    """num_samples: how many a submission must hold where there is no reference; None: any number."""

    title: ClassVar[str] = "occupancy (Occ3D)"
    file: ClassVar[str] = "occupancy.zip"
    scores_file: ClassVar[str] = "occupancy_scores.json"
    num_samples: int | None = None

    @staticmethod
    def folder(path: Path) -> Path:
        """Where the voxels lie one by one before they are packed."""
        return path.with_suffix("")

    def keep(self, path: Path) -> Callable[[SceneAnswer], SceneAnswer]:
        """For ``engine.predict.predict``: voxels go to disk as they come."""

        def keep(answer: SceneAnswer) -> SceneAnswer:
            voxel_files.write_grid(self.folder(path), answer.occupancy)
            return replace(answer, occupancy=None)

        return keep

    def write(self, path: Path, outcome: Outcome, split: str) -> str:
        voxel_files.pack(self.folder(path), path, [frame.token for frame in outcome.frames])
        return f"voxels, also in {self.folder(path)}/"

    def check(self, path: Path, reference: Reference | None) -> list[str]:
        return voxel_rules.check_submission(path, reference and reference.tokens, num_samples=self.num_samples)

    def demand(self, reference: Reference) -> None:
        if not any(frame.occupancy_path for frame in reference.frames):
            raise DataError(
                f"none of the {len(reference.frames)} frames has voxel labels (gts/<scene>/<sample>/labels.npz); "
                "score a split that is labelled"
            )

    def score(self, path: Path, reference: Reference) -> dict[str, Any]:
        _refuse(path, self.check(path, reference))
        return voxel_scores.evaluate(reference.frames, voxel_files.Predictions(path).read)

    def table(self, scores: dict[str, Any]) -> list[str]:
        return voxel_scores.table(scores)

    def reader(self, path: Path, frames: Sequence[Frame], class_names: Sequence[str], split: str) -> Reader:
        found = voxel_files.Predictions(path)
        held = set(found.tokens)
        return lambda frame: OccupancyGrid(frame.token, found.read(frame.token)) if frame.token in held else None


@dataclass(frozen=True)
class Lanes:
    """team, half: of the file to write; max_bytes: the largest file that the server takes; version: of the metric."""

    title: ClassVar[str] = "lanes and traffic elements (OpenLane-V2)"
    file: ClassVar[str] = "lanes.pkl"
    scores_file: ClassVar[str] = "lane_scores.json"
    team: lane_files.Team = lane_files.NOBODY
    half: bool = False
    max_bytes: int | None = None
    version: lane_scores.Version = "v2.1"

    def write(self, path: Path, outcome: Outcome, split: str) -> str:
        graphs = {identifier_of(frame, split): outcome.answers[frame.token].lanes for frame in outcome.frames}
        lane_files.write_submission(path, graphs, self.team, self.half)
        unnamed = "; it names no team yet (--team)" if self.team == lane_files.NOBODY else ""
        return f"{sum(len(graph.lane_scores) for graph in graphs.values())} lanes found{unnamed}"

    def check(self, path: Path, reference: Reference | None) -> list[str]:
        expected = None if reference is None else self._identifiers(reference).values()
        return lane_rules.check_submission(path, expected, self.max_bytes)

    def _identifiers(self, reference: Reference) -> dict[str, lane_files.Identifier]:
        """By sample token."""
        return {frame.token: identifier_of(frame, reference.split) for frame in reference.frames}

    def demand(self, reference: Reference) -> None:
        lane_scores.check_labels(reference.frames)

    def score(self, path: Path, reference: Reference) -> dict[str, Any]:
        _refuse(path, self.check(path, reference))
        identifiers, found = self._identifiers(reference), lane_files.read_predictions(path)
        return lane_scores.evaluate(reference.frames, lambda token: found[identifiers[token]], self.version)

    def table(self, scores: dict[str, Any]) -> list[str]:
        return lane_scores.table(scores)

    def reader(self, path: Path, frames: Sequence[Frame], class_names: Sequence[str], split: str) -> Reader:
        found = lane_files.read_predictions(path)
        return lambda frame: found.get(identifier_of(frame, split))


KINDS: dict[str, type[Kind]] = {"boxes": Boxes, "occupancy": Occupancy, "lanes": Lanes}
"""By task, in the order in which they are told."""
ENDINGS = {".json": "boxes", ".npz": "occupancy", ".zip": "occupancy", ".pkl": "lanes", ".pickle": "lanes"}


def _refuse(path: Path, problems: Sequence[str]) -> None:
    if problems:
        more = f" (and {len(problems) - 1} more; see `drivestack check-submission`)" if len(problems) > 1 else ""
        raise SubmissionError(f"{path}: {problems[0]}{more}")


def in_folder(folder: Path, tasks: Sequence[str]) -> dict[str, Path]:
    """The files of a folder of submissions."""
    return {task: folder / KINDS[task].file for task in tasks}


def places(out: str | Path, tasks: Sequence[str]) -> dict[str, Path]:
    """Where the submissions of tasks go: one file, if ``out`` ends like one, or the files of a folder.

    Raises ConfigError for a file where several are to be written, or one of another kind.
    """
    out = Path(out)
    kind = None if out.is_dir() else ENDINGS.get(out.suffix)
    if kind is None:
        return in_folder(out, tasks)
    if list(tasks) != [kind] or out.suffix == ".npz":
        raise ConfigError(
            f"{out} names one file of {kind}, but the answers are {', '.join(tasks)}: name a folder, or choose with "
            "--tasks"
        )
    return {kind: out}


def find(path: str | Path, tasks: Sequence[str] = ()) -> dict[str, Path]:
    """The submissions that a file or folder is or holds, by task; ``tasks``: those wanted, default what is there.

    Raises SubmissionError if it is none, or a folder without one that is wanted.
    """
    path = Path(path)
    if not path.is_dir():
        task = tasks[0] if len(tasks) == 1 else ENDINGS.get(path.suffix)
        if task is None or (tasks and task not in tasks):
            known = ", ".join(kind.file for kind in KINDS.values())
            raise SubmissionError(f"{path}: say what it holds with --tasks, or name it like {known}")
        return {task: path}
    found = {task: file for task, file in in_folder(path, list(KINDS)).items() if file.exists()}
    if "occupancy" not in found and (path / "occupancy").is_dir():
        found["occupancy"] = path / "occupancy"
    if not found and (list(tasks) == ["occupancy"] or any(path.glob("*.npz"))):
        found["occupancy"] = path
    if missing := [task for task in tasks if task not in found] or (not found and list(KINDS)):
        names = ", ".join(KINDS[task].file for task in missing)
        raise SubmissionError(f"{path}: holds no {names}; write it with `drivestack predict`, or name the file itself")
    return {task: found[task] for task in KINDS if task in found and (not tasks or task in tasks)}


def answer_reader(
    kinds: dict[str, Kind], paths: dict[str, Path], frames: Sequence[Frame], class_names: Sequence[str], split: str
) -> Callable[[Frame], SceneAnswer]:
    """Gives all that submissions say about a frame; voxels are read one frame at a time."""
    readers = {task: kinds[task].reader(path, frames, class_names, split) for task, path in paths.items()}
    return lambda frame: SceneAnswer(frame.token, **{task: read(frame) for task, read in readers.items()})
