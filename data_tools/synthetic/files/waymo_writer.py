"""Frames of any data set, the synthetic world's among them, as Waymo Open Dataset v1 TFRecords or v2 Parquet.

What is written is what cameras need: context, calibrations, poses, JPEGs, boxes of objects, conditions. There is no
LiDAR, no map and no box in images. What Waymo's files cannot hold: waymo_rows.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from ....core.errors import ConfigError
from ....core.files import atomic_path, file_name
from ....core.frames import CameraView, Frame, RollingShutter
from ....core.waymo_messages import waymo_messages
from ...readers.waymo.parts import Label
from ...readers.waymo.tables import CAMERA, CONTEXT, IMAGE, OBJECT, TIME
from ...readers.waymo.tfrecords import record
from .waymo_rows import CAMERA_NUMBER, CLASSES, CameraNumbers, LabelWriter, jpeg, rig_numbers, segments

CONDITIONS = ("time_of_day", "location", "weather")
_KEY = {CONTEXT: "string", TIME: "int64"}


def _columns(component: str, *groups: tuple[str, str]) -> dict[str, str]:
    """Column -> type; groups: a type and names with blanks between."""
    return {f"[{component}].{name}": kind for kind, names in groups for name in names.split()}


def _each(pattern: str, parts: str) -> str:
    return " ".join(pattern.format(part) for part in parts.split())


_BOX = "center.x center.y center.z size.x size.y size.z heading"
SCHEMAS: dict[str, dict[str, str]] = {
    "camera_image": {
        **_KEY,
        CAMERA: "int8",
        **_columns(
            "CameraImageComponent",
            ("binary", "image"),
            ("pose", "pose.transform"),
            ("float32", _each("velocity.linear_velocity.{}", "x y z")),
            ("float64", _each("velocity.angular_velocity.{}", "x y z") + " pose_timestamp"),
            ("float64", _each("rolling_shutter_params.{}", "shutter camera_trigger_time camera_readout_done_time")),
        ),
    },
    "camera_calibration": {
        CONTEXT: "string",
        CAMERA: "int8",
        **_columns(
            "CameraCalibrationComponent",
            ("float64", _each("intrinsic.{}", "f_u f_v c_u c_v k1 k2 p1 p2 k3")),
            ("pose", "extrinsic.transform"),
            ("int32", "width height"),
            ("int8", "rolling_shutter_direction"),
        ),
    },
    "vehicle_pose": {**_KEY, **_columns("VehiclePoseComponent", ("pose", "world_from_vehicle.transform"))},
    "lidar_box": {
        **_KEY,
        OBJECT: "string",
        **_columns(
            "LiDARBoxComponent",
            ("float64", _each("box.{}", _BOX)),
            ("int8", "type"),
            ("int64", "num_lidar_points_in_box num_top_lidar_points_in_box"),
            ("float64", _each("speed.{}", "x y z") + " " + _each("acceleration.{}", "x y z")),
            ("int8", "difficulty_level.detection difficulty_level.tracking"),
        ),
    },
    "lidar_camera_synced_box": {
        **_KEY,
        OBJECT: "string",
        **_columns(
            "LiDARCameraSyncedBoxComponent",
            ("int8", "most_visible_camera_name"),
            ("float64", _each("camera_synced_box.{}", _BOX)),
        ),
    },
    "stats": {
        **_KEY,
        **_columns(
            "StatsComponent",
            ("string", " ".join(CONDITIONS)),
            ("int8[]", "lidar_object_counts.types"),
            ("int32[]", "lidar_object_counts.counts"),
            ("int8[]", "camera_object_counts.types"),
            ("int32[]", "camera_object_counts.counts"),
        ),
    },
}
"""Component -> column -> type, all columns of v2.0.1; "pose" is a list of 16 doubles, "int8[]" one of any length."""


def write_waymo_v1(
    frames: Iterable[Frame],
    folder: str | Path,
    classes: Mapping[str, str] = CLASSES,
    cameras: Mapping[str, str] | None = None,
) -> list[Path]:
    """One ``segment-<context>_with_camera_labels.tfrecord`` for each scene, into the folder of a split.

    classes: own -> Waymo's (vehicle, pedestrian, sign, cyclist), others are left out and counted; cameras: own names ->
    Waymo's, where they are not known. Returns the files. Raises ConfigError without the official message classes or for
    a camera without name, DataError for a lens or image that Waymo's files cannot hold and for annotations of some
    frames alone, OutputError.
    """
    messages = waymo_messages("dataset_pb2")
    writer, paths = LabelWriter(_checked(classes), cameras), []
    for context, members in segments(frames):
        rig = rig_numbers(members, cameras)
        file_name(context, "context name")
        paths.append(Path(folder) / f"segment-{context}_with_camera_labels.tfrecord")
        with atomic_path(paths[-1]) as temporary, temporary.open("wb") as file:
            for frame in members:
                message = _frame_message(messages, frame, context, rig, writer.labels(frame))
                file.write(record(message.SerializeToString()))
    writer.report()
    return paths


def write_waymo_v2(
    frames: Iterable[Frame],
    folder: str | Path,
    classes: Mapping[str, str] = CLASSES,
    cameras: Mapping[str, str] | None = None,
) -> list[Path]:
    """``<component>/<context>.parquet`` of each scene and component of SCHEMAS, into the folder of a split.

    Images have a row group for each frame, so that one of them is got by itself. A scene is written whole or not at
    all. As write_waymo_v1 otherwise; needs pyarrow alone.
    """
    writer, paths = LabelWriter(_checked(classes), cameras), []
    for context, members in segments(frames):
        file_name(context, "context name")
        rig = rig_numbers(members, cameras)
        tables: dict[str, Iterable[list[list[Any]]]] = {
            "camera_image": (_image_rows(frame, context, rig) for frame in members),  # the largest, never held as one
            **{name: [rows] for name, rows in _segment_rows(context, members, rig, writer).items()},
        }
        where = {component: Path(folder) / component / f"{context}.parquet" for component in SCHEMAS}
        with ExitStack() as whole:  # all files get their names when all are written, camera_image as the last
            for component, groups in tables.items():
                _write_tables(whole.enter_context(atomic_path(where[component])), component, groups)
            for component in SCHEMAS.keys() - tables:  # labels of frames that were written here before
                where[component].unlink(missing_ok=True)
        paths += [where[component] for component in SCHEMAS if component in tables]
    writer.report()
    return paths


def _checked(classes: Mapping[str, str]) -> Mapping[str, str]:
    known = sorted(set(CLASSES.values()))
    if wrong := [name for name in classes.values() if name not in known]:
        raise ConfigError(f"class {wrong[0]!r} is none of Waymo's: {', '.join(known)}")
    return classes


# ------------------------------------------------------------------------------------------------------------ v1


def _frame_message(
    messages: Any, frame: Frame, context: str, rig: Mapping[str, CameraNumbers], labels: Sequence[Label]
) -> Any:
    out = messages.Frame(timestamp_micros=frame.timestamp_us)
    out.context.name = context
    for camera in sorted(rig.values(), key=lambda camera: camera.number):
        of_camera = out.context.camera_calibrations.add(
            name=camera.number,
            intrinsic=camera.intrinsic,
            width=camera.size_px[0],
            height=camera.size_px[1],
            rolling_shutter_direction=camera.direction,
        )
        of_camera.extrinsic.transform.extend(camera.extrinsic)
    for name in CONDITIONS:
        if frame.conditions.get(name):
            setattr(out.context.stats, name, frame.conditions[name])
    for kind, count in _counts(labels):
        out.context.stats.laser_object_counts.add(type=kind, count=count)
    out.pose.transform.extend(frame.global_from_ego.ravel().tolist())
    for view in frame.cameras:
        image = out.images.add(name=rig[view.name].number, image=jpeg(view, frame.token))
        image.pose.transform.extend(view.global_from_ego.ravel().tolist())
        image.pose_timestamp = view.timestamp_us * 1e-6
        shutter = _shutter(view)
        image.shutter, image.camera_trigger_time = shutter.exposure_s, shutter.trigger_time_us * 1e-6
        image.camera_readout_done_time = shutter.readout_done_time_us * 1e-6
        velocity = (*shutter.velocity_global_mps, *shutter.angular_velocity_global_radps)
        if np.isfinite(velocity).all():
            for name, value in zip(("v_x", "v_y", "v_z", "w_x", "w_y", "w_z"), velocity):
                setattr(image.velocity, name, value)
    for label in labels:
        _add_label(out.laser_labels.add(), label)
    return out


def _add_label(out: Any, label: Label) -> None:
    out.id, out.type, out.detection_difficulty_level = label.id, label.kind, label.level
    out.num_lidar_points_in_box = label.points or 0
    if label.top_points is not None:
        out.num_top_lidar_points_in_box = label.top_points
    _set_box(out.box, label.box)
    if label.synced_box is not None:
        _set_box(out.camera_synced_box, label.synced_box)
        out.most_visible_camera_name = label.camera
    if np.isfinite(label.velocity_global_mps).all():
        out.metadata.speed_x, out.metadata.speed_y = label.velocity_global_mps


def _set_box(out: Any, box: np.ndarray) -> None:
    names = ("center_x", "center_y", "center_z", "length", "width", "height", "heading")
    for name, value in zip(names, box.tolist()):
        setattr(out, name, value)


def _shutter(view: CameraView) -> RollingShutter:
    """Of the view; where it is not known, all of the image at once."""
    unknown = (np.nan, np.nan, np.nan)
    at_once = RollingShutter("global", 0.0, view.timestamp_us, view.timestamp_us, unknown, unknown)
    return view.rolling_shutter or at_once


def _counts(labels: Sequence[Label]) -> list[tuple[int, int]]:
    return sorted(Counter(label.kind for label in labels).items())


# ------------------------------------------------------------------------------------------------------------ v2


def _image_rows(frame: Frame, context: str, rig: Mapping[str, CameraNumbers]) -> list[list[Any]]:
    """Values in the order of the schema's columns."""
    rows = []
    for view in sorted(frame.cameras, key=lambda view: rig[view.name].number):
        shutter = _shutter(view)
        velocity = [
            value if np.isfinite(value) else None
            for value in (*shutter.velocity_global_mps, *shutter.angular_velocity_global_radps)
        ]
        times = [view.timestamp_us * 1e-6, shutter.exposure_s]
        times += [shutter.trigger_time_us * 1e-6, shutter.readout_done_time_us * 1e-6]
        pose = view.global_from_ego.ravel().tolist()
        image = jpeg(view, frame.token)
        rows.append([context, frame.timestamp_us, rig[view.name].number, image, pose, *velocity, *times])
    return rows


def _segment_rows(
    context: str, frames: Sequence[Frame], rig: Mapping[str, CameraNumbers], writer: LabelWriter
) -> dict[str, list[list[Any]]]:
    out: dict[str, list[list[Any]]] = {
        "camera_calibration": [
            [context, camera.number, *camera.intrinsic, list(camera.extrinsic), *camera.size_px, camera.direction]
            for camera in sorted(rig.values(), key=lambda camera: camera.number)
        ]
    }
    for frame in frames:
        key, labels = [context, frame.timestamp_us], writer.labels(frame)
        out.setdefault("vehicle_pose", []).append([*key, frame.global_from_ego.ravel().tolist()])
        counts = _counts(labels)
        said = [frame.conditions.get(name) for name in CONDITIONS]
        of_lidar = [[kind for kind, _ in counts], [count for _, count in counts]]
        out.setdefault("stats", []).append([*key, *said, *of_lidar, [], []])
        if frame.annotations is None:
            continue
        boxes, synced = out.setdefault("lidar_box", []), out.setdefault("lidar_camera_synced_box", [])
        for label in labels:
            speed = [v if np.isfinite(v) else None for v in label.velocity_global_mps]
            own = [*key, label.id, *label.box.tolist(), label.kind, label.points, label.top_points]
            boxes.append([*own, *speed, None, None, None, None, label.level, 0])
            if label.synced_box is not None:
                synced.append([*key, label.id, CAMERA_NUMBER[label.camera], *label.synced_box.tolist()])
    return out


def _write_tables(path: Path, component: str, groups: Iterable[list[list[Any]]]) -> None:
    """A Parquet file of a component with a row group of each group of rows, at a temporary path."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError(
            f"{component}.parquet: writing it needs pyarrow ({error}): pip install 'drivestack[waymo]'"
        ) from None
    schema = pyarrow.schema([(name, _arrow_type(pyarrow, kind)) for name, kind in SCHEMAS[component].items()])
    packed = {"compression": "none", "use_dictionary": False} if IMAGE in schema.names else {"compression": "snappy"}
    with parquet.ParquetWriter(path, schema, **packed) as file:
        for rows in groups:
            columns = list(zip(*rows)) or [()] * len(schema)
            arrays = [pyarrow.array(list(values), field.type) for values, field in zip(columns, schema)]
            file.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))


def _arrow_type(pyarrow: Any, kind: str) -> Any:
    if kind == "pose":
        return pyarrow.list_(pyarrow.float64(), 16)
    if kind.endswith("[]"):
        return pyarrow.list_(_arrow_type(pyarrow, kind[:-2]))
    return getattr(pyarrow, kind)()
