"""A synthetic data set written again in the formats of other data sets, beside its nuScenes tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ....core.frames import Frame
from ...readers.nuscenes import read_nuscenes
from ...readers.waymo import FOLDERS
from .nuscenes_writer import VERSION
from .waymo_writer import write_waymo_v1, write_waymo_v2

Writer = Callable[[Iterable[Frame], Path], list[Path]]
WRITERS: dict[str, Writer] = {"waymo_v1": write_waymo_v1, "waymo_v2": write_waymo_v2}


def write_other_formats(root: str | Path, splits: Iterable[str], formats: Sequence[str]) -> list[Path]:
    """Writes ``<root>/<format>/<Waymo's folder of the split>`` for each format of WRITERS; returns these folders.

    Raises ConfigError where a format needs a package that is missing, DataError, OutputError.
    """
    folders = []
    for split in splits if formats else ():
        frames = read_nuscenes(root, VERSION, split)
        for name in formats:
            folders.append(Path(root) / name / FOLDERS[split])
            WRITERS[name](frames, folders[-1])
    return folders
