"""mmdetection3d's own data sets, models and nuScenes score on any frames that drivestack reads.

    frames = drivestack.read("data/street", version="v1.0-trainval", split="val")
    write_infos(frames, "data/street/nuscenes_infos_val.pkl")              # what its NuScenesDataset reads

and in a config `custom_imports = dict(imports=["drivestack.compat.openmmlab", "drivestack.compat.mmdet3d"])` for
`val_evaluator = dict(type="drivestack.NuScenesMetric", ...)`: its NuScenesMetric, also without a GPU.

mmdet3d 1.4 (Apache 2.0) is imported only by the metric. Shapes: n boxes.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from shapely import MultiPoint, box

from ..core.cameras import in_published_order
from ..core.errors import DataError
from ..core.files import atomic_path
from ..core.frames import CameraView, Frame
from ..core.once import warn_once
from ..core.registries import METRICS
from ..data_tools.labels.mono_targets import corners_in_camera, edge_pixels
from ..data_tools.readers.lenses import lens_fields
from ..geometry import invert_pose, transform_points

CLASSES = (
    "car",
    "truck",
    "trailer",
    "bus",
    "construction_vehicle",
    "bicycle",
    "motorcycle",
    "pedestrian",
    "traffic_cone",
    "barrier",
)
"""In the order of mmdet3d's labels."""

ATTRIBUTES = (
    "cycle.with_rider",
    "cycle.without_rider",
    "pedestrian.moving",
    "pedestrian.standing",
    "pedestrian.sitting_lying_down",
    "vehicle.moving",
    "vehicle.parked",
    "vehicle.stopped",
    "",
)
"""In the order of mmdet3d's attribute labels; the last is none."""

MODALITY = dict(use_camera=True, use_lidar=False, use_radar=False, use_map=False, use_external=False)
"""What a submission must state; mmdet3d states the first two only."""


def write_infos(frames: Iterable[Frame], path: str | Path, version: str = "v1.0-trainval") -> None:
    """Write an info file of mmdet3d 1.1 to 1.4 ("v2"), for monocular and multi-view data sets.

    Its own converter asks the nuScenes devkit for labels and has fixed paths; this one needs frames alone. Images in
    folders ``samples/CAMERA`` are named without it (the data set's ``data_prefix`` has it), others by their full path.
    version: of the nuScenes tables, which the metric reads. LiDAR sweeps are not written.

    Raises:
        DataError: no frames, or images in memory. OutputError: ``path`` cannot be written.
    """
    entries = [_entry(number, frame) for number, frame in enumerate(frames)]
    if not entries:
        raise DataError(f"{path}: no frames to write; read a split that has some")
    categories = {name: label for label, name in enumerate(CLASSES)}
    metainfo = dict(categories=categories, dataset="nuscenes", version=version, info_version="1.1")
    with atomic_path(path) as temporary:
        temporary.write_bytes(pickle.dumps(dict(metainfo=metainfo, data_list=entries)))


def _entry(number: int, frame: Frame) -> dict[str, Any]:
    views = {view.name: view for view in frame.cameras}
    order = in_published_order(views)  # the monocular metric finds cameras by their position
    entry: dict[str, Any] = dict(
        sample_idx=number,
        token=frame.token,
        scene_token=frame.scene_token,
        scene_name=frame.scene_name,
        timestamp=frame.timestamp_us / 1e6,
        ego2global=frame.global_from_ego.tolist(),
        images={name: _image(frame, views[name]) for name in order},
        lidar_points=dict(num_pts_feats=frame.lidar_floats_per_point or 5, lidar2ego=frame.ego_from_bev.tolist()),
    )
    if frame.lidar_path:
        entry["lidar_points"]["lidar_path"] = Path(frame.lidar_path).name
    if frame.annotations is not None:
        entry["instances"] = _instances(frame)
        entry["cam_instances"] = {name: _camera_instances(frame, views[name]) for name in order}
    return entry


def _image(frame: Frame, view: CameraView) -> dict[str, Any]:
    if not view.image_path:
        raise DataError(f"keyframe {frame.token}: {view.source}: mmdet3d reads files; write the image to one")
    if view.camera.lens is not None:
        warn_once(
            f"camera {view.name} has a lens ({view.camera.lens.kind}), which mmdet3d's models do not know: they take "
            "cam2img as a pinhole's; undistort the images to train 3D boxes"
        )
    try:
        lens = lens_fields(view.camera)  # our own reader takes it
    except ValueError as error:
        raise DataError(f"keyframe {frame.token}, camera {view.name}: {error}; undistort the images") from None
    path = Path(view.image_path).absolute()
    in_samples = path.parent.name == view.name and path.parent.parent.name == "samples"
    return dict(
        img_path=path.name if in_samples else str(path),
        cam2img=view.camera.intrinsics.tolist(),
        cam2ego=view.ego_from_camera.tolist(),
        lidar2cam=invert_pose(frame.bev_from_camera(view)).tolist(),
        sample_data_token=view.sample_data_token,
        timestamp=view.timestamp_us / 1e6,
        width=view.camera.width_px,
        height=view.camera.height_px,
        **lens,
    )


def _label(name: str) -> int:
    return CLASSES.index(name) if name in CLASSES else -1  # -1: of no class, as its converter has it


def _instances(frame: Frame) -> list[dict[str, Any]]:
    """Boxes in the BEV frame: gravity centre, l w h, yaw counter-clockwise from x, as mmdet3d has them."""
    labels = frame.annotations
    assert labels is not None
    return [
        dict(
            bbox_3d=row[:7].tolist(),
            bbox_label=_label(labels.names[i]),
            bbox_label_3d=_label(labels.names[i]),
            velocity=row[7:].tolist(),
            num_lidar_pts=int(labels.num_lidar_points[i]),
            num_radar_pts=int(labels.num_radar_points[i]),
            bbox_3d_isvalid=bool(labels.num_lidar_points[i] + labels.num_radar_points[i] > 0),
        )
        for i, row in enumerate(frame.bev_boxes())
    ]


def _camera_instances(frame: Frame, view: CameraView) -> list[dict[str, Any]]:
    """Boxes of the classes that reach into the image, in the camera frame (x right, y down, z ahead).

    Gravity centre, l h w, and the heading turned about y, the way the axis points; velocity along x and z.
    """
    labels = frame.annotations
    assert labels is not None
    camera_from_global = invert_pose(view.global_from_camera)
    centres = transform_points(camera_from_global, labels.centre_global_m)
    rotations = camera_from_global[:3, :3] @ labels.rotation_global
    velocities = np.pad(labels.velocity_global_mps, ((0, 0), (0, 1))) @ camera_from_global[:3, :3].T
    corners = corners_in_camera(centres, rotations, labels.size_lwh_m)
    found = []
    seen = np.isfinite(view.camera.project(centres)[0]).all(1)
    for i in np.flatnonzero(seen & [name in CLASSES for name in labels.names]):
        image_box = _image_box(corners[i], view)
        if image_box is None:
            continue
        (u, v), depth = (values[0] for values in view.camera.project(centres[i : i + 1]))
        length, width, height = labels.size_lwh_m[i].tolist()
        heading = float(np.arctan2(rotations[i, 0, 1], rotations[i, 0, 0]))
        attribute = labels.attributes[i] if labels.attributes[i] in ATTRIBUTES else ""
        found.append(
            dict(
                bbox=image_box,
                bbox_label=_label(labels.names[i]),
                bbox_label_3d=_label(labels.names[i]),
                bbox_3d=[*centres[i].tolist(), length, height, width, heading],
                bbox_3d_isvalid=True,
                velocity=velocities[i, [0, 2]].tolist(),
                center_2d=[float(u), float(v)],
                depth=float(depth),
                attr_label=ATTRIBUTES.index(attribute),
            )
        )
    return found


def _image_box(corners_m: NDArray[np.float64], view: CameraView) -> list[float] | None:
    """Bounds of what lies in the image of the hull of the corners [8, 3] ahead of the camera, as in mmdet3d; through a
    lens, of the edges."""
    if view.camera.lens is None:
        projected = corners_m[corners_m[:, 2] > 0] @ view.camera.intrinsics.T
        pixels = projected[:, :2] / projected[:, 2:]
    else:
        pixels = edge_pixels(corners_m[None], view.camera)[0]
        pixels = pixels[np.isfinite(pixels[:, 0])]
    if not len(pixels):
        return None
    inside = MultiPoint(pixels).convex_hull.intersection(box(0, 0, view.camera.width_px, view.camera.height_px))
    return list(inside.bounds) if inside.area > 0 else None


@METRICS.register_module(name="NuScenesMetric")
def nuscenes_metric(**options: Any) -> Any:
    """mmdet3d's NuScenesMetric, also for boxes of cameras on a CPU and for a model that finds nothing yet.

    options: its own; ``modality`` is by default `MODALITY`, so that `drivestack check-submission` takes its file.
    """
    from mmdet3d.evaluation.metrics import nuscenes_metric as file

    class NuScenesMetric(file.NuScenesMetric):
        def _evaluate_single(
            self, result_path: str, classes: Any = None, result_name: str = "pred_instances_3d"
        ) -> dict[str, float]:
            if any(json.loads(Path(result_path).read_bytes())["results"].values()):
                return super()._evaluate_single(result_path, classes, result_name)
            warn_once(f"{result_path}: no boxes at all, for which the devkit has no score: NDS and mAP are 0")
            return {f"{result_name}_NuScenes/{name}": 0.0 for name in ("NDS", "mAP")}

    file.nusc_box_to_cam_box3d = _camera_boxes  # theirs moves boxes to a GPU by name
    return NuScenesMetric(**{"modality": dict(MODALITY), **options})


def _camera_boxes(boxes: list[Any]) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """Devkit boxes in a camera's frame as mmdet3d's, scores [n, classes + 1] and labels [n]."""
    from mmdet3d.structures import CameraInstance3DBoxes

    rows = np.zeros((len(boxes), 9), dtype=np.float32)
    for row, item in zip(rows, boxes):
        width, length, height = item.wlh
        row[:] = [*item.center, length, height, width, -item.orientation.yaw_pitch_roll[0], *item.velocity[[0, 2]]]
    labels = torch.tensor([int(item.label) for item in boxes], dtype=torch.long)
    scores = torch.zeros((len(boxes), len(CLASSES) + 1))
    scores[torch.arange(len(boxes)), labels] = torch.tensor([float(item.score) for item in boxes])
    return CameraInstance3DBoxes(torch.from_numpy(rows), box_dim=9, origin=(0.5, 0.5, 0.5)), scores, labels
