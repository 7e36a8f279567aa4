"""Logs that py123d converted, of any of its data sets (nuPlan, KITTI-360, PandaSet, PhysicalAI-AV, ...), to Frames.

    <root>/logs/<split>/<log>/*.arrow        files: py123d_files.py; what each data set leaves open: py123d_labels.py

A scene is one log. Read with pyarrow; py123d itself is not needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from ....core.errors import ConfigError, DataError
from ....core.frames import Annotations, CameraView, Frame
from ....core.once import warn_once
from ....geometry import interpolate_poses, invert_pose
from ..cameras import camera_order
from ..checks import check_frames
from ..choices import classes_of, names_of
from ..file_paths import path_below
from ..links import link_frames
from ..nuscenes.reader import DETECTION_CLASS
from ..registry import Conventions, register_reader
from .py123d_files import FIX, IMAGES, LogFile, camera_of, open_log_file, poses_of, reading
from .py123d_labels import CAMERAS, LABELS, MAX_NEIGHBOUR_GAP_S, OBJECT_FRAME, known_counts, known_velocities

EGO, BOXES = "ego_state_se3", "box_detections_se3"
MAX_BEYOND_US = 100_000
"""How far outside the poses of the car an image may lie in time, whose own pose is not stored."""
MAX_POSE_GAP_US = 1_000_000
"""Longest time between two rows of the car with a pose for what lies between them. Logs have a row each 0.1 s, those of
keyframes each 0.5 s, of which one may be missing; braking at 3 m/s^2 a straight line is then 0.4 m off."""


@dataclass(frozen=True)
class _Options:
    cameras: tuple[str, ...]
    stride: int
    images: Path
    classes: Mapping[str, str] | None
    label_names: tuple[str, ...]
    ego_height_m: float | None


@register_reader(
    "py123d",
    "logs converted by py123d 0.7: nuPlan, KITTI-360, PandaSet, PhysicalAI-AV, Argoverse 2, Waymo, nuScenes and others",
    Conventions(
        boxes="gravity centre, quaternion, l w h, in the global frame",
        quaternions="w x y z, behind x y z",
        time="microseconds",
        cameras="in the order of published models, others alphabetically, the front one first; pinholes, "
        "Brown-Conrady, MEI and f-theta lenses; sizes from the files",
        frames="EGO: x ahead, y left, z up, below the rear axle on the ground as the log's car says (option "
        "ego_height_m); BEV maps lie in it",
    ),
)
def read_py123d(
    root: str | Path,
    split: str | Sequence[str] = "",
    dataset: str | Sequence[str] = "",
    logs: str | Sequence[str] = "",
    cameras: str | Sequence[str] = "",
    stride: int = 1,
    images: str | Path = "",
    classes: Mapping[str, str] | None = None,
    label_names: Sequence[str] = (),
    ego_height_m: float | None = None,
) -> list[Frame]:
    """Keyframes of all logs below ``root``: the folder with ``logs/``, that folder, one of a split, or one log.

    split: as the folders are named ("av2-sensor_val"), or the end of it ("val"); dataset, logs, cameras: names, several
    with commas between, '' for all. stride: every how many rows of a log (most have 10 a second). images: folder of the
    data set itself, for logs that hold only paths. classes: label of the data set -> class; labels that it lacks have
    none; by default the label is the class, for nuScenes' that of its detection task. label_names: name of each number,
    for a class of labels that is not known here. ego_height_m: of the rear axle over the ground, by default as the car
    of the log is built.

    A velocity is NaN where py123d wrote 0 for want of one, and LiDAR points are SEEN_POINTS where none were counted.
    Films (mp4) are not read. Raises DataError naming the file, ConfigError for a name that chooses nothing, and without
    pyarrow.
    """
    if not isinstance(stride, int) or stride < 1:
        raise DataError(f"stride {stride}: give a whole number of rows, 1 or more")
    options = _Options(
        names_of(cameras), stride, Path(images or root), classes, tuple(names_of(label_names)), ego_height_m
    )
    folders = _chosen(Path(root), {"split": names_of(split), "dataset": names_of(dataset), "log_name": names_of(logs)})
    _check_cameras(Path(root), folders, options.cameras)
    frames = [
        frame for folder in folders for frame in _Log(folder, open_log_file(folder / "sync.arrow"), options).frames()
    ]
    if not frames:
        raise DataError(f"{root}: no moment of its {len(folders)} chosen logs has an image; {FIX}")
    frames = link_frames(frames)
    check_frames(frames)
    return frames


def log_folders(root: Path) -> list[Path]:
    """Folders with a sync.arrow, sorted. Raises DataError where there is none."""
    for depth in ("", "*/", "*/*/", "logs/*/*/"):
        if found := sorted(path.parent for path in root.glob(f"{depth}sync.arrow")):
            return found
    raise DataError(f"{root}: no log of py123d (logs/SPLIT/LOG/sync.arrow); give the folder that it converted to")


def _chosen(root: Path, wanted: Mapping[str, Sequence[str]]) -> list[Path]:
    """Folders of the logs that have one of the names of each key of their metadata, any where none is given.

    Raises ConfigError for a name that chooses nothing.
    """
    about: dict[Path, dict[str, str]] = {}
    for folder in log_folders(root):
        sync = open_log_file(folder / "sync.arrow", ())
        about[folder] = {key: _text(sync, key) for key in wanted}

    def fits(folder: Path, key: str, name: str) -> bool:
        value = about[folder][key]
        return value == name or (key == "split" and value.endswith(f"_{name}"))

    chosen = [
        folder
        for folder in about
        if all(not names or any(fits(folder, key, name) for name in names) for key, names in wanted.items())
    ]
    for folders, which in ((list(about), "no log"), (chosen, "no log of the other options' choice")):
        for key, names in wanted.items():
            for name in names:
                if not any(fits(folder, key, name) for folder in folders):
                    there = _some(own[key] for own in about.values())
                    raise ConfigError(f"{root}: {which} has {key} {name!r}; there are {key} {there}")
    return chosen


def _check_cameras(root: Path, folders: Sequence[Path], wanted: Sequence[str]) -> None:
    """Raises ConfigError for a camera that none of the logs has."""
    if not wanted:
        return
    there: set[str] = set()
    for folder in folders:
        dataset = _dataset(open_log_file(folder / "sync.arrow", ()))
        there |= {_camera_name(open_log_file(path, ()), dataset) for path in folder.glob("camera.*.arrow")}
    for name in wanted:
        if name not in there:
            raise ConfigError(f"{root}: no chosen log has a camera {name!r}; there are {_some(there, 20)}")


def _some(names: Iterable[str], count: int = 5) -> str:
    found = sorted(set(names))
    return ", ".join(found[:count]) + (f" and {len(found) - count} others" if len(found) > count else "")


class _Log:
    """One log, whose files are open together."""

    def __init__(self, folder: Path, sync: LogFile, options: _Options) -> None:
        self.folder, self.sync, self.options = folder, sync, options
        self.dataset, self.split, self.name = _dataset(sync), _text(sync, "split"), _text(sync, "log_name")
        self.times_us = sync.integers("timestamp_us")
        with reading(sync.path, "uuid"):
            self.tokens = [_hex(value) for value in sync.values("uuid")]
        self.trajectory = _Trajectory(open_log_file(folder / f"{EGO}.arrow"), options.ego_height_m)
        self.cameras = self._cameras()
        boxes = folder / f"{BOXES}.arrow"
        self.boxes = _Boxes(open_log_file(boxes), self.dataset, self.split, options) if boxes.is_file() else None

    def _cameras(self) -> dict[str, _Camera]:
        known: dict[str, _Camera] = {}
        paths = sorted(self.folder.glob("camera.*.arrow"))
        for path in paths:
            file = open_log_file(path)
            name = _camera_name(file, self.dataset)
            if name in known:
                raise DataError(f"{path}: a second camera {name}; {FIX}")
            if not self.options.cameras or name in self.options.cameras:
                known[name] = _Camera(file, self.trajectory, self.options.images)
        if not known:
            wanted = f" named {', '.join(self.options.cameras)}" if self.options.cameras else ""
            raise DataError(f"{self.folder}: none of its {len(paths)} cameras (camera.ID.arrow){wanted}; {FIX}")
        return {name: known[name] for name in camera_order(known)}

    def _rows(self, key: str) -> list[int | None]:
        """Row of a file at each moment; None where it has none then."""
        if key not in self.sync.columns:
            return [None] * len(self.times_us)
        rows = [next(iter(row), None) if isinstance(row, list) else row for row in self.sync.values(key)]
        with reading(self.sync.path, key):
            if below := [row for row in rows if row is not None and row < 0]:
                raise ValueError(f"it names row {below[0]}")
        return rows

    def frames(self) -> list[Frame]:
        rows = {name: self._rows(camera.file.path.stem) for name, camera in self.cameras.items()}
        ego, boxes = self._rows(EGO), self._rows(BOXES)
        out, without = [], 0
        for i in range(0, len(self.times_us), self.options.stride):
            now, seen = ego[i], boxes[i]
            with reading(self.sync.path, f"row {i}"):
                at = [(name, row) for name in self.cameras if (row := rows[name][i]) is not None]
                views = [self.cameras[name].view(name, row, f"{self.tokens[i]}-{name}") for name, row in at]
                pose = self.trajectory.at(int(self.times_us[i])) if now is None else self.trajectory.poses[now]
                labels = None if self.boxes is None or seen is None else self.boxes.annotations(seen)
            if not views:
                without += 1
                continue
            out.append(
                Frame(
                    token=self.tokens[i],
                    scene_token=f"{self.split}/{self.name}",
                    scene_name=self.name,
                    timestamp_us=int(self.times_us[i]),
                    cameras=tuple(views),
                    global_from_ego=pose,
                    annotations=labels,
                    can_signals=self.trajectory.signals(now),
                )
            )
        if without:
            warn_once(f"{self.folder}: {without} of {without + len(out)} moments have no image; they are left out")
        return out


class _Trajectory:
    """Where the car is: rows of ego_state_se3, or any time between them. The EGO frame lies on the ground."""

    def __init__(self, file: LogFile, ego_height_m: float | None) -> None:
        self.file, self.times_us = file, file.integers("timestamp_us")
        with reading(file.path):
            axle, centre = (np.array(file.about[f"{key}_to_imu_se3"], float) for key in ("rear_axle", "center"))
            if ego_height_m is None:  # the car's middle is half its height over the ground
                ego_height_m = float(file.about["height"]) / 2 - centre[2] + axle[2]
            imu_from_ego = poses_of(axle[None])[0]
            imu_from_ego[:3, 3] -= imu_from_ego[:3, 2] * ego_height_m
            self.ego_from_imu = invert_pose(imu_from_ego)
            self.poses = poses_of(file.numbers("imu_se3", 7)) @ imu_from_ego
            if not len(self.poses) or np.isnan(self.poses).any():
                raise ValueError("a pose of the car is missing")
            self.dynamics = file.numbers("dynamic_state_se3", 9)

    def at(self, time_us: int) -> NDArray[np.float64]:
        """Between two rows, as straight as possible. Raises ValueError far outside of them, or far between them."""
        times = self.times_us
        if not times[0] - MAX_BEYOND_US <= time_us <= times[-1] + MAX_BEYOND_US:
            raise ValueError(f"no pose of the car at {time_us} us; {self.file.path.name} has {times[0]} to {times[-1]}")
        upper = int(np.clip(np.searchsorted(times, time_us, side="right"), 1, max(len(times) - 1, 1)))
        pair = self.poses[upper - 1 : upper + 1]
        span = np.diff(times[upper - 1 : upper + 1])
        if not len(span) or span[0] <= 0:
            return pair[0]
        share = float(np.clip((time_us - times[upper - 1]) / span[0], 0, 1))
        if 0 < share < 1 and span[0] > MAX_POSE_GAP_US:
            raise ValueError(
                f"no pose of the car at {time_us} us; the rows of {self.file.path.name} around it are "
                f"{span[0] * 1e-6:g} s apart, over {MAX_POSE_GAP_US * 1e-6:g} s"
            )
        return interpolate_poses(pair[0], pair[1], share)

    def signals(self, row: int | None) -> NDArray[np.float64] | None:
        """The order of Frame: acceleration, turn rate, velocity. The file has velocity, acceleration, turn rate."""
        if row is None or np.isnan(self.dynamics[row]).any():
            return None
        return np.roll(self.dynamics[row], -3)


class _Camera:
    def __init__(self, file: LogFile, trajectory: _Trajectory, images: Path) -> None:
        self.file, self.trajectory, self.images = file, trajectory, images
        if file.image_type not in ("string", "large_string", "binary", "large_binary"):
            raise DataError(
                f"{file.path}: images are a film ({file.image_type or 'none'}), which is not read; convert the log "
                "with camera_store_option=jpeg_binary, or path"
            )
        with reading(file.path):
            self.model = camera_of(file.about)
            imu_from_camera = poses_of(np.array(file.about["camera_to_imu_se3"], float)[None])[0]
            self.ego_from_camera = trajectory.ego_from_imu @ imu_from_camera
            self.poses = poses_of(file.numbers("camera_to_global_se3", 7))
        self.times_us = file.integers("timestamp_us")
        self.paths = file.values(IMAGES) if IMAGES in file.columns else None

    def view(self, name: str, row: int, token: str) -> CameraView:
        stored, time_us = self.poses[row], int(self.times_us[row])
        if np.isnan(stored).any():
            then = self.trajectory.at(time_us)
        else:
            then = stored @ invert_pose(self.ego_from_camera)
        return CameraView(
            name=name,
            camera=self.model,
            ego_from_camera=self.ego_from_camera,
            global_from_ego=then,
            timestamp_us=time_us,
            image_path="" if self.paths is None else str(path_below(self.images, self.paths[row])),
            encoded=self.file.image(row) if self.paths is None else None,
            sample_data_token=token,
        )


class _Boxes:
    def __init__(self, file: LogFile, dataset: str, split: str, options: _Options) -> None:
        self.dataset, self.split, self.classes = dataset, split, options.classes
        self.velocities_of = dataset
        kind = _text(file, "box_detection_label_class").rpartition(".")[2]
        self.words = LABELS.get(kind) or options.label_names
        self.usual = DETECTION_CLASS if kind == "NuScenesBoxDetectionLabel" else None
        if not self.words:
            raise DataError(f"{file.path}: labels of the unknown class {kind}; name them with the option label_names")
        self.boxes, self.velocities = file.lists("bounding_box_se3", 10), file.lists("velocity_3d", 3)
        self.labels, self.counts = file.lists("label"), file.lists("num_lidar_points")
        self.tracks: list[list[str]] = [list(map(str, tracks or ())) for tracks in file.values("track_token")]
        times_us = file.integers("timestamp_us")
        self.neighbours = _neighbours(self.tracks, times_us)
        if dataset in OBJECT_FRAME and self._are_global(times_us):
            self.velocities_of = ""

    def _are_global(self, times_us: NDArray[np.int64]) -> bool:
        """Whether velocities follow the movements of the boxes as they are: a log whose velocities were inferred."""
        error = np.zeros(2)  # as stored, and out of the objects' own axes
        for i, j in pairwise(range(len(self.boxes))):
            before = dict(zip(self.tracks[i], self.boxes[i][:, :3]))
            moved = np.array([box[:3] - before.get(track, np.nan) for track, box in zip(self.tracks[j], self.boxes[j])])
            if times_us[j] > times_us[i] and len(moved):
                moved /= 1e-6 * (times_us[j] - times_us[i])
                stored, rotation = self.velocities[j], poses_of(self.boxes[j])[:, :3, :3]
                turned = known_velocities(stored, rotation, self.dataset, self.tracks[j], frozenset(self.tracks[j]))
                error += [np.nansum(np.linalg.norm(v - moved, axis=1)) for v in (stored, turned)]
        return bool(error[0] < error[1])

    def annotations(self, row: int) -> Annotations:
        boxes, tracks, labels = self.boxes[row], self.tracks[row], self.labels[row]
        if wrong := [label for label in labels.tolist() if not 0 <= label < len(self.words)]:
            raise ValueError(f"a box has label {wrong[0]:g}, of {len(self.words)} names")
        rotation = poses_of(boxes)[:, :3, :3]
        velocity = known_velocities(self.velocities[row], rotation, self.velocities_of, tracks, self.neighbours[row])
        categories = [self.words[int(label)] for label in labels]
        n = len(boxes)
        return Annotations(
            names=classes_of(categories, self.classes, self.usual),
            centre_global_m=boxes[:, :3],
            rotation_global=rotation,
            size_lwh_m=boxes[:, 7:],
            velocity_global_mps=velocity[:, :2],
            attributes=[""] * n,
            num_lidar_points=known_counts(self.counts[row], self.split),
            num_radar_points=np.zeros(n, np.int64),
            tokens=[""] * n,
            instance_tokens=tracks,
            categories=categories,
        )


def _neighbours(tracks: Sequence[Sequence[str]], times_us: NDArray[np.int64]) -> list[frozenset[str]]:
    """Of each row the tracks that the rows before and after it have, if they are near in time."""
    found: list[set[str]] = [set() for _ in tracks]
    for i, j in pairwise(range(len(tracks))):
        if times_us[j] - times_us[i] <= MAX_NEIGHBOUR_GAP_S * 1e6:
            found[i] |= set(tracks[j])
            found[j] |= set(tracks[i])
    return list(map(frozenset, found))


def _hex(value: UUID | bytes) -> str:
    return value.hex if isinstance(value, UUID) else value.hex()


def _dataset(sync: LogFile) -> str:
    return _text(sync, "dataset").replace("_", "-")  # with _ in older logs


def _camera_name(file: LogFile, dataset: str) -> str:
    """As the data set itself has it."""
    name = _text(file, "camera_name")
    return CAMERAS.get(dataset, {}).get(name, name)


def _text(file: LogFile, key: str) -> str:
    value = file.about.get(key)
    if not isinstance(value, str) or not value:
        raise DataError(f"{file.path}: its metadata lack {key}; {FIX}")
    return value
