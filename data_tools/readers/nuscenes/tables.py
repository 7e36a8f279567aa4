"""The thirteen JSON tables of a set in the nuScenes schema, joined for some of its scenes.

Schema: https://www.nuscenes.org/nuscenes ("Data format"). Large tables (sample_data.json of v1.0-trainval has 1.2 GB)
are decoded in blocks into typed rows of the fields that are used, and only the rows of the wanted scenes are kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import GenericAlias
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np

from ....core.errors import DataError, library_errors
from .chains import samples_in_order
from .splits import scenes_of_split

TABLES = (
    "category",
    "attribute",
    "visibility",
    "instance",
    "sensor",
    "calibrated_sensor",
    "ego_pose",
    "log",
    "scene",
    "sample",
    "sample_data",
    "sample_annotation",
    "map",
)
_UNUSED = ("visibility", "map")
_BLOCK_BYTES = 4 << 20

Vector3 = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]
"""w, x, y, z."""


class Named(msgspec.Struct, gc=False, frozen=True):
    """Rows of category and attribute."""

    token: str
    name: str


class Instance(msgspec.Struct, gc=False, frozen=True):
    token: str
    category_token: str


class Sensor(msgspec.Struct, gc=False, frozen=True):
    token: str
    channel: str
    modality: str


class CalibratedSensor(msgspec.Struct, gc=False, frozen=True):
    token: str
    sensor_token: str
    translation: Vector3
    rotation: Quaternion
    camera_intrinsic: list[list[float]]
    fields: dict[str, Any] = {}
    """The whole row, for what it states beyond a pinhole."""


class EgoPose(msgspec.Struct, gc=False, frozen=True):
    token: str
    translation: Vector3
    rotation: Quaternion


class Scene(msgspec.Struct, gc=False, frozen=True):
    token: str
    name: str
    first_sample_token: str
    nbr_samples: Any = -1
    """Only compared with what is there; some sets hold it empty."""
    log_token: Any = ""


class Sample(msgspec.Struct, gc=False, frozen=True):
    token: str
    scene_token: str
    timestamp: int | float
    """Microseconds."""
    prev: str
    next: str


class SampleData(msgspec.Struct, gc=False, frozen=True):
    token: str
    sample_token: str
    ego_pose_token: str
    calibrated_sensor_token: str
    timestamp: int | float
    is_key_frame: bool
    height: int
    width: int
    filename: str
    is_valid: bool = True
    """Of T4 sets."""


class SampleAnnotation(msgspec.Struct, gc=False, frozen=True):
    token: str
    sample_token: str
    instance_token: str
    attribute_tokens: list[str]
    translation: Vector3
    size: Vector3
    """Width, length, height."""
    rotation: Quaternion
    num_lidar_pts: int
    num_radar_pts: int
    prev: str
    next: str
    visibility_token: Any = ""
    """Of nuScenes "1" to "4"."""
    velocity: Any = None
    """Of T4 sets: x, y, z in the global frame, m/s."""


class _SampleOfScene(msgspec.Struct, gc=False, frozen=True):
    token: str
    scene_token: str


class _NamedScene(msgspec.Struct, gc=False, frozen=True):
    token: str
    name: str


Row = TypeVar("Row")
TokenRow = TypeVar("TokenRow", Sensor, CalibratedSensor)


class Keyframe(NamedTuple):
    """One sample with the rows that belong to it."""

    sample: Sample
    data: dict[str, SampleData]
    """Key frame rows by channel."""
    annotations: list[SampleAnnotation]
    """In the order of the table."""


class SceneTables(NamedTuple):
    """The tables, cut down to some scenes; rows by token."""

    scenes: list[Scene]
    """Sorted by name."""
    keyframes: dict[str, Keyframe]
    """By scene and time."""
    ego_poses: dict[str, EgoPose]
    calibrated_sensors: dict[str, CalibratedSensor]
    sensors: dict[str, Sensor]
    annotations: dict[str, SampleAnnotation]
    category_of_instance: dict[str, str]
    attributes: dict[str, str]
    has_labels: bool
    """Whether the set has annotations at all; that of the benchmark's test split has none."""
    locations: dict[str, str]
    """Of logs, by their tokens, where they state one: the city whose frame is the global one."""


def read_tables(dataroot: str | Path, version: str, split: str) -> SceneTables:
    """The rows of a split's scenes; scenes of the split that the tables lack are left out.

    Raises DataError naming the path and the fix for a wrong root, a missing version or table, broken JSON, rows without
    a field, tokens that lead nowhere, an unknown split or one without scenes.
    """
    folder = _version_folder(dataroot, version)
    wanted = scenes_of_split(split, folder / "splits.json")
    for table in _UNUSED:  # a broken one suggests a broken archive
        read_rows(folder / f"{table}.json", dict[str, Any])
    all_scenes = read_rows(folder / "scene.json", Scene)
    scenes = sorted((scene for scene in all_scenes if scene.name in wanted), key=lambda scene: scene.name)
    if not scenes:
        present = ", ".join(sorted(scene.name for scene in all_scenes)[:5])
        raise DataError(
            f"{folder / 'scene.json'}: none of its {len(all_scenes)} scenes ({present}, ...) "
            f"belongs to split {split!r}; give the split that this version holds, or name its scenes in "
            f"{folder / 'splits.json'} ({{split: [scene, ...]}})"
        )
    with joining(folder):
        return join_tables(folder, scenes)


def split_tokens(dataroot: str | Path, version: str, split: str) -> list[str]:
    """Sample tokens of a split in the order of sample.json, from the scene and sample tables alone.

    Raises DataError for a missing or unreadable table, an unknown split, or one without samples.
    """
    folder = Path(dataroot) / version
    wanted = scenes_of_split(split, folder / "splits.json")
    scenes = {scene.token for scene in iterate_rows(folder / "scene.json", _NamedScene) if scene.name in wanted}
    rows = iterate_rows(folder / "sample.json", _SampleOfScene)
    tokens = [sample.token for sample in rows if sample.scene_token in scenes]
    if not tokens:
        raise DataError(f"{folder} holds no sample of split {split!r}; name the split that the set was made for")
    return tokens


def _version_folder(dataroot: str | Path, version: str) -> Path:
    root = Path(dataroot)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the nuScenes data root, which holds samples/ and {version}/")
    folder = root / version
    if not folder.is_dir():
        found = sorted(p.parent.name for p in root.glob("*/sample.json"))
        hint = f"this root has {', '.join(found)}" if found else "this is not a nuScenes root: it has no tables"
        raise DataError(f"{folder}: no such version folder; {hint}")
    for table in TABLES:
        if not (folder / f"{table}.json").is_file():
            raise DataError(f"{folder / table}.json: table is missing; extract the metadata archive of {version} again")
    return folder


@contextmanager
def joining(folder: Path) -> Iterator[None]:
    """Within, keys and tokens that lead nowhere become a DataError with the folder of the tables."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # the checks name what is not finite
            yield
    except KeyError as error:
        raise DataError(
            f"{folder}: the tables do not fit together (missing key or token {error}); "
            "they come from different releases or are incomplete: extract the metadata archive again"
        ) from error


def join_tables(folder: Path, scenes: list[Scene]) -> SceneTables:
    """The rows of some scenes of the tables in a folder; within ``joining``. Raises DataError as ``read_tables``."""
    sensors = _by_token(folder / "sensor.json", Sensor)
    calibrated = _calibrations(folder / "calibrated_sensor.json")
    channels = {token: sensors[row.sensor_token].channel for token, row in calibrated.items()}

    tokens = {scene.token for scene in scenes}
    samples = {row.token: row for row in iterate_rows(folder / "sample.json", Sample) if row.scene_token in tokens}
    samples = samples_in_order(folder, scenes, samples)
    data: dict[str, dict[str, SampleData]] = {token: {} for token in samples}
    for row in iterate_rows(folder / "sample_data.json", SampleData):
        if row.is_key_frame and row.sample_token in samples:
            data[row.sample_token][channels[row.calibrated_sensor_token]] = row
    poses = {row.ego_pose_token for rows in data.values() for row in rows.values()}

    of_sample: dict[str, list[SampleAnnotation]] = {token: [] for token in samples}
    has_labels = False
    for note in iterate_rows(folder / "sample_annotation.json", SampleAnnotation):
        has_labels = True
        if note.sample_token in samples:
            of_sample[note.sample_token].append(note)
    categories = {row.token: row.name for row in iterate_rows(folder / "category.json", Named)}
    instances = iterate_rows(folder / "instance.json", Instance)
    return SceneTables(
        scenes=scenes,
        keyframes={token: Keyframe(sample, data[token], of_sample[token]) for token, sample in samples.items()},
        ego_poses={row.token: row for row in iterate_rows(folder / "ego_pose.json", EgoPose) if row.token in poses},
        calibrated_sensors=calibrated,
        sensors=sensors,
        annotations={row.token: row for rows in of_sample.values() for row in rows},
        category_of_instance={row.token: categories[row.category_token] for row in instances},
        attributes={row.token: row.name for row in iterate_rows(folder / "attribute.json", Named)},
        has_labels=has_labels,
        locations=_locations(folder / "log.json"),
    )


def _locations(path: Path) -> dict[str, str]:
    """By log token; empty where the set has no such table (T4)."""
    rows = read_rows(path, dict[str, Any]) if path.is_file() else []
    texts = lambda row: all(isinstance(row.get(key), str) for key in ("token", "location"))
    return {row["token"]: row["location"] for row in rows if texts(row)}


def _by_token(path: Path, row_type: type[TokenRow]) -> dict[str, TokenRow]:
    return {row.token: row for row in iterate_rows(path, row_type)}


def _calibrations(path: Path) -> dict[str, CalibratedSensor]:
    typed = read_rows(path, CalibratedSensor)
    whole = read_rows(path, dict[str, Any])
    return {row.token: msgspec.structs.replace(row, fields=fields) for row, fields in zip(typed, whole)}


def iterate_rows(path: Path, row_type: type[Row]) -> Iterator[Row]:
    """Rows of a table (a JSON array of objects), decoded block by block; fields that ``row_type`` lacks are skipped.

    A block ends behind a row. Where that cut does not yield JSON (the table holds NaN, which JSON lacks and Python
    writes; "}," stands inside of a text; the file is broken), the whole table is read by Python's slower reader.
    Raises DataError naming the file, and for a row its number and field.
    """
    decoder = msgspec.json.Decoder(GenericAlias(list, (row_type,)))
    count, rest = 0, b""
    try:
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK_BYTES):
                rest += block
                cut = rest.rfind(b"},")
                if cut < 0 or not rest.lstrip().startswith(b"["):
                    continue
                rows = decoder.decode(rest[: cut + 1] + b"]")
                yield from rows
                count += len(rows)
                rest = b"[" + rest[cut + 2 :]
        yield from decoder.decode(rest)
    except OSError as error:
        raise DataError(
            f"{path}: cannot read table {path.name} ({error.strerror}); "
            f"the data root must hold the folder {path.parent.name} of a nuScenes set"
        ) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        yield from read_rows(path, row_type)[count:]


def read_rows(path: Path, row_type: type[Row]) -> list[Row]:
    """All rows, by Python's reader, which says where a file is broken. Raises DataError naming the file."""
    try:
        with library_errors(DataError, path, "extract or generate this table again"):
            return _converted(path, row_type)
    except OSError as error:
        raise DataError(f"{path}: cannot read table {path.name} ({error.strerror}); extract it again") from None


def _converted(path: Path, row_type: type[Row]) -> list[Row]:
    try:
        return msgspec.convert(json.loads(path.read_text(encoding="utf-8")), GenericAlias(list, (row_type,)))
    except msgspec.ValidationError as error:
        raise DataError(
            f"{path}: a row does not follow the nuScenes schema ({error}); "
            "the tables come from another release or are incomplete: extract the metadata archive again"
        ) from None
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); extract or generate this table again") from None
