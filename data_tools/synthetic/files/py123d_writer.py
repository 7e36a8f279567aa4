"""Frames as Arrow logs of py123d 0.7, a log for each scene; what they hold: data_tools/readers/logs/py123d_files.py.

Boxes, poses, cameras and the car's own signals go in. Attributes, radar points, voxels and lanes have no place there.
"""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ....core.decode import read_file
from ....core.errors import DataError
from ....core.files import atomic_path, file_name
from ....core.frames import CameraView, Frame
from ....geometry import CameraModel, matrix_to_quaternion
from ...readers.logs.py123d import BOXES, EGO
from ...readers.logs.py123d_files import import_arrow
from ...readers.logs.py123d_labels import LABELS
from .names import CATEGORY_OF_CLASS

VERSION = "0.7.0"
_LABEL_CLASSES = {"nuscenes": "NuScenesBoxDetectionLabel"}
_LABEL_MODULE = "py123d.parser.registry"
_NAMESPACE = uuid.UUID("123D123D-123D-123D-123D-123D123D123D")
_CAR = {"vehicle_name": "synthetic", "width": 1.8, "length": 4.6, "height": 1.6, "wheel_base": 2.8}
_CENTRE = [1.4, 0.0, 0.8, 1.0, 0.0, 0.0, 0.0]  # half its height over the ground, where the EGO frame lies
_HERE = [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]

_SIDES = "f0 b0 l0 l1 l2 r0 r1 r2"
CAMERA_IDS: Mapping[str, int] = (
    {f"pcam_{side}": i for i, side in enumerate(f"{_SIDES} stereo_l stereo_r".split())}
    | {"fmcam_l": 10, "fmcam_r": 11, "pcam_d0": 19}
    | {f"ftcam_{side}": i for side, i in zip(_SIDES.split(), (12, 20, 14, 15, 21, 16, 17, 22))}
    | {"ftcam_tele_f0": 13, "ftcam_tele_b0": 18}
)
"""Name of a camera's file -> number of its place on the car, as py123d has them for pinhole, fisheye and f-theta."""
_PREFIX = {"pinhole": "pcam", "fisheye_mei": "fmcam", "ftheta": "ftcam"}


def write_py123d(
    frames: Sequence[Frame],
    root: str | Path,
    *,
    dataset: str = "nuscenes",
    split: str = "train",
    label_class: str = "",
    images: str | Path | None = None,
    compression: str | None = None,
) -> list[Path]:
    """Write ``<root>/logs/<dataset>_<split>/<scene>/*.arrow`` and return the folders of the logs.

    dataset: as py123d names it; label_class: of its classes of labels, whose names the frames' categories (or classes)
    must be, default: that of the data set; images: folder below which the images lie, of which only paths are written;
    None: the images themselves, their files unchanged. compression: None, "lz4" or "zstd". Frames whose tokens are 32
    hexadecimal digits keep them.

    Raises DataError for a camera that py123d has no model or place for or that changes within a scene, and for objects
    that are none of its labels.
    """
    kind = label_class or _LABEL_CLASSES.get(dataset, "DefaultBoxDetectionLabel")
    folders: list[Path] = []
    for scene in dict.fromkeys(frame.scene_token for frame in frames):
        own = sorted((f for f in frames if f.scene_token == scene), key=lambda f: f.timestamp_us)
        name = file_name(own[0].scene_name or scene, "scene name")
        folder = Path(root) / "logs" / f"{dataset}_{split}" / name
        files = _Files(folder, None if images is None else Path(images), compression)
        rows = {EGO: files.ego(own), BOXES: files.boxes(own, kind)} | files.cameras(own)
        if folder in folders:
            raise DataError(f"{folder}: a second scene {name}; scenes become logs of their names")
        about: dict[str, Any] = {"dataset": dataset, "split": f"{dataset}_{split}", "log_name": name}
        about |= {"location": None, "version": VERSION, "map_metadata": None}
        files.sync(own, {key: numbers for key, numbers in rows.items() if numbers}, about)
        folders.append(folder)
    return folders


class _Files:
    """Writes the files of one log; each method returns the row that belongs to each frame, None where none does."""

    def __init__(self, folder: Path, images: Path | None, compression: str | None) -> None:
        self.folder, self.images, self.compression = folder, images, compression
        self.arrow = import_arrow(folder)

    def write(self, name: str, types: Mapping[str, Any], columns: Mapping[str, list], about: Mapping[str, Any]) -> None:
        prefix = "" if name == "sync" else f"{name}."
        arrow = self.arrow
        schema = arrow.schema([(prefix + key, kind) for key, kind in types.items()])
        schema = schema.with_metadata({b"metadata": msgspec.msgpack.encode(about)})
        options = arrow.ipc.IpcWriteOptions(compression=self.compression)
        count = len(next(iter(columns.values())))
        step = 10 if types.get("data") == arrow.binary() else 1000  # as py123d: few images at a time
        with (
            atomic_path(self.folder / f"{name}.arrow", sync=False) as path,
            arrow.OSFile(str(path), "wb") as file,
            arrow.ipc.new_file(file, schema, options=options) as writer,
        ):
            for first in range(0, count, step):
                part = {prefix + key: values[first : first + step] for key, values in columns.items()}
                writer.write_batch(arrow.record_batch(part, schema=schema))

    def list_of(self, width: int) -> Any:
        return self.arrow.list_(self.arrow.float64(), width)

    def ego(self, frames: Sequence[Frame]) -> list[int | None]:
        arrow = self.arrow
        types = {"timestamp_us": arrow.int64(), "imu_se3": self.list_of(7), "dynamic_state_se3": self.list_of(9)}
        signals = [None if f.can_signals is None else np.roll(f.can_signals, 3).tolist() for f in frames]
        columns: dict[str, list] = {
            "timestamp_us": [f.timestamp_us for f in frames],
            "imu_se3": [_numbers(f.global_from_ego) for f in frames],
            "dynamic_state_se3": signals,
        }
        self.write(EGO, types, columns, _CAR | {"center_to_imu_se3": _CENTRE, "rear_axle_to_imu_se3": _HERE})
        return list(range(len(frames)))

    def boxes(self, frames: Sequence[Frame], kind: str) -> list[int | None]:
        labelled = [frame for frame in frames if frame.annotations is not None]
        if not labelled:
            return []
        arrow = self.arrow
        types = {
            "timestamp_us": arrow.int64(),
            "bounding_box_se3": arrow.list_(self.list_of(10)),
            "track_token": arrow.list_(arrow.string()),
            "label": arrow.list_(arrow.uint16()),
            "velocity_3d": arrow.list_(self.list_of(3)),
            "num_lidar_points": arrow.list_(arrow.int32()),
        }
        columns: dict[str, list] = {"timestamp_us": [frame.timestamp_us for frame in labelled]}
        columns |= {key: [] for key in types if key != "timestamp_us"}
        for frame in labelled:
            for key, values in _boxes(frame, LABELS[kind], kind).items():
                columns[key].append(values)
        self.write(BOXES, types, columns, {"box_detection_label_class": f"{_LABEL_MODULE}.{kind}"})
        counter = iter(range(len(labelled)))
        return [None if frame.annotations is None else next(counter) for frame in frames]

    def cameras(self, frames: Sequence[Frame]) -> dict[str, list[int | None]]:
        arrow, out = self.arrow, {}
        types = {
            "timestamp_us": arrow.int64(),
            "data": arrow.binary() if self.images is None else arrow.string(),
            "camera_to_global_se3": self.list_of(7),
            "exposure_factor": arrow.float32(),
        }
        for name, (identity, about) in _places(frames).items():
            seen = [next((view for view in frame.cameras if view.name == name), None) for frame in frames]
            there = [view for view in seen if view is not None]
            columns: dict[str, list] = {
                "timestamp_us": [view.timestamp_us for view in there],
                "data": [self._image(view) for view in there],
                "camera_to_global_se3": [_numbers(view.global_from_camera) for view in there],
                "exposure_factor": [None] * len(there),
            }
            self.write(f"camera.{identity}", types, columns, about)
            counter = iter(range(len(there)))
            out[f"camera.{identity}"] = [None if view is None else next(counter) for view in seen]
        return out

    def _image(self, view: CameraView) -> bytes | str:
        if self.images is not None:
            return Path(view.image_path).relative_to(self.images).as_posix()
        if view.encoded is not None:
            return view.encoded.read()
        if view.image is not None:
            file = io.BytesIO()
            Image.fromarray(view.image).save(file, "png")
            return file.getvalue()
        return read_file(view.image_path, _wrong(view), "write its path, or the image")

    def sync(self, frames: Sequence[Frame], rows: Mapping[str, list[int | None]], about: Mapping[str, Any]) -> None:
        arrow = self.arrow
        types = {"sync.uuid": arrow.uuid(), "sync.timestamp_us": arrow.int64()} | dict.fromkeys(rows, arrow.int64())
        place = f"{about['split']}:{about['log_name']}"
        columns: dict[str, list] = {
            "sync.uuid": [_uuid(frame, place).bytes for frame in frames],
            "sync.timestamp_us": [frame.timestamp_us for frame in frames],
        }
        self.write("sync", types, columns | dict(rows), about)


def _boxes(frame: Frame, words: Sequence[str], kind: str) -> dict[str, list]:
    notes = frame.annotations
    assert notes is not None
    labels = []
    for i, name in enumerate(notes.names):
        category = notes.categories[i] if notes.categories else ""
        found = [word for word in (category, CATEGORY_OF_CLASS.get(name, name)) if word in words]
        if not found:
            raise DataError(f"sample {frame.token}: object {category or name!r} is none of py123d's {kind}")
        labels.append(words.index(found[0]))
    quaternions = matrix_to_quaternion(notes.rotation_global)
    velocity = notes.velocity_global_mps
    return {
        "bounding_box_se3": np.concatenate([notes.centre_global_m, quaternions, notes.size_lwh_m], 1).tolist(),
        "track_token": list(notes.instance_tokens),
        "label": labels,
        "velocity_3d": [None if np.isnan(v).any() else [*v.tolist(), 0.0] for v in velocity],
        "num_lidar_points": notes.num_lidar_points.tolist(),
    }


def _places(frames: Sequence[Frame]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Camera -> name of its file and its metadata, each in the place on the car where it looks to."""
    views = _constant_views(frames)
    out: dict[str, tuple[str, dict[str, Any]]] = {}
    used: set[str] = set()
    for view in sorted(views.values(), key=lambda view: abs(_yaw_deg(view))):
        about = _about(view)
        prefix, yaw = _PREFIX[about["camera_model"]], _yaw_deg(view)
        side = "f" if abs(yaw) < 20 else "b" if abs(yaw) > 160 else "l" if yaw > 0 else "r"
        free = [key for key in CAMERA_IDS if key.startswith(prefix) and key not in used]
        if not free:
            raise DataError(f"camera {view.name}: py123d has no place for so many {about['camera_model']} cameras")
        identity = next((key for key in free if key.startswith(f"{prefix}_{side}")), free[0])
        used.add(identity)
        out[view.name] = identity, about | {"camera_id": CAMERA_IDS[identity]}
    return {name: out[name] for name in views}


def _constant_views(frames: Sequence[Frame]) -> dict[str, CameraView]:
    """Camera -> its view in the first frame of a scene that has it, which stands for all of them: a log has room for
    one calibration of a camera."""
    views: dict[str, CameraView] = {}
    for frame in frames:
        for view in frame.cameras:
            first = views.setdefault(view.name, view)
            same_camera = first.image_size_px == view.image_size_px and _close(first.camera.row, view.camera.row)
            if same_camera and _close(first.ego_from_camera, view.ego_from_camera):
                continue
            what = "mounting (ego_from_camera)" if same_camera else "intrinsics, lens or size"
            raise DataError(
                f"sample {frame.token}, camera {view.name}: its {what} changed within the scene, and a log has "
                "one; make a scene of the frames of each calibration"
            )
    return views


def _close(a: NDArray[np.float64], b: NDArray[np.float64]) -> bool:
    """Up to rounding, as poses that were multiplied with those of other sensors have it."""
    return np.allclose(a, b, rtol=1e-9, atol=1e-7)


def _yaw_deg(view: CameraView) -> float:
    return float(np.degrees(np.arctan2(view.ego_from_camera[1, 2], view.ego_from_camera[0, 2])))


def _about(view: CameraView) -> dict[str, Any]:
    camera = view.camera
    kind = "pinhole" if camera.lens is None else camera.lens.kind
    if kind not in _MODELS:
        raise DataError(f"camera {view.name}: py123d has no {kind} lens; it has {', '.join(_MODELS)}")
    size = {"width": camera.width_px, "height": camera.height_px}
    mounted = {"camera_name": view.name, "camera_to_imu_se3": _numbers(view.ego_from_camera)}
    return mounted | size | _MODELS[kind](camera, view.name)


def _pinhole(camera: CameraModel, name: str) -> dict[str, Any]:
    (fx, skew, cx), (_, fy, cy), _ = camera.intrinsics.tolist()
    lens = list(camera.lens.coefficients) if camera.lens else None
    if lens and any(lens[5:]):
        raise DataError(f"camera {name}: py123d has five coefficients of a Brown-Conrady lens, it has {lens}")
    return {
        "camera_model": "pinhole",
        "intrinsics": [fx, fy, cx, cy, skew],
        "distortion": lens and lens[:5],
        "is_undistorted": False,
    }


def _mei(camera: CameraModel, name: str) -> dict[str, Any]:
    assert camera.lens is not None
    xi, *distortion = camera.lens.coefficients
    k = camera.intrinsics
    if k[0, 1]:
        raise DataError(f"camera {name}: py123d has no skew of a MEI lens, it has {k[0, 1]}")
    return {
        "camera_model": "fisheye_mei",
        "mirror_parameter": xi,
        "distortion": distortion,
        "projection": [float(k[0, 0]) * (1 + xi), float(k[1, 1]) * (1 + xi), *k[:2, 2].tolist()],
    }


def _f_theta(camera: CameraModel, name: str) -> dict[str, Any]:
    assert camera.lens is not None
    (focal, skew, cx), (skew_v, focal_v, cy), _ = camera.intrinsics.tolist()
    if skew or skew_v or focal != focal_v or any(camera.lens.coefficients[4:]):
        raise DataError(f"camera {name}: py123d has f-theta lenses of degree 5 with one focal length and no skew")
    forward = [0.0, focal, *(c * focal for c in camera.lens.coefficients[:4])]
    angles = np.linspace(0, camera.lens.limit_rad, 200)[1:]
    pixels = np.polyval(forward[::-1], angles)
    powers = (pixels[:, None] / pixels[-1]) ** np.arange(1, 6)  # the inverse as well as five powers can
    backward = np.linalg.lstsq(powers, angles, rcond=None)[0] / pixels[-1] ** np.arange(1, 6)
    return {"camera_model": "ftheta", "intrinsics": [cx, cy, *forward, 0.0, *backward.tolist()]}


_MODELS: Mapping[str, Callable[[CameraModel, str], dict[str, Any]]] = {
    "pinhole": _pinhole,
    "brown_conrady": _pinhole,
    "mei": _mei,
    "f_theta": _f_theta,
}


def _numbers(pose: NDArray[np.float64]) -> list[float]:
    return [*pose[:3, 3].tolist(), *matrix_to_quaternion(pose[:3, :3]).tolist()]


def _uuid(frame: Frame, place: str) -> uuid.UUID:
    try:
        return uuid.UUID(hex=frame.token)
    except ValueError:
        return uuid.uuid5(_NAMESPACE, f"{place}:{frame.timestamp_us}")


def _wrong(view: CameraView) -> Callable[[str, str], DataError]:
    return lambda problem, fix: DataError(f"camera {view.name}: {view.source}: {problem}; {fix}")
