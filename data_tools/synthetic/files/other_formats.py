"""A synthetic data set written again in the formats of other data sets, beside its nuScenes tables."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path

from ....core.errors import ConfigError
from ....core.files import file_name
from ....core.frames import Frame
from ....core.waymo_messages import waymo_messages
from ...readers.box_files import write_boxes
from ...readers.nuscenes.reader import read_nuscenes
from ...readers.waymo.reader import FOLDERS
from .argoverse2_writer import write_argoverse2
from .mcap_writer import write_mcap
from .nuscenes_writer import VERSION
from .py123d_writer import write_py123d
from .waymo_writer import write_waymo_v1, write_waymo_v2

Writer = Callable[[Sequence[Frame], Path, str], Path]
"""Frames, folder of the format and split -> what was written."""


_PACKAGES = {
    "waymo_v2": ("pyarrow",),
    "argoverse2": ("pyarrow",),
    "py123d": ("pyarrow",),
    "mcap": ("mcap", "mcap_ros2"),
}
_NO_FISHEYE = ("waymo_v1", "waymo_v2", "py123d")


def check_formats(formats: Iterable[str], rig: str) -> None:
    """Raises ConfigError, before anything is rendered, where a package is missing or a format cannot hold the rig."""
    for name in formats:
        if name == "waymo_v1":
            waymo_messages("dataset_pb2")
        if missing := [package for package in _PACKAGES.get(name, ()) if importlib.util.find_spec(package) is None]:
            extra = "mcap" if name == "mcap" else "argoverse"
            raise ConfigError(f"format {name} needs {' and '.join(missing)}: pip install 'drivestack[{extra}]'")
        if name == "argoverse2" and rig != "argoverse2":
            raise ConfigError(
                f"format argoverse2 holds its seven ring cameras alone, not rig {rig}: use rig argoverse2"
            )
        if name in _NO_FISHEYE and rig == "fisheye":
            raise ConfigError(f"format {name} does not hold the lens of rig fisheye: leave it out, or use format mcap")


def write_other_formats(root: str | Path, splits: Iterable[str], formats: Sequence[str]) -> list[Path]:
    """Writes ``<root>/<format>/...`` as each format of WRITERS lies in folders; returns what was written.

    Raises ConfigError where a format needs a package that is missing, DataError for cameras that it cannot hold,
    OutputError.
    """
    written = []
    for split in splits if formats else ():
        frames = read_nuscenes(root, VERSION, split)
        written += [WRITERS[name](frames, Path(root) / name, split) for name in formats]
    return written


def _waymo_v1(frames: Sequence[Frame], folder: Path, split: str) -> Path:
    write_waymo_v1(frames, folder / FOLDERS[split])
    return folder / FOLDERS[split]


def _waymo_v2(frames: Sequence[Frame], folder: Path, split: str) -> Path:
    write_waymo_v2(frames, folder / FOLDERS[split])
    return folder / FOLDERS[split]


def _argoverse2(frames: Sequence[Frame], folder: Path, split: str) -> Path:
    return write_argoverse2(frames, folder, split)


def _py123d(frames: Sequence[Frame], folder: Path, split: str) -> Path:
    write_py123d(frames, folder, split=split)
    return folder


def _mcap(frames: Sequence[Frame], folder: Path, split: str) -> Path:
    """A recording for each scene, with its boxes beside it."""
    for scene, members in groupby(frames, key=lambda frame: frame.scene_name):
        drive, name = list(members), file_name(scene, "scene name")
        (folder / split).mkdir(parents=True, exist_ok=True)
        write_mcap(drive, folder / split / f"{name}.mcap")
        write_boxes(drive, folder / split / f"{name}.boxes.json")
    return folder / split


WRITERS: dict[str, Writer] = {
    "waymo_v1": _waymo_v1,
    "waymo_v2": _waymo_v2,
    "argoverse2": _argoverse2,
    "py123d": _py123d,
    "mcap": _mcap,
}
