"""Segments of the Waymo Open Dataset v2 (one Parquet file for each component and segment), with pyarrow alone.

    <folder>/<component>/<context>.parquet     camera_image, camera_calibration, vehicle_pose;
                                               lidar_box and lidar_camera_synced_box for labels, stats

Where a split has labels every segment needs both of their components: without the second, boxes would be those of the
LiDAR's time, and what no camera sees would count.

Columns of images are read when an image is. Row groups whose times are not wanted are passed over. Columns:
https://github.com/waymo-research/waymo-open-dataset/tree/master/src/waymo_open_dataset/v2/perception.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....core.errors import LIBRARY_ERRORS, ConfigError, DataError, library_errors
from ....core.once import warn_once
from .parts import (
    CAMERAS,
    Calibration,
    Label,
    Moment,
    Segment,
    Shot,
    calibration,
    camera_number,
    check_jpeg,
    matrix,
    seen_by,
)

NEEDED = ("camera_image", "camera_calibration", "vehicle_pose")
LABELS = ("lidar_box", "lidar_camera_synced_box")
CONTEXT, TIME, CAMERA, OBJECT = (
    f"key.{name}" for name in ("segment_context_name", "frame_timestamp_micros", "camera_name", "laser_object_id")
)
IMAGE = "[CameraImageComponent].image"
SLOW_BYTES = 64 << 20
"""Of a row group of images: to get one of them all are read."""
_FIX = "fetch it again, or give a component of the Waymo Open Dataset v2"
_OF_IMAGE = (
    "pose.transform",
    "pose_timestamp",
    "rolling_shutter_params.shutter",
    "rolling_shutter_params.camera_trigger_time",
    "rolling_shutter_params.camera_readout_done_time",
    *(f"velocity.{kind}_velocity.{axis}" for kind in ("linear", "angular") for axis in "xyz"),
)
_INTRINSICS = ("f_u", "f_v", "c_u", "c_v", "k1", "k2", "p1", "p2", "k3")
_BOX = ("center.x", "center.y", "center.z", "size.x", "size.y", "size.z", "heading")

Row = dict[str, Any]


@dataclass(frozen=True)
class TableImage:
    """An image's cell within a Parquet file."""

    path: str
    row_group: int
    row: int

    @property
    def source(self) -> str:
        return f"{self.path}, row {self.row} of row group {self.row_group}"

    def read(self) -> bytes:
        """Raises OSError where the file is not as it was. The last two row groups are kept, by each process."""
        try:
            state = os.stat(self.path)
            images = _images(self.path, self.row_group, (state.st_mtime_ns, state.st_size))
            data = images[self.row].as_py()
        except (OSError, *LIBRARY_ERRORS) as error:
            raise OSError(" ".join(f"{type(error).__name__}: {error}".split())[:200]) from None
        check_jpeg(data or b"", self.source)
        return data


@lru_cache(maxsize=2)
def _images(path: str, row_group: int, state: tuple[int, int]) -> Any:
    return _parquet(Path(path)).read_row_group(row_group, columns=[IMAGE])[IMAGE]


def _parquet(path: Path) -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError(f"{path}: reading it needs pyarrow ({error}): pip install 'drivestack[waymo]'") from None
    try:
        return parquet.ParquetFile(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; every segment needs {', '.join(NEEDED)}: fetch it") from None
    except (OSError, *LIBRARY_ERRORS) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({' '.join(str(error).split())[:200]}); {_FIX}") from None


def rows(
    path: Path, columns: Collection[str], times_us: NDArray[np.int64] | None = None, segment: str = ""
) -> Iterator[tuple[int, int, Row]]:
    """Row group, number in it, and the row with these columns, of every row whose time is one of times_us (sorted).

    Raises DataError naming the file for one that lacks a column, cannot be read, or holds another segment than that.
    """
    file = _parquet(path)
    with _damage_named(path):
        names, groups = file.schema_arrow.names, list(range(file.num_row_groups))
        if times_us is not None:
            groups = [group for group in groups if _overlaps(file.metadata.row_group(group), times_us)]
    if missing := [column for column in columns if column not in names]:
        raise DataError(f"{path}: has no column {missing[0]!r}; {_FIX}")
    if segment:
        _check_segment(file, path, segment)
    for group in groups:
        with _damage_named(path):
            table = file.read_row_group(group, columns=list(columns))
            if times_us is None:
                kept = np.arange(table.num_rows)
            else:
                kept = np.flatnonzero(np.isin(table[TIME].to_numpy(), times_us))
            found = table.take(kept).to_pylist()
        yield from ((group, int(number), row) for number, row in zip(kept, found))


def _check_segment(file: Any, path: Path, name: str) -> None:
    """Raises DataError for a file with rows of another segment, whose times would fit nothing, in silence."""
    for group in range(file.num_row_groups):
        with _damage_named(path):
            if _only_holds(file.metadata.row_group(group), name):
                continue
            table = file.read_row_group(group, columns=[CONTEXT])
            if CONTEXT not in table.column_names:
                raise DataError(f"{path}: has no column {CONTEXT!r}; {_FIX}")
            if others := sorted({str(value) for value in table[CONTEXT].to_pylist()} - {name}):
                raise DataError(f"{path}: holds segment {others[0]}; name the file after its segment")


def _only_holds(group: Any, name: str) -> bool:
    """Whether the statistics of a row group say that its context is this one."""
    for i in range(group.num_columns):
        column = group.column(i)
        if column.path_in_schema == CONTEXT and column.physical_type == "BYTE_ARRAY" and column.is_stats_set:
            stated = column.statistics
            return bool(stated.has_min_max and stated.min == stated.max == name)
    return False


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """What pyarrow raises about a file's content, OSError among it, becomes one line."""
    with library_errors(DataError, path, _FIX):
        try:
            yield
        except OSError as error:
            raise ValueError(str(error)) from None


def _overlaps(group: Any, times_us: NDArray[np.int64]) -> bool:
    """Whether a row group may hold one of the times, by its statistics."""
    for i in range(group.num_columns):
        column = group.column(i)
        if column.path_in_schema != TIME or column.physical_type != "INT64":  # pyarrow aborts at damaged types
            continue
        if column.is_stats_set and column.statistics.has_min_max:
            first = np.searchsorted(times_us, column.statistics.min)
            return bool(first < len(times_us) and times_us[first] <= column.statistics.max)
    return True


def read_poses(path: Path, segment: str = "") -> dict[int, NDArray[np.float64]]:
    """Poses [4, 4] (global from vehicle) of a ``vehicle_pose`` file by time in microseconds, in order.

    segment: the one that it must hold, '' for any.
    """
    column = "[VehiclePoseComponent].world_from_vehicle.transform"
    found = [row for _, _, row in rows(path, (TIME, column), segment=segment)]
    with _damage_named(path):
        return {int(row[TIME]): matrix(row[column]) for row in sorted(found, key=lambda row: row[TIME])}


def read_segment(folder: Path, name: str, stride: int = 1) -> Segment:
    """The segment ``name`` of a split's folder, with every ``stride``-th frame.

    Raises DataError naming the file that is missing, or has other content; ConfigError without pyarrow.
    """
    paths = {part.name: part / f"{name}.parquet" for part in folder.iterdir() if part.is_dir()}
    if missing := [part for part in NEEDED if part not in paths or not paths[part].is_file()]:
        raise DataError(f"{folder}: segment {name} has no {missing[0]}/{name}.parquet; fetch it: {', '.join(NEEDED)}")
    labelled = any(any((folder / part).glob("[!.]*.parquet")) for part in LABELS)
    if missing := [part for part in LABELS if labelled and not (folder / part / f"{name}.parquet").is_file()]:
        raise DataError(
            f"{folder}: segment {name} has no {missing[0]}/{name}.parquet, but the split has labels, which need "
            f"{' and '.join(LABELS)} of every segment; fetch it"
        )
    poses = read_poses(paths["vehicle_pose"], name)
    times_us = np.array(list(poses)[::stride], np.int64)
    shots = _shots(paths["camera_image"], name, times_us)
    labels = _labels(paths, name, times_us) if labelled else {}
    return Segment(
        name=name,
        where=str(paths["camera_image"]),
        calibrations=_calibrations(paths["camera_calibration"], name),
        moments=tuple(
            Moment(time, poses[time], tuple(shots.get(time, ())), tuple(labels.get(time, ())))
            for time in times_us.tolist()
        ),
        labelled=labelled,
        synced=labelled,
        conditions=_conditions(paths.get("stats"), name),
    )


def _shots(path: Path, name: str, times_us: NDArray[np.int64]) -> dict[int, list[Shot]]:
    _warn_of_large_groups(path)
    prefix, source = "[CameraImageComponent].", str(path)
    out: dict[int, list[Shot]] = {}
    for group, number, row in rows(path, (TIME, CAMERA, *(prefix + part for part in _OF_IMAGE)), times_us, name):
        with library_errors(DataError, f"{path}: row {number} of row group {group}", _FIX):
            transform, time_s, exposure_s, trigger_s, done_s, *velocity = (row[prefix + part] for part in _OF_IMAGE)
            shot = Shot(
                camera=camera_number(row[CAMERA]),
                global_from_ego=matrix(transform),
                time_s=float(time_s),
                encoded=TableImage(source, group, number),
                exposure_s=float(exposure_s or 0),
                trigger_s=float(trigger_s or 0),
                readout_done_s=float(done_s or 0),
                velocity=tuple(np.nan if value is None else float(value) for value in velocity),
            )
        out.setdefault(int(row[TIME]), []).append(shot)
    return out


def _warn_of_large_groups(path: Path) -> None:
    file = _parquet(path)
    with _damage_named(path):
        if IMAGE not in file.schema_arrow.names:
            raise DataError(f"{path}: has no column {IMAGE!r}; {_FIX}")
        groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        largest = max((group.total_byte_size for group in groups), default=0)
    if largest > SLOW_BYTES:
        warn_once(
            f"{path.parent}: row groups of images have {largest / 2**20:.0f} MB, all of which is read for one image; "
            "write_waymo_v2 writes the frames with small ones, v1 records need none"
        )


def _calibrations(path: Path, name: str) -> dict[int, Calibration]:
    prefix = "[CameraCalibrationComponent]."
    size = (f"{prefix}width", f"{prefix}height")
    pose, direction = f"{prefix}extrinsic.transform", f"{prefix}rolling_shutter_direction"
    intrinsics = [f"{prefix}intrinsic.{part}" for part in _INTRINSICS]
    out = {}
    for _, _, row in rows(path, (CAMERA, *intrinsics, pose, *size, direction), segment=name):
        with _damage_named(path):
            camera = camera_number(row[CAMERA])
            values = [row[part] for part in intrinsics]
            size_px = (row[size[0]], row[size[1]])
            out[camera] = calibration(
                values, row[pose], size_px, row[direction] or 0, f"{path}: camera {CAMERAS[camera]}"
            )
    return out


def _labels(paths: Mapping[str, Path], segment: str, times_us: NDArray[np.int64]) -> dict[int, list[Label]]:
    synced: dict[tuple[int, str], Row] = {}
    prefix = "[LiDARCameraSyncedBoxComponent]."
    camera, boxes = f"{prefix}most_visible_camera_name", [f"{prefix}camera_synced_box.{part}" for part in _BOX]
    path = paths["lidar_camera_synced_box"]
    for _, _, row in rows(path, (TIME, OBJECT, camera, *boxes), times_us, segment):
        synced[int(row[TIME]), row[OBJECT]] = row
    path, of = paths["lidar_box"], "[LiDARBoxComponent]."
    own = [f"{of}box.{part}" for part in _BOX]
    more = {
        key: of + name
        for key, name in {
            "kind": "type",
            "points": "num_lidar_points_in_box",
            "top": "num_top_lidar_points_in_box",
            "x": "speed.x",
            "y": "speed.y",
            "level": "difficulty_level.detection",
        }.items()
    }
    out: dict[int, list[Label]] = {}
    for _, _, row in rows(path, (TIME, OBJECT, *own, *more.values()), times_us, segment):
        with _damage_named(path):
            other = synced.get((int(row[TIME]), row[OBJECT]))
            speed = (row[more["x"]], row[more["y"]])
            label = Label(
                id=sys.intern(str(row[OBJECT])),
                kind=int(row[more["kind"]] or 0),
                box=np.array([row[part] for part in own], np.float64),
                synced_box=None if other is None else np.array([other[part] for part in boxes], np.float64),
                camera="" if other is None else seen_by(other[camera]),
                velocity_global_mps=(np.nan, np.nan) if None in speed else (float(speed[0]), float(speed[1])),
                points=row[more["points"]],
                top_points=row[more["top"]],
                level=int(row[more["level"]] or 0),
            )
        out.setdefault(int(row[TIME]), []).append(label)
    return out


def _conditions(path: Path | None, segment: str) -> dict[str, str]:
    if path is None or not path.is_file():
        return {}
    names = ("time_of_day", "location", "weather")
    first = next(rows(path, [f"[StatsComponent].{name}" for name in names], segment=segment), None)
    values = {} if first is None else {name: first[2][f"[StatsComponent].{name}"] for name in names}
    return {name: str(value) for name, value in values.items() if value}
