"""OpenScene and NAVSIM, nuPlan's drives with eight cameras at 2 Hz, to Frames: one pickle for each drive.

    <root>/navsim_logs/<split>/<log>.pkl      NAVSIM; OpenScene has meta_datas/<split>
    <root>/sensor_blobs/<split>/<log>/CAM_F0/<name>.jpg

A pickle is a list of samples with `cams`, `ego2global_*`, `anns` and more. Poses named `sensor2lidar` and boxes lie in
the frame of the car itself, as its converter has them (OpenDriveLab/OpenScene, DriveEngine/process_data); velocities
are turned by `lidar2ego` too. Nothing in a pickle is run (core/pickles.py).

Shapes: n boxes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....core.errors import DataError, library_errors
from ....core.frames import SEEN_POINTS, Annotations, CameraView, Frame
from ....core.once import warn_once
from ....core.pickles import load_pickle
from ....geometry import (
    CameraModel,
    brown_conrady,
    nearest_rigid,
    pose,
    quaternion_to_matrix,
    rotation_z,
    transform_points,
    yaw_of,
)
from ..cameras import ImageSizes, camera_order
from ..checks import INT64, check_frames
from ..choices import classes_of, names_of
from ..file_paths import path_below
from ..links import link_frames
from ..registry import Conventions, register_reader

AXLE_HEIGHT_M = 0.4385
"""Of nuPlan's rear axle over the ground, as py123d builds its car (1.777 m high, its middle 0.45 m over the axle)."""
USUAL_SPLIT = "mini"
_LAYOUTS = ("navsim_logs", "meta_datas")
_FIX = "fetch this log again"
_SIGNALS = [7, 8, 9, 13, 14, 15, 10, 11, 12]
"""Of `can_bus`: acceleration, turn rate and velocity, as Frame orders them; the file has velocity before turn rate."""


@register_reader(
    "openscene",
    "OpenScene v1.1 and NAVSIM: nuPlan's eight cameras at 2 Hz, with its boxes",
    Conventions(
        boxes="gravity centre, l w h and yaw in the car's frame, upright in the global one; 7 classes of nuPlan",
        quaternions="w x y z",
        time="microseconds; cameras have the time of their sample",
        cameras="CAM_F0 first, then alphabetically; Brown-Conrady lenses; sizes from one image of each camera, or "
        "option image_size_px",
        frames="EGO: x ahead, y left, z up, on the ground below the rear axle (ego_height_m); BEV maps lie there",
    ),
)
def read_openscene(
    root: str | Path,
    split: str = "",
    logs: str | Sequence[str] = "",
    stride: int = 1,
    images: str | Path = "",
    image_size_px: tuple[int, int] | None = None,
    classes: Mapping[str, str] | None = None,
    ego_height_m: float = AXLE_HEIGHT_M,
) -> list[Frame]:
    """Keyframes of a split, or of some of its logs.

    root: the folder with ``navsim_logs`` or ``meta_datas``, one with pickles, or one pickle. split: by default mini, or
    the pickles in ``root`` itself. stride: every how many samples. images: folder of the logs' images, default
    ``sensor_blobs/<split>`` beside ``navsim_logs`` or beside the pickles. image_size_px: (width, height) of all images.
    classes: nuPlan's category -> class; categories that it lacks have none. ego_height_m: of nuPlan's
    frame, which is at the rear axle, over the ground.

    Every box counts as seen. Samples of a test split have no labels. Raises DataError naming the file and the sample.
    """
    if not isinstance(stride, int) or stride < 1:
        raise DataError(f"stride {stride}: give a whole number of samples, 1 or more")
    paths = log_files(Path(root), split, names_of(logs))
    reader = _Reader(
        Path(images) if str(images) else _image_folder(paths[0].parent, split),
        ImageSizes(image_size_px),
        classes,
        pose(np.eye(3), [0.0, 0.0, -float(ego_height_m)]),
        {},
    )
    frames = [frame for path in paths for frame in reader.frames(path, stride)]
    frames = link_frames(frames)
    check_frames(frames)
    return frames


def log_files(root: Path, split: str, logs: Sequence[str] = ()) -> list[Path]:
    """The pickles of a split, sorted; split '': mini, or those in ``root`` itself. One pickle may be the root.

    Raises DataError where there is none, or one of ``logs`` is missing.
    """
    wanted = split or USUAL_SPLIT
    folders = [root / name / wanted for name in _LAYOUTS] + [root / wanted]
    if not split or root.absolute().name == split:
        folders.append(root)
    found = [root] if root.is_file() else next((paths for f in folders if (paths := sorted(f.glob("*.pkl")))), [])
    if not found:
        places = [path.parent for path in sorted(root.glob("*/*.pkl")) + sorted(root.glob("*/*/*.pkl"))]
        there = ", ".join(dict.fromkeys(place.name for place in places)) or "none"
        raise DataError(
            f"{root}: no navsim_logs/{wanted}/*.pkl or meta_datas/{wanted}/*.pkl; name folder and split; it has {there}"
        )
    if missing := set(logs) - {path.stem for path in found}:
        raise DataError(f"{found[0].parent}: no {min(missing)}.pkl; it has {found[0].stem} and {len(found) - 1} others")
    return [path for path in found if not logs or path.stem in logs]


def _image_folder(logs: Path, split: str) -> Path:
    """Where the images of the pickles in a folder lie: beside navsim_logs, or else beside the folder or in it."""
    if logs.parent.name in ("", ".."):  # a relative path, which does not say how the folder above is named
        logs = logs.resolve()
    base = logs.parent.parent if logs.parent.name in _LAYOUTS else logs.parent
    places = [base / "sensor_blobs" / (split or logs.name), logs / "sensor_blobs" / (split or USUAL_SPLIT)]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        warn_once(f"{places[0]}: no such folder, but the images of {logs} should be there; give the option images")
    return found or places[0]


@dataclass
class _Reader:
    images: Path
    sizes: ImageSizes
    classes: Mapping[str, str] | None
    axle_from_ego: NDArray[np.float64]
    cameras: dict[tuple[str, bytes, bytes], CameraModel]

    def frames(self, path: Path, stride: int) -> list[Frame]:
        content = load_pickle(path)
        if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
            raise DataError(f"{path}: holds {type(content).__name__}, no list of samples; give a log of OpenScene")
        if not content:
            raise DataError(f"{path}: holds no samples; {_FIX}")
        out = []
        for number, entry in enumerate(content[::stride]):
            token = str(entry.get("token", f"number {number * stride}"))[:100]
            with (
                library_errors(DataError, f"{path}: sample {token}", _FIX),
                np.errstate(over="ignore", invalid="ignore"),  # the checks name what is not finite
            ):
                out.append(self.frame(entry, path.stem))
        return out

    def frame(self, entry: Mapping[str, Any], log: str) -> Frame:
        global_from_axle = pose(np.asarray(entry["ego2global_rotation"], float), entry["ego2global_translation"])
        time_us = int(entry["timestamp"])
        if not -INT64 <= time_us < INT64:
            raise ValueError("its timestamp is no time")
        global_from_ego = global_from_axle @ self.axle_from_ego
        views = []
        for name in camera_order(entry["cams"]):
            about = entry["cams"][name]
            path = str(path_below(self.images, about["data_path"]))
            mounted = np.eye(4)
            mounted[:3, :3], mounted[:3, 3] = about["sensor2lidar_rotation"], about["sensor2lidar_translation"]
            views.append(
                CameraView(
                    name=name,
                    camera=self.camera(name, about, path),
                    ego_from_camera=pose(np.eye(3), -self.axle_from_ego[:3, 3]) @ nearest_rigid(mounted),
                    global_from_ego=global_from_ego,
                    timestamp_us=time_us,
                    image_path=path,
                )
            )
        signals = entry.get("can_bus")
        return Frame(
            token=_text(entry["token"]),
            scene_token=_text(entry.get("scene_token") or log),
            scene_name=_text(entry.get("scene_name") or log),
            timestamp_us=time_us,
            cameras=tuple(views),
            global_from_ego=global_from_ego,
            annotations=self.annotations(entry, global_from_axle) if entry.get("anns") else None,
            can_signals=None if signals is None else np.asarray(signals, float)[_SIGNALS],
        )

    def camera(self, name: str, about: Mapping[str, Any], path: str) -> CameraModel:
        matrix = np.array(about["cam_intrinsic"], dtype=np.float64)
        lens = np.array(about.get("distortion", ()), dtype=np.float64).ravel()
        key = name, matrix.tobytes(), lens.tobytes()
        if key not in self.cameras:
            self.cameras[key] = brown_conrady(matrix, *self.sizes(name, matrix, path), lens.tolist())
        return self.cameras[key]

    def annotations(self, entry: Mapping[str, Any], global_from_axle: NDArray[np.float64]) -> Annotations:
        """Boxes are upright in the global frame; the files have the difference of yaws."""
        notes = entry["anns"]
        categories = [str(name) for name in np.asarray(notes["gt_names"]).ravel()]
        n = len(categories)
        boxes = np.asarray(notes["gt_boxes"], dtype=np.float64).reshape(n, 7)
        velocity = np.asarray(notes["gt_velocity_3d"], dtype=np.float64).reshape(n, 3)
        turned = global_from_axle[:3, :3]
        if "lidar2ego_rotation" in entry:
            turned = turned @ quaternion_to_matrix(np.asarray(entry["lidar2ego_rotation"], float))
        tokens = {key: [str(token) for token in notes.get(key, [""] * n)] for key in _TOKENS}
        return Annotations(
            names=classes_of(categories, self.classes),
            centre_global_m=transform_points(global_from_axle, boxes[:, :3]),
            rotation_global=rotation_z(boxes[:, 6] + yaw_of(global_from_axle[:3, :3])),
            size_lwh_m=boxes[:, 3:6],
            velocity_global_mps=(velocity @ turned.T)[:, :2],
            attributes=[""] * n,
            num_lidar_points=np.full(n, SEEN_POINTS),
            num_radar_points=np.zeros(n, np.int64),
            tokens=tokens["instance_tokens"],
            instance_tokens=tokens["track_tokens"],
            categories=categories,
        )


_TOKENS = ("instance_tokens", "track_tokens")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"tokens and names are texts, not {str(value)[:60]!r}")
    return value
