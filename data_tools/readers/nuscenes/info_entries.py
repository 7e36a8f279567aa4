"""One sample of an info pickle as a Frame: mmdet3d 1.1's entries, and the older ones with ``cams`` and ``gt_boxes``.

Shapes: n boxes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....core.frames import SEEN_POINTS, Annotations, CameraView, Frame
from ....core.once import warn_once
from ....geometry import CameraModel, invert_pose, nearest_rigid, pose, rotation_z
from ...clips.can_bus import SIGNALS
from ..cameras import ImageSizes, camera_order
from ..checks import INT64
from ..file_paths import is_windows_path, path_below, portable_path
from ..lenses import LENS_FIELDS, LensNotes
from .box_layouts import BoxLayout, from_layout
from .reader import WITHOUT_CLASS

_NEW_IMAGE_FIELDS = (
    "img_path", "cam2img", "cam2ego", "lidar2cam", "timestamp", "sample_data_token", "width", "height",
    "cam2global", "lidar2img", "depth_map", "ego2global", "sample_idx", "type",
)  # fmt: skip
_OLD_CAMERA_FIELDS = (
    "data_path", "type", "sample_data_token", "sensor2ego_translation", "sensor2ego_rotation", "ego2global_translation",
    "ego2global_rotation", "timestamp", "sensor2lidar_rotation", "sensor2lidar_translation", "cam_intrinsic",
    "camera_intrinsics", "sensor2global_rotation", "sensor2global_translation", "velocity", "width", "height",
)  # fmt: skip


@dataclass
class EntryReader:
    """What the entries of one file share."""

    images: ImagePaths
    sizes: ImageSizes
    lenses: LensNotes
    names: Mapping[int, str]
    """Class name of a label of the 1.1 layout."""
    us_per_unit: float
    """Microseconds per unit of the file's times."""
    box_layout: BoxLayout
    """Of ``gt_boxes``."""
    cameras: dict[tuple[str, bytes, int, int, str], CameraModel] = field(default_factory=dict)

    def time_us(self, value: Any) -> int:
        """Raises ValueError for what is no finite time."""
        time = float(value) * self.us_per_unit
        if not -INT64 < time < INT64:
            raise ValueError(f"timestamp {value} is no time")
        return int(value) if self.us_per_unit == 1 else round(time)

    def camera(self, name: str, intrinsics: Any, path: str, fields: Mapping[str, Any], known: Sequence[str]) -> Any:
        """The camera of an image, of the size that the file or the image states."""
        matrix = np.array(intrinsics, dtype=np.float64)[:3, :3]
        width, height = fields.get("width"), fields.get("height")
        size = (int(width), int(height)) if width and height else self.sizes(name, matrix, path)
        key = (name, matrix.tobytes(), *size, str([fields.get(field) for field in LENS_FIELDS]))
        if key not in self.cameras:
            self.cameras[key] = self.lenses.add(name, CameraModel(matrix, *size), fields, known)
        return self.cameras[key]


class ImagePaths:
    """Where the images are: published files name them relative to another folder, or not at all."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.flat: bool | None = None

    def __call__(self, name: str, sensor: str) -> str:
        path = portable_path(name)
        for folder in ("samples", "sweeps"):
            if folder in path.parts:
                return str(self.root.joinpath(*path.parts[path.parts.index(folder) :]))
        if is_windows_path(name):
            return str(path_below(self.root, name))
        if self.flat is None:
            self.flat = (self.root / path).exists()
        return str(self.root / path if self.flat else self.root / "samples" / sensor / path)


def old_boxes(info: Mapping[str, Any]) -> tuple[NDArray[np.float64], NDArray[np.float64], list[str]] | None:
    """Boxes [n, 7] as the older layout has them, velocities [n, 2] (NaN: unknown), names; None without labels.

    Raises ValueError where they are not equally many.
    """
    if info.get("gt_boxes") is None:
        return None
    boxes = np.asarray(info["gt_boxes"], dtype=np.float64)
    boxes = boxes.reshape(len(boxes), -1) if boxes.size else np.zeros((0, 7))
    n = len(boxes)
    velocity = boxes[:, 7:9] if boxes.shape[1] == 9 else np.full((n, 2), np.nan)  # some carry them in the boxes
    if info.get("gt_velocity") is not None:
        velocity = np.asarray(info["gt_velocity"], dtype=np.float64).reshape(-1, 2)
    names = _names(info["gt_names"])
    if boxes.shape[1] not in (7, 9) or len(names) != n or len(velocity) != n:
        raise ValueError(
            f"gt_boxes {list(boxes.shape)}, {len(names)} gt_names, {len(velocity)} gt_velocity: give one row per object"
        )
    return boxes[:, :7], velocity, names


def _names(values: Any) -> list[str]:
    """Class names as texts; a damaged NumPy array may hold letters that no text can."""
    stored = np.asarray(values)
    if stored.dtype.kind == "U" and stored.size and np.ascontiguousarray(stored).view(np.uint32).max() > sys.maxunicode:
        raise ValueError("gt_names holds letters that do not exist")
    return [str(name) for name in stored.ravel()]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"tokens and names are texts, not {str(value)[:60]!r}")
    return value


def _annotations(
    global_from_lidar: NDArray[np.float64],
    boxes: NDArray[np.float64],
    names: list[str],
    lidar_points: Sequence[int] | None,
    radar_points: Sequence[int] | None,
    categories: Sequence[str] = (),
) -> Annotations:
    """Boxes [n, 9] of the LIDAR_TOP frame as annotations; without counts of points every box counts as seen."""
    rotation = global_from_lidar[:3, :3]
    n = len(boxes)
    # nuScenes boxes stand upright in the global frame. The files turned their heading and velocity, both horizontal,
    # into the LIDAR frame (tilted by a degree or two) and kept x and y: undo just that.
    upright = np.linalg.inv(rotation[:2, :2])
    heading = np.stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6])], 1) @ upright
    velocity = boxes[:, 7:9] @ upright
    return Annotations(
        names=names,
        centre_global_m=boxes[:, :3] @ rotation.T + global_from_lidar[:3, 3],
        rotation_global=rotation_z(np.arctan2(heading[:, 1], heading[:, 0])),
        size_lwh_m=boxes[:, 3:6],
        velocity_global_mps=velocity,
        attributes=[""] * n,
        num_lidar_points=np.asarray([SEEN_POINTS] * n if lidar_points is None else lidar_points, dtype=np.int64),
        num_radar_points=np.zeros(n, np.int64) if radar_points is None else np.asarray(radar_points, dtype=np.int64),
        tokens=[""] * n,
        instance_tokens=[""] * n,
        categories=list(categories),
    )


def frame_of_mmdet3d(info: dict, reader: EntryReader) -> Frame:
    global_from_ego = nearest_rigid(info["ego2global"])
    lidar = info.get("lidar_points") or {}
    ego_from_lidar = _lidar_of_mmdet3d(info, lidar)
    views = []
    for name in camera_order(info["images"]):
        image = info["images"][name]
        ego_from_camera = _mounting_of_mmdet3d(image, ego_from_lidar)
        global_from_camera = global_from_ego @ ego_from_camera
        if ego_from_lidar is not None and "lidar2cam" in image:
            # without cam2ego the car is taken to be where it was at the keyframe's time
            global_from_camera = global_from_ego @ ego_from_lidar @ invert_pose(nearest_rigid(image["lidar2cam"]))
        path = reader.images(image["img_path"], name)
        views.append(
            CameraView(
                name=name,
                image_path=path,
                camera=reader.camera(name, image["cam2img"], path, image, _NEW_IMAGE_FIELDS),
                ego_from_camera=ego_from_camera,
                global_from_ego=global_from_camera @ invert_pose(ego_from_camera),
                timestamp_us=reader.time_us(image.get("timestamp", info["timestamp"])),
                sample_data_token=image.get("sample_data_token", ""),
            )
        )
    annotations = None
    if info.get("instances") is not None:
        if ego_from_lidar is None and info["instances"]:
            raise ValueError("boxes lie in the frame of the LiDAR, but lidar_points.lidar2ego is missing")
        objects = info["instances"]
        boxes = [[*o["bbox_3d"], *o.get("velocity", (np.nan, np.nan))] for o in objects]
        counted = {key: all(key in o for o in objects) for key in ("num_lidar_pts", "num_radar_pts")}
        annotations = _annotations(
            global_from_ego if ego_from_lidar is None else global_from_ego @ ego_from_lidar,
            np.array(boxes, dtype=np.float64).reshape(-1, 9),
            [reader.names.get(int(o["bbox_label_3d"]), "") for o in objects],
            [o["num_lidar_pts"] for o in objects] if counted["num_lidar_pts"] else None,
            [o["num_radar_pts"] for o in objects] if counted["num_radar_pts"] else None,
        )
    return Frame(
        token=_text(info["token"]),
        scene_token=_text(info.get("scene_token", "")),
        scene_name=_text(info.get("scene_name", "")),
        timestamp_us=reader.time_us(info["timestamp"]),
        cameras=tuple(views),
        ego_from_bev=np.eye(4) if ego_from_lidar is None else ego_from_lidar,
        global_from_ego=global_from_ego,
        lidar_path=reader.images(lidar["lidar_path"], "LIDAR_TOP") if lidar.get("lidar_path") else "",
        annotations=annotations,
    )


def _lidar_of_mmdet3d(info: Mapping[str, Any], lidar: Mapping[str, Any]) -> NDArray[np.float64] | None:
    """ego_from_lidar [4, 4] as stated, or by way of a camera that has both poses; None where no LiDAR is known."""
    if "lidar2ego" in lidar:
        return nearest_rigid(lidar["lidar2ego"])
    for image in info["images"].values():
        if "cam2ego" in image and "lidar2cam" in image:
            return nearest_rigid(image["cam2ego"]) @ nearest_rigid(image["lidar2cam"])
    return None


def _mounting_of_mmdet3d(image: Mapping[str, Any], ego_from_lidar: NDArray[np.float64] | None) -> NDArray[np.float64]:
    if "cam2ego" in image:
        return nearest_rigid(image["cam2ego"])
    if ego_from_lidar is None:
        raise ValueError("a camera has no cam2ego, and there is no LiDAR (lidar_points.lidar2ego) to find it by")
    return ego_from_lidar @ invert_pose(nearest_rigid(image["lidar2cam"]))


def frame_of_infos(info: dict, reader: EntryReader) -> Frame:
    global_from_ego = pose(info["ego2global_rotation"], info["ego2global_translation"])
    views = []
    for name in camera_order(info["cams"]):
        cam = info["cams"][name]
        path = reader.images(cam["data_path"], name)
        intrinsics = cam["camera_intrinsics"] if "camera_intrinsics" in cam else cam["cam_intrinsic"]
        views.append(
            CameraView(
                name=name,
                image_path=path,
                camera=reader.camera(name, intrinsics, path, cam, _OLD_CAMERA_FIELDS),
                ego_from_camera=pose(cam["sensor2ego_rotation"], cam["sensor2ego_translation"]),
                global_from_ego=pose(cam["ego2global_rotation"], cam["ego2global_translation"]),
                timestamp_us=reader.time_us(cam.get("timestamp", info["timestamp"])),
                sample_data_token=cam.get("sample_data_token", ""),
            )
        )
    ego_from_lidar = _lidar_of_infos(info, views, global_from_ego)
    annotations = None
    if (labels := old_boxes(info)) is not None:
        boxes, velocity, names = labels
        if "animal" in names:
            warn_once(
                "info file: objects named animal are nuScenes' category, which is no class; rename a class of your own"
            )
        if ego_from_lidar is None and len(boxes):
            raise ValueError("gt_boxes lie in the frame of the LiDAR, but lidar2ego_rotation is missing")
        annotations = _annotations(
            global_from_ego if ego_from_lidar is None else global_from_ego @ ego_from_lidar,
            np.concatenate([from_layout(boxes, reader.box_layout), velocity], 1),
            ["" if name in WITHOUT_CLASS else name for name in names],
            info.get("num_lidar_pts"),
            info.get("num_radar_pts"),
            names,  # what is no detection class kept its category's name
        )
    lidar_path = info.get("lidar_path")
    occupancy = info.get("occ_gt_path")
    return Frame(
        token=_text(info["token"]),
        scene_token=_text(info.get("scene_token", "")),
        scene_name="",
        timestamp_us=reader.time_us(info["timestamp"]),
        cameras=tuple(views),
        ego_from_bev=np.eye(4) if ego_from_lidar is None else ego_from_lidar,
        global_from_ego=global_from_ego,
        lidar_path=reader.images(lidar_path, "LIDAR_TOP") if lidar_path else "",
        annotations=annotations,
        occupancy_path=str(path_below(reader.images.root, occupancy)) if occupancy else "",
        can_signals=np.array(info["can_bus"][SIGNALS], dtype=np.float64) if "can_bus" in info else None,
    )


def _lidar_of_infos(
    info: Mapping[str, Any], views: Sequence[CameraView], global_from_ego: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """ego_from_lidar [4, 4] as stated, or by way of a camera whose pose in the LiDAR frame is stated; else None."""
    if "lidar2ego_rotation" in info:
        return pose(info["lidar2ego_rotation"], info["lidar2ego_translation"])
    for view in views:
        cam = info["cams"][view.name]
        if "sensor2lidar_rotation" in cam:
            lidar_from_camera = pose(cam["sensor2lidar_rotation"], cam["sensor2lidar_translation"])
            return invert_pose(global_from_ego) @ view.global_from_camera @ invert_pose(lidar_from_camera)
    return None
