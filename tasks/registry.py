"""The tasks by name, and the files of their submissions.

    boxes       submission.json    nuScenes detection; Waymo: waymo_submission.tar.gz, Argoverse 2: detections.feather
    occupancy   occupancy.zip      one npz per sample, which also lie in occupancy/
    lanes       lanes.pkl          OpenLane-V2
    tracks      tracks.json        nuScenes tracking

These are the names in a folder of submissions; the task of a file of another name shows in its ending.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..bev.evaluation.waymo_rules import is_waymo_file
from ..core.answers import SceneAnswer
from ..core.errors import ConfigError, SubmissionError
from ..core.file_kinds import kind_of_file
from ..core.frames import Frame
from .argoverse2_boxes import Argoverse2Boxes
from .base import Task
from .boxes import Boxes
from .lanes import Lanes
from .occupancy import Occupancy
from .tracks import Tracks, untracked, with_tracks
from .waymo_boxes import WaymoBoxes

if TYPE_CHECKING:
    from ..bev.protocol import PerceptionModel

TASKS: dict[str, type[Task]] = {"boxes": Boxes, "occupancy": Occupancy, "lanes": Lanes, "tracks": Tracks}
"""By name, in the order in which they are reported."""
MADE_OF = {"tracks": "boxes"}
"""The answer of a model that a task looks at, where it has another name."""
ENDINGS = {
    ".json": "boxes", ".gz": "boxes", ".tgz": "boxes", ".bin": "boxes", ".pb": "boxes",
    ".feather": "boxes",
    ".npz": "occupancy", ".zip": "occupancy", ".pkl": "lanes", ".pickle": "lanes",
}  # fmt: skip
BENCHMARKS: dict[str, type[Task]] = {"nuscenes": Boxes, "waymo": WaymoBoxes, "argoverse2": Argoverse2Boxes}
"""Of boxes: whose submission and scores a config's ``benchmark`` names, or a file is."""


def asked_of_model(tasks: Iterable[str]) -> tuple[str, ...]:
    """What a model must answer for these tasks."""
    return tuple(dict.fromkeys(MADE_OF.get(task, task) for task in tasks))


def chosen_of_model(
    model: PerceptionModel, tasks: Sequence[str] | None, class_names: Sequence[str], benchmark: str = "nuscenes"
) -> tuple[str, ...]:
    """``tasks`` in our order; None: all that the model answers, tracks where it gives ids by itself and its boxes, of
    ``class_names`` for ``benchmark``, make tracks.

    Raises ConfigError for one that the model does not answer.
    """
    refused = untracked(class_names, benchmark)
    if tasks is None:
        if model.gives_tracks and refused:
            logging.getLogger("drivestack").info(refused.replace("leave tracks out", "tracks are left out"))
        return (*model.tasks, *(["tracks"] if model.gives_tracks and not refused else []))
    if "tracks" in tasks and refused:
        raise ConfigError(refused)
    model.asked(asked_of_model(tasks))
    return tuple(task for task in TASKS if task in tasks)


def _files_of(task: str) -> str:
    """The files of a task's submissions, in words."""
    kinds = BENCHMARKS.values() if task == "boxes" else [TASKS[task]]
    return " or ".join(kind.file for kind in kinds)


KNOWN_FILES = ", ".join(map(_files_of, TASKS))

_LOOKED_AT = 1 << 20  # bytes of a file, to see what it is

_FOREIGN = {
    ".tfrecord": "Waymo: data, not predictions",
    ".parquet": "Waymo 2.0 or Argoverse 2",
}
_OTHER_ENDINGS = {
    *_FOREIGN, ".txt", ".csv", ".jsonl", ".yaml", ".yml", ".npy", ".pth", ".pt", ".safetensors", ".tar",
    ".png", ".jpg", ".gif", ".mp4", ".h5", ".7z", ".rar",
}  # fmt: skip


def benchmark_of(path: Path) -> str:
    """The one of BENCHMARKS that a submission of boxes is of, by its name."""
    if path.suffix.lower() == ".feather":
        return "argoverse2"
    return "waymo" if is_waymo_file(path) else "nuscenes"


def in_folder(folder: Path, tasks: Sequence[str], chosen: Mapping[str, Task | type[Task]] = TASKS) -> dict[str, Path]:
    """The files of a folder of submissions, of the chosen benchmarks."""
    return {task: folder / chosen[task].file for task in tasks}


def places(out: str | Path, tasks: Sequence[str], chosen: Mapping[str, Task | type[Task]] = TASKS) -> dict[str, Path]:
    """Where the submissions of tasks go: one file, if ``out`` ends like one, or the files of a folder.

    chosen: by task, for the benchmark's file names. Raises ConfigError for a file where several are to be written, or
    one of another kind.
    """
    out = Path(out)
    kind = None if out.is_dir() else ENDINGS.get(out.suffix)
    if list(tasks) == ["tracks"] and out.suffix == ".json":
        kind = "tracks"
    if kind is None and not out.is_dir() and out.suffix.lower() in _OTHER_ENDINGS:
        known = ".json, .tar.gz and .feather boxes, .zip occupancy, .pkl lanes"
        raise ConfigError(f"{out} ends like a file of none of the tasks ({known}); name a folder, or one of these")
    if kind is None:
        return in_folder(out, tasks, chosen)
    if kind == "boxes" and benchmark_of(out) != benchmark_of(Path(chosen["boxes"].file)):
        raise ConfigError(f"{out} does not end like {chosen['boxes'].file}, which the config's benchmark takes")
    if list(tasks) != [kind] or out.suffix == ".npz":
        raise ConfigError(
            f"{out} names one file of {kind}, but the answers are {', '.join(tasks)}: name a folder, or choose with "
            "--tasks"
        )
    return {kind: out}


def find(path: str | Path, tasks: Sequence[str] = ()) -> dict[str, Path]:
    """The submissions in a file or folder, by task; ``tasks``: those wanted, default all that are there.

    Raises SubmissionError if it is none, or a folder without one that is wanted.
    """
    path = Path(path)
    if not path.is_dir():
        task = tasks[0] if len(tasks) == 1 else _task_of(path)
        if task is None or (tasks and task not in tasks):
            if not path.exists():
                raise SubmissionError(f"{path}: no such file or folder; check the path")
            if path.suffix in _FOREIGN:
                raise SubmissionError(
                    f"{path}: is a file of {_FOREIGN[path.suffix]}; submissions here are {KNOWN_FILES}"
                )
            kind = (held := kind_of_file(path)) and f" ({held})"
            raise SubmissionError(
                f"{path}: unknown kind of submission{kind}; choose with --tasks, or name it like {KNOWN_FILES}"
            )
        return {task: path}
    found = {task: file for task, file in in_folder(path, list(TASKS)).items() if file.exists()}
    of_boxes = [path / kind.file for kind in BENCHMARKS.values() if (path / kind.file).exists()]
    if len(of_boxes) > 1:
        names = ", ".join(file.name for file in of_boxes)
        raise SubmissionError(f"{path}: holds boxes for two benchmarks, {names}; name one of them")
    if of_boxes:
        found["boxes"] = of_boxes[0]
    files = [file for file in path.iterdir() if file.is_file() and not file.name.startswith(".")]
    if not found and list(tasks) == ["boxes"] and files and all(file.suffix in ("", ".bin", ".pb") for file in files):
        found["boxes"] = path  # Waymo's shards
    if "occupancy" not in found and (path / "occupancy").is_dir():
        found["occupancy"] = path / "occupancy"
    if not found and (list(tasks) == ["occupancy"] or any(path.glob("*.npz"))):
        found["occupancy"] = path
    if missing := [task for task in tasks if task not in found] or (not found and list(TASKS)):
        names = ", ".join(_files_of(task) for task in missing)
        raise SubmissionError(f"{path}: holds no {names}; write it with `drivestack predict`, or name the file itself")
    return {task: found[task] for task in TASKS if task in found and (not tasks or task in tasks)}


def _task_of(path: Path) -> str | None:
    """The task of a file, by its ending; of JSON by the first box in it."""
    task = ENDINGS.get(path.suffix)
    if path.suffix == ".json" and path.is_file():
        with open(path, "rb") as file:
            return "tracks" if b'"tracking_' in file.read(_LOOKED_AT) else task
    return task


def answer_reader(
    chosen: dict[str, Task], paths: dict[str, Path], frames: Sequence[Frame], class_names: Sequence[str], split: str
) -> Callable[[Frame], SceneAnswer]:
    """A function from a frame to its predictions in the submissions; voxels are read one frame at a time.

    Tracks are boxes with ids: beside a submission of boxes they stand for those of their classes.
    """
    readers = {task: chosen[task].reader(path, frames, class_names, split) for task, path in paths.items()}

    def read(frame: Frame) -> SceneAnswer:
        answers = {task: of_task(frame) for task, of_task in readers.items()}
        if "tracks" in answers:
            answers["boxes"] = with_tracks(answers.get("boxes"), answers.pop("tracks"), class_names)
        return SceneAnswer(frame.token, **answers)

    return read
