"""The Arrow files of one log of py123d: their columns as arrays, their calibration, and the images inside.

    <log>/sync.arrow               a row per moment: `sync.uuid`, `sync.timestamp_us`, and the row of each other file
    <log>/ego_state_se3.arrow      poses of the car
    <log>/box_detections_se3.arrow
    <log>/camera.<id>.arrow        times, poses and images: paths, JPEG or PNG files, or places in a film

Columns are named `<file>.<field>`; the schema's metadata hold what does not change, as msgpack. Poses are x y z and
qw qx qy qz. Format: py123d 0.7 (kesai-labs/py123d), of which nothing is imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ....core.errors import LIBRARY_ERRORS, ConfigError, DataError
from ....geometry import CameraModel, brown_conrady, f_theta, mei, quaternion_to_matrix

FIX = "convert this log again"
IMAGES = "data"


@dataclass(frozen=True)
class LogFile:
    """Some columns of a file of a log, and its metadata."""

    path: Path
    about: dict[str, Any]
    columns: dict[str, Any]
    """Field -> pyarrow column."""
    image_type: str
    """Of the field `data`, '' where it has none."""
    image_field: int
    """Its place among the columns of the file."""
    batch_ends: NDArray[np.int64]
    """Rows of the file up to the end of each of its batches."""

    def integers(self, field: str) -> NDArray[np.int64]:
        """[rows]; raises DataError for missing ones."""
        with reading(self.path, field):
            column = self.columns[field]
            if column.null_count:
                raise ValueError(f"{column.null_count} rows without a value")
            return np.asarray(column.to_numpy(), np.int64)

    def numbers(self, field: str, width: int) -> NDArray[np.float64]:
        """[rows, width], NaN where a row has none."""
        with reading(self.path, field):
            return _fixed(self.columns[field].combine_chunks(), width)

    def lists(self, field: str, width: int = 0) -> list[NDArray[np.float64]]:
        """Of each row the numbers [n], or [n, width], NaN where one is missing."""
        with reading(self.path, field):
            array = self.columns[field].combine_chunks()
            values = _fixed(array.values, width) if width else _floats(array.values)
            return [values[a:b] for a, b in pairwise(array.offsets.to_pylist())]

    def values(self, field: str) -> list[Any]:
        """As Python's objects, None where a row has none."""
        with reading(self.path, field):
            return self.columns[field].to_pylist()

    def image(self, row: int) -> ArrowImage:
        """The image inside this file at a row."""
        batch = int(np.searchsorted(self.batch_ends, row, side="right"))
        before = int(self.batch_ends[batch - 1]) if batch else 0
        return ArrowImage(str(self.path), self.image_field, batch, row - before, row)


@dataclass(frozen=True)
class ArrowImage:
    """An encoded image in a column of an Arrow file."""

    path: str
    field: int
    batch: int
    row_in_batch: int
    row: int

    @property
    def source(self) -> str:
        return f"{self.path}, row {self.row}"

    def read(self) -> bytes:
        """JPEG or PNG. Raises DataError where the file is damaged or another one by now."""
        arrow = import_arrow(self.path)
        with reading(self.path, f"row {self.row}"), arrow.memory_map(self.path) as source:
            options = arrow.ipc.IpcReadOptions(included_fields=[self.field])
            batch = arrow.ipc.open_file(source, options=options).get_batch(self.batch)
            batch.validate(full=True)
            value = batch.column(0)[self.row_in_batch].as_py()
            if not isinstance(value, bytes):
                raise TypeError("holds no image")
            return value


def import_arrow(path: str | Path) -> Any:
    """pyarrow. Raises ConfigError with the line that installs it."""
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError as error:
        raise ConfigError(f"{path}: reading it needs pyarrow ({error}); pip install pyarrow") from None
    return pyarrow


@contextmanager
def reading(path: str | Path, place: str = "") -> Iterator[None]:
    """Within, what libraries say about a file's content becomes one line with its name."""
    where = f"{path}{', ' * bool(place)}{place}"
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # the checks name what is not finite
            yield
    except OSError as error:
        text = " ".join(str(error.strerror or error).split())[:200]
        raise DataError(f"{where}: cannot be read ({text}); {FIX}") from None
    except LIBRARY_ERRORS as error:
        text = " ".join(str(error).split())[:200]
        raise DataError(f"{where}: {type(error).__name__}{': ' * bool(text)}{text}; {FIX}") from None


def open_log_file(path: Path, fields: Sequence[str] | None = None) -> LogFile:
    """Columns of a file by field, all where ``fields`` is None; one that it lacks is left out, and so are images.

    Paths of images are read. Raises DataError naming the file that is missing or broken, ConfigError without
    pyarrow.
    """
    arrow = import_arrow(path)
    with reading(path), arrow.memory_map(str(path)) as source:
        schema = arrow.ipc.open_file(source).schema
        prefix = f"{path.stem}."
        names = [name.removeprefix(prefix) for name in schema.names]
        types = [str(kind) for kind in schema.types]
        wanted = [
            i
            for i, name in enumerate(names)
            if (fields is None or name in fields) and (name != IMAGES or "string" in types[i])
        ]
        reader = arrow.ipc.open_file(source, options=arrow.ipc.IpcReadOptions(included_fields=wanted))
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        table = arrow.Table.from_batches(batches, reader.schema)
        table.validate(full=True)
        about = msgspec.msgpack.decode((schema.metadata or {})[b"metadata"], strict=False)
        if not isinstance(about, dict):
            raise TypeError("its metadata are no dict")
        found = names.index(IMAGES) if IMAGES in names else -1
        return LogFile(
            path,
            about,
            dict(zip((names[i] for i in wanted), table.columns)),
            types[found] if found >= 0 else "",
            found,
            np.cumsum([batch.num_rows for batch in batches], dtype=np.int64),
        )


def _floats(array: Any) -> NDArray[np.float64]:
    """NaN where a value is missing."""
    return np.asarray(array.cast("float64").to_numpy(zero_copy_only=False), np.float64)


def _fixed(array: Any, width: int) -> NDArray[np.float64]:
    """An array of lists of ``width`` numbers as [n, width]."""
    if getattr(array.type, "list_size", -1) != width:
        raise TypeError(f"holds {array.type}, not lists of {width} numbers")
    values = _floats(array.values)[array.offset * width : (array.offset + len(array)) * width].reshape(-1, width)
    missing = np.asarray(array.is_null().to_numpy(zero_copy_only=False), bool)
    return np.where(missing[:, None], np.nan, values)


def poses_of(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n, 4, 4] of rows [n, 7] or more that begin with x y z qw qx qy qz; NaN where a row is. Raises ValueError for a
    quaternion of length 0."""
    out = np.tile(np.eye(4), (len(numbers), 1, 1))
    there = np.isfinite(numbers[:, :7]).all(1)
    out[there, :3, :3] = quaternion_to_matrix(numbers[there, 3:7])
    out[:, :3, 3] = numbers[:, :3]
    out[~there] = np.nan
    return out


def camera_of(about: dict[str, Any]) -> CameraModel:
    """The camera that a file's metadata describe. Raises ValueError, KeyError or TypeError where they do not.

    Images that were undistorted keep the numbers of their lens in the file; then it is left out. MEI's p1 and p2 count,
    as its calibration has them, which py123d itself and KITTI-360's scripts leave out (up to 0.4 pixels).
    """
    kind, size = about["camera_model"], (int(about["width"]), int(about["height"]))
    if kind == "pinhole":
        fx, fy, cx, cy, skew = _given(about, "intrinsics", 5)
        matrix = np.array([[fx, skew, cx], [0, fy, cy], [0, 0, 1]])
        lens = None if about.get("is_undistorted", False) else about.get("distortion")
        return CameraModel(matrix, *size) if lens is None else brown_conrady(matrix, *size, lens)
    if kind == "fisheye_mei":
        gamma1, gamma2, u0, v0 = _given(about, "projection", 4)
        if about.get("mirror_parameter") is None:
            raise ValueError("its mirror_parameter is missing")
        matrix = np.array([[gamma1, 0, u0], [0, gamma2, v0], [0, 0, 1]])
        return mei(matrix, *size, float(about["mirror_parameter"]), about.get("distortion") or ())
    if kind == "ftheta":
        numbers = _given(about, "intrinsics", 14)  # centre, 6 of angle to pixels, 6 of pixels to angle
        return f_theta(*size, numbers[:2], forward=numbers[2:8])
    raise ValueError(f"camera model {str(kind)[:40]!r} is none of pinhole, fisheye_mei, ftheta")


def _given(about: dict[str, Any], key: str, count: int) -> list[float]:
    values = about.get(key)
    if not isinstance(values, list) or len(values) != count:
        raise ValueError(f"its {key} are {'missing' if values is None else str(values)[:60]}, not {count} numbers")
    return [float(value) for value in values]
