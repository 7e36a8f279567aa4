"""Single driving images with 3D boxes in camera coordinates, in COCO's layout, to Frames of one camera each.

    <root>/annotations/mono_<split>.json     what `drivestack synthesize --labels mono` writes; fields in
                                             data_tools/synthetic/files/coco.py
    <root>/images/<split>/<file_name>

Needed are, of an image, ``id``, ``file_name``, ``width``, ``height``, ``camera_intrinsic`` [3, 3]; of an annotation
``image_id``, ``category_id``, ``centre_camera_m`` [3], ``rotation_camera`` (w, x, y, z: camera from box, whose x is the
heading) and ``size_lwh_m`` [3]; ``speed_mps``, ``attribute``, ``num_lidar_pts`` where they are known, and of an image
``camera_distortion`` and ``camera_model`` where its camera has a lens (lenses.py).

A single image knows no car: the EGO frame is the camera's, turned so that x is ahead and z up, on the ground at
``camera_height_m`` below it. Every image is a scene of its own.

Shapes: n boxes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...core.errors import LIBRARY_ERRORS, DataError, library_errors
from ...core.frames import SEEN_POINTS, Annotations, CameraView, Frame
from ...geometry import CameraModel, pose, quaternion_to_matrix, transform_points
from .checks import check_frames
from .file_paths import path_below
from .lenses import LensNotes, LensUse
from .registry import Conventions, register_reader

AHEAD = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])  # EGO from a camera that looks ahead
CAMERA = "CAMERA"

Row = dict[str, Any]


@register_reader(
    "camera_images",
    "single images with 3D boxes in camera coordinates (COCO layout), as `synthesize --labels mono` writes",
    Conventions(
        boxes="centre, (l, w, h) and quaternion in the camera's coordinates, x right, y down, z ahead",
        quaternions="w, x, y, z",
        time="none: microseconds count the images",
        cameras="one, whichever took the image; a pinhole, or with the lens that the image states; sizes from the file",
        frames="EGO is the camera's frame turned to x ahead, z up, on the ground; BEV maps live there",
    ),
)
def read_camera_images(
    root: str | Path, split: str = "train", camera_height_m: float = 1.5, lens: LensUse = "used"
) -> list[Frame]:
    """Frames of one split, one camera each. lens: "ignored" takes cameras as pinholes whatever their images state.

    Raises DataError naming the file, image or annotation that cannot be used.
    """
    path = Path(root) / "annotations" / f"mono_{split}.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; it lists images with their 3D boxes (`synthesize --labels mono`)"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); write it again") from None
    with library_errors(DataError, path, "its images, annotations and categories must be lists as in COCO"):
        names = {row["id"]: str(row["name"]) for row in content["categories"]}
        own: dict[Any, list[Row]] = {row["id"]: [] for row in content["images"]}
        if len(own) < len(content["images"]):
            raise DataError(f"{path}: two images have one id; number them anew")
        for row in content["annotations"]:
            if row["image_id"] not in own or row["category_id"] not in names:
                raise DataError(f"{path}: annotation {row.get('id')} names an image or a category that is not there")
            own[row["image_id"]].append(row)
        images = list(content["images"])
    ego_from_camera = pose(AHEAD, [0.0, 0.0, float(camera_height_m)])
    folder = Path(root) / "images" / split
    rig = _Rig(ego_from_camera, LensNotes(str(path), lens))
    frames = [_frame(row, own[row["id"]], names, folder, rig, path, i) for i, row in enumerate(images)]
    rig.lenses.report()
    check_frames(frames)
    return frames


class _Rig(NamedTuple):
    ego_from_camera: NDArray[np.float64]
    lenses: LensNotes


def _frame(
    row: Row, boxes: list[Row], names: dict[Any, str], folder: Path, rig: _Rig, path: Path, number: int
) -> Frame:
    where = f"{path}: image {row.get('file_name', row['id'])}"
    try:
        token = str(row.get("sample_data_token") or row["file_name"])
        camera = CameraModel(np.array(row["camera_intrinsic"], float), int(row["width"]), int(row["height"]))
        view = CameraView(
            name=CAMERA,
            camera=rig.lenses.add(str(row.get("camera", CAMERA)), camera, row, row),
            ego_from_camera=rig.ego_from_camera,
            global_from_ego=np.eye(4),
            timestamp_us=number,
            image_path=str(path_below(folder, row["file_name"])),
            sample_data_token=token,
        )
        labels = _annotations(boxes, names, rig.ego_from_camera)
    except LIBRARY_ERRORS as error:
        raise DataError(
            f"{where}: {type(error).__name__}: {error}; give file_name, width, height and camera_intrinsic, and "
            "each of its boxes centre_camera_m, rotation_camera (w, x, y, z) and size_lwh_m"
        ) from None
    return Frame(token, token, token, number, (view,), np.eye(4), annotations=labels)


def _annotations(rows: list[Row], names: dict[Any, str], ego_from_camera: Any) -> Annotations:
    n = len(rows)
    quaternions = np.array([row["rotation_camera"] for row in rows], float).reshape(n, 4)
    rotation = ego_from_camera[:3, :3] @ quaternion_to_matrix(quaternions) if n else np.zeros((0, 3, 3))
    speed = np.array([row.get("speed_mps", np.nan) for row in rows], float)
    centre = np.array([row["centre_camera_m"] for row in rows], float).reshape(n, 3)
    return Annotations(
        names=[names[row["category_id"]] for row in rows],
        centre_global_m=transform_points(ego_from_camera, centre),
        rotation_global=rotation,
        size_lwh_m=np.array([row["size_lwh_m"] for row in rows], float).reshape(n, 3),
        velocity_global_mps=speed[:, None] * rotation[:, :2, 0],
        attributes=[str(row.get("attribute", "")) for row in rows],
        num_lidar_points=np.array([row.get("num_lidar_pts", SEEN_POINTS) for row in rows], np.int64),
        num_radar_points=np.zeros(n, np.int64),
        tokens=[str(row.get("sample_annotation_token", "")) for row in rows],
        instance_tokens=[""] * n,
    )
