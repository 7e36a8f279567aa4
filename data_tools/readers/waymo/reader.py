"""Waymo Open Dataset, perception: v1.4 TFRecords and v2.0.1 Parquet to Frames, without TensorFlow.

    <root>/training/segment-<context>_with_camera_labels.tfrecord        v1; also <root>/individual_files/training
    <root>/training/<component>/<context>.parquet                        v2, see tables.py

or the folder of a split itself, or one record file. Nothing is extracted: an image is read where it lies, when it is
needed. v1 needs `make waymo` (the official message classes), v2 pyarrow alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from ....core.errors import ConfigError, DataError
from ....core.frames import Frame
from ..checks import check_frames
from ..choices import classes_of
from ..links import link_frames
from ..registry import Conventions, register_reader
from . import records, tables
from .parts import TYPES, LabelRules, Segment, frames_of

FOLDERS = {
    "train": "training",
    "val": "validation",
    "test": "testing",
    "test_camera_only": "testing_3d_camera_only_detection",
}
"""Split -> Waymo's folder; any other name is taken as that of a folder."""
VERSIONS = ("", "v1", "v2")
CLASSES: Mapping[str, str] = {name: name for number, name in TYPES.items() if number}


@register_reader(
    "waymo",
    "Waymo Open Dataset, perception: v1.4 records (make waymo) or v2 Parquet (pyarrow), five cameras",
    Conventions(
        boxes="gravity centre, l w h, heading counter-clockwise, in the vehicle's frame of Frame.pose; camera-synced: "
        "when their most visible camera sees them, else those of the LiDAR's time",
        quaternions="none: 4x4 matrices by rows; camera axes x ahead, y left, z up become x right, y down, z ahead",
        time="microseconds of the frame's first LiDAR scan; its pose is that of its middle, some 50 ms later; images "
        "in seconds, each with the car's pose at its own time",
        cameras="FRONT, FRONT_LEFT, FRONT_RIGHT (1920 x 1280), SIDE_LEFT, SIDE_RIGHT (1920 x 886); Brown-Conrady "
        "k1 k2 p1 p2 k3; pixels count from the edge of the first: principal points are moved by -0.5; rolling "
        "shutter is kept in each view, but not projected with",
        frames="EGO: the vehicle, x ahead, y left, z up, at the rear axle on the ground; BEV maps lie in it; "
        "velocities global",
    ),
)
def read_waymo(
    root: str | Path,
    split: str = "val",
    stride: int = 1,
    max_segments: int = 0,
    classes: Mapping[str, str] | None = None,
    camera_only: bool = True,
    version: str = "",
    checksums: bool = False,
) -> list[Frame]:
    """Frames of a split; a segment is a scene, a token ``<context name>_<timestamp in microseconds>``.

    split: see FOLDERS, or a folder's name; stride: every so many frames one is taken (10 Hz); max_segments: the first
    by name, 0 for all; classes: Waymo's vehicle, pedestrian, sign, cyclist to own names, those left out have no class;
    camera_only: leaves out what the camera challenge does not score, objects without points of the top LiDAR or without
    a camera that sees them; version: "v1" or "v2" where a folder has both; checksums: verifies every byte of records.

    A split without any label (v2: without their components) has frames without annotations; where one of the segments
    that are read has labels, frames without are frames without objects. One segment is in memory at a time, but its
    images.
    Raises ConfigError for such options, DataError naming file and record for data that cannot be used.
    """
    if stride < 1 or max_segments < 0:
        raise ConfigError(f"reader waymo: stride {stride} must be at least 1, max_segments {max_segments} at least 0")
    classes_of((), classes)  # refuses what is no mapping
    if unknown := [name for name in classes or () if name not in CLASSES]:
        raise ConfigError(f"reader waymo: class {unknown[0]!r} is none of Waymo's: {', '.join(CLASSES)}")
    if version not in VERSIONS:
        raise ConfigError(f"reader waymo: version {version!r}: give v1 (TFRecords) or v2 (Parquet)")
    rules = LabelRules(CLASSES if classes is None else classes, camera_only)
    readers = _segments(Path(root), split, version, stride, checksums)
    frames: list[Frame] = []
    waiting: list[Frame] = []
    for read in readers[: max_segments or None]:
        for segment in read():
            waiting += frames_of(segment, rules)
        if rules.all_stated:  # by the first segment, nearly always
            frames += map(rules.finish, waiting)
            waiting = []
    waiting.reverse()
    while waiting:  # of an older set all frames, which must not be there twice
        frames.append(rules.finish(waiting.pop()))
    rules.report(root)
    if not frames:
        raise DataError(f"{root}: none of {rules.without_images} frames has an image; give records with camera images")
    frames = link_frames(frames)
    check_frames(frames)
    return frames


def _segments(root: Path, split: str, version: str, stride: int, checksums: bool) -> list[Callable[[], list[Segment]]]:
    """A function that reads it, for each file of v1 or segment of v2, in the order of their names."""
    if root.is_file():
        if root.suffix == ".parquet" or version == "v2":
            raise ConfigError(
                f"{root}: is a file, and v2 (Parquet) has one for each component and segment; give the folder of the "
                "split, or the root"
            )
        return [partial(records.read_segments, root, stride, checksums)]
    folder = _folder(root, split)
    v1 = sorted(folder.glob("[!.]*.tfrecord")) if version != "v2" else []  # a dot: not whole yet
    v2 = sorted((folder / "camera_image").glob("[!.]*.parquet")) if version != "v1" else []
    if v1 and v2:
        raise ConfigError(f"{folder}: holds records and Parquet; choose with reader option version (v1 or v2)")
    if not v1 and not v2:
        parts = [part for part in tables.NEEDED if (folder / part).is_dir()]
        if parts and version != "v1":
            raise DataError(f"{folder}: has {', '.join(parts)} but no camera_image/*.parquet; fetch that component")
        raise DataError(f"{folder}: no segment-*.tfrecord and no camera_image/*.parquet; give Waymo's perception data")
    if v1:
        return [partial(records.read_segments, path, stride, checksums) for path in v1]
    return [partial(_of_tables, folder, path.stem, stride) for path in v2]


def _of_tables(folder: Path, name: str, stride: int) -> list[Segment]:
    return [tables.read_segment(folder, name, stride)]


def _folder(root: Path, split: str) -> Path:
    """Where the split lies. Raises DataError where there is no such folder, or root is that of another split."""
    name = FOLDERS.get(split, split)
    if not name:
        raise ConfigError(f"reader waymo: no split is named; give {', '.join(FOLDERS)} or the name of a folder")
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the root of Waymo's perception data")
    for parent in (root, root / "individual_files"):
        for folder in dict.fromkeys((name, split)):
            if (parent / folder).is_dir():
                return parent / folder
    holds = any(root.glob("*.tfrecord")) or any((root / part).is_dir() for part in tables.NEEDED)
    if not holds:
        found = sorted(path.name for path in root.iterdir() if path.is_dir())[:6]
        raise DataError(f"{root}: no folder {name}; it has {', '.join(found) or 'none'}: check root and split")
    other = {*FOLDERS, *FOLDERS.values()} - {split, name}
    if root.name in other:
        raise DataError(f"{root}: is the folder of {root.name}, but split {split} is asked for; name one of the two")
    return root
