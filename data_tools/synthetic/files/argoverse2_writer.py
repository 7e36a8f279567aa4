"""Frames of any reader written as Argoverse 2 writes its sensor data set, for trying its reader, score and submission.

    <root>/<split>/<log>/annotations.feather                         only where the frames have boxes
    <root>/<split>/<log>/city_SE3_egovehicle.feather                 at the frames' and the images' times
    <root>/<split>/<log>/calibration/{intrinsics,egovehicle_SE3_sensor}.feather
    <root>/<split>/<log>/sensors/cameras/<camera>/<nanoseconds>.jpg
    <root>/<split>/<log>/sensors/lidar/<nanoseconds>.feather         without points: its name says that there is a sweep

A log is a scene. The set has undistorted images of ring cameras and no velocities: readers take them from the tracks.
Maps are not written, for Frames hold lanes around the car only.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ....core.argoverse2 import EVALUATED_CLASSES, OTHER_CATEGORIES
from ....core.cameras import RING_ORDER
from ....core.decode import read_file
from ....core.errors import DataError
from ....core.feather import write_feather
from ....core.files import atomic_path, check_writable_folder, file_name, replace_folder, sync_files
from ....core.frames import CameraView, Frame
from ....geometry import invert_pose, matrix_to_quaternion, transform_points
from ...clips.images import load_image

LOGGER = logging.getLogger("drivestack")
CATEGORY_OF_CLASS: Mapping[str, str] = {
    "car": "REGULAR_VEHICLE",
    "truck": "TRUCK",
    "bus": "BUS",
    "trailer": "VEHICULAR_TRAILER",
    "construction_vehicle": "LARGE_VEHICLE",
    "pedestrian": "PEDESTRIAN",
    "motorcycle": "MOTORCYCLE",
    "bicycle": "BICYCLE",
    "traffic_cone": "CONSTRUCTION_CONE",
    "barrier": "CONSTRUCTION_BARREL",
}
"""Our choice of a category for nuScenes' classes, all different; the two sets do not draw the same lines."""
_CATEGORIES = {*EVALUATED_CLASSES, *OTHER_CATEGORIES}
_QUALITY, _JPEG_START = 95, b"\xff\xd8"
_SAME = 1e-9
_LIDAR_COLUMNS = {
    "x": np.float16, "y": np.float16, "z": np.float16, "intensity": np.uint8, "laser_number": np.uint8,
    "offset_ns": np.int32,
}  # fmt: skip


def write_argoverse2(
    frames: Iterable[Frame],
    root: str | Path,
    split: str = "val",
    categories: Mapping[str, str] = CATEGORY_OF_CLASS,
    camera_names: Mapping[str, str] | None = None,
    images: bool = True,
) -> Path:
    """Write frames as logs of a split, each log whole or not at all; returns the folder of the split.

    categories: class -> category; an object that has a category of Argoverse 2 keeps it, one with neither is left out
    and counted. camera_names: the frames' names -> ring cameras, where they are others. images: False writes none, for
    scoring; JPEG files are copied as they are, other images are encoded.

    Raises DataError for a lens, skewed axes, a camera that is none of the ring or whose calibration changes within a
    log, two poses of the car at one time, a log that is there already, and an image that cannot be read.
    """
    folder = Path(root) / file_name(split, "split")
    scenes: dict[str, list[Frame]] = {}
    for frame in frames:
        scenes.setdefault(file_name(frame.scene_token, f"sample {frame.token}: scene token"), []).append(frame)
    left_out = 0
    for name, members in scenes.items():
        log, partial = folder / name, folder / f".{name}.partial"
        if log.exists():
            raise DataError(f"{log}: is there already; name another folder, or remove it")
        check_writable_folder(partial)
        if partial.exists():
            rmtree(partial)
        views = [(frame, view, _ring_name(frame, view, camera_names)) for frame in members for view in frame.cameras]
        _write_calibration(partial, views)
        _write_poses(partial, members)
        left_out += _write_boxes(partial, members, categories)
        for frame in members:
            empty = {column: np.zeros(0, kind) for column, kind in _LIDAR_COLUMNS.items()}
            write_feather(partial / "sensors" / "lidar" / f"{_ns(frame)}.feather", empty)
        if images:
            cameras = partial / "sensors" / "cameras"
            sync_files([_write_image(cameras / ring / f"{_ns(view)}.jpg", frame, view) for frame, view, ring in views])
        replace_folder(partial, log)
    if left_out:
        LOGGER.warning(
            "%s: %d objects have no category of Argoverse 2 and are left out; name one for their class",
            folder,
            left_out,
        )
    return folder


def _ns(of: Frame | CameraView) -> int:
    return of.timestamp_us * 1000


def _ring_name(frame: Frame, view: CameraView, names: Mapping[str, str] | None) -> str:
    name = (names or {}).get(view.name, view.name)
    if name not in RING_ORDER:
        raise DataError(
            f"sample {frame.token}, camera {view.name}: is no ring camera of Argoverse 2 ({', '.join(RING_ORDER)}); "
            "give camera_names"
        )
    return name


def _write_calibration(log: Path, views: Sequence[tuple[Frame, CameraView, str]]) -> None:
    """One calibration of each camera for the whole log."""
    cameras: dict[str, CameraView] = {}
    for frame, view, name in views:
        known, where = cameras.setdefault(name, view), f"sample {frame.token}, camera {view.name}"
        same_size = known.image_size_px == view.image_size_px
        moved = np.abs(known.camera.intrinsics - view.camera.intrinsics).max()
        moved = max(moved, np.abs(known.ego_from_camera - view.ego_from_camera).max())
        if known.name != view.name or not same_size or moved > _SAME:
            raise DataError(f"{where}: its calibration is not that of the log's first frame; make a log of each")
        if view.camera.lens is not None:
            raise DataError(f"{where}: has a lens, but images of Argoverse 2 are undistorted; undistort them first")
        if view.camera.intrinsics[0, 1] or view.camera.intrinsics[1, 0]:
            raise DataError(f"{where}: its image axes are skewed, which Argoverse 2 cannot state; rectify the images")
    k = np.array([view.camera.intrinsics for view in cameras.values()]).reshape(-1, 3, 3)
    numbers = {"fx_px": k[:, 0, 0], "fy_px": k[:, 1, 1], "cx_px": k[:, 0, 2], "cy_px": k[:, 1, 2]}
    numbers |= {key: np.zeros(len(k)) for key in ("k1", "k2", "k3")}
    width, height = np.array([view.image_size_px for view in cameras.values()], np.uint16).reshape(-1, 2).T
    optics: dict[str, Any] = {"sensor_name": list(cameras), **numbers, "height_px": height, "width_px": width}
    write_feather(log / "calibration" / "intrinsics.feather", optics)
    mounted = np.array([view.ego_from_camera for view in cameras.values()]).reshape(-1, 4, 4)
    mounting: dict[str, Any] = {"sensor_name": list(cameras), **_pose_columns(mounted)}
    write_feather(log / "calibration" / "egovehicle_SE3_sensor.feather", mounting)


def _pose_columns(poses: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Of poses [n, 4, 4]."""
    quaternions = matrix_to_quaternion(poses[:, :3, :3])
    columns = {name: quaternions[:, i] for i, name in enumerate(("qw", "qx", "qy", "qz"))}
    return columns | {name: poses[:, i, 3] for i, name in enumerate(("tx_m", "ty_m", "tz_m"))}


def _write_poses(log: Path, frames: Sequence[Frame]) -> None:
    poses: dict[int, NDArray[np.float64]] = {}
    for frame in frames:
        both: list[Frame | CameraView] = [frame, *frame.cameras]
        for of in both:
            known = poses.setdefault(_ns(of), of.global_from_ego)
            if np.abs(known - of.global_from_ego).max() > _SAME:
                raise DataError(
                    f"sample {frame.token}: the car has two poses at {of.timestamp_us} us; Argoverse 2 has one for "
                    "each time: correct the times of frame and images"
                )
    times = sorted(poses)
    columns = _pose_columns(np.array([poses[time] for time in times]))
    write_feather(log / "city_SE3_egovehicle.feather", {"timestamp_ns": np.array(times, np.int64), **columns})


def _write_boxes(log: Path, frames: Sequence[Frame], categories: Mapping[str, str]) -> int:
    """The number of objects that were left out."""
    labelled = [frame for frame in frames if frame.annotations is not None]
    if not labelled:
        return 0
    if len(labelled) < len(frames):
        missing = next(frame for frame in frames if frame.annotations is None)
        raise DataError(f"sample {missing.token}: has no labels, others of its log have; make two logs of them")
    rows: dict[str, list[Any]] = {name: [] for name in ("timestamp_ns", "track_uuid", "category", "num_interior_pts")}
    sizes, poses, left_out = [np.zeros((0, 3))], [np.zeros((0, 4, 4))], 0
    for frame in labelled:
        notes = frame.annotations
        assert notes is not None
        own = notes.categories or [""] * len(notes)
        names = [c if c in _CATEGORIES else categories.get(name, name) for name, c in zip(notes.names, own)]
        kept = [i for i, name in enumerate(names) if name in _CATEGORIES]
        left_out += len(names) - len(kept)
        rows["timestamp_ns"] += [_ns(frame)] * len(kept)
        rows["track_uuid"] += [notes.instance_tokens[i] or f"{frame.token}-{i}" for i in kept]
        rows["category"] += [names[i] for i in kept]
        rows["num_interior_pts"] += [int(notes.num_lidar_points[i]) for i in kept]
        sizes.append(notes.size_lwh_m[kept])
        ego_from_global = invert_pose(frame.global_from_ego)
        boxes = np.tile(np.eye(4), (len(kept), 1, 1))
        boxes[:, :3, :3] = ego_from_global[:3, :3] @ notes.rotation_global[kept]
        boxes[:, :3, 3] = transform_points(ego_from_global, notes.centre_global_m[kept])
        poses.append(boxes)
    size = np.concatenate(sizes)
    columns: dict[str, Any] = {name: rows[name] for name in ("timestamp_ns", "track_uuid", "category")}
    columns["timestamp_ns"] = np.array(rows["timestamp_ns"], np.int64)
    columns |= {name: size[:, i] for i, name in enumerate(("length_m", "width_m", "height_m"))}
    columns |= _pose_columns(np.concatenate(poses))
    columns["num_interior_pts"] = np.array(rows["num_interior_pts"], np.int64)
    write_feather(log / "annotations.feather", columns, texts=("track_uuid", "category"))
    return left_out


def _write_image(path: Path, frame: Frame, view: CameraView) -> Path:
    def wrong(problem: str, fix: str) -> DataError:
        return DataError(f"sample {frame.token}, camera {view.name} ({view.source}): {problem}; {fix}")

    data = b""
    if view.image is None and view.encoded is None:
        data = read_file(view.image_path, wrong, "fetch it, or write without images")
    elif view.image is None and view.encoded is not None:
        data = view.encoded.read()
    if not data.startswith(_JPEG_START):
        encoded = io.BytesIO()
        Image.fromarray(load_image(view, frame.token)[:, :, ::-1]).save(encoded, "jpeg", quality=_QUALITY)
        data = encoded.getvalue()
    with atomic_path(path, sync=False) as temporary:
        temporary.write_bytes(data)
    return path
