"""Argoverse 2's sensor data set to Frames: one for each LiDAR sweep, with seven ring cameras and 3D boxes.

    <root>/{train,val,test}/<log>/annotations.feather       boxes in the EGO frame of their sweep; not in test
    <root>/<split>/<log>/...                                the rest of a log: files.py, lanes.py (map)

Boxes go to the city frame with the car's pose at their sweep. The files have no velocities: they are differences of a
track's places in the city frame between the sweeps before and after, or one of these at its ends. Format:
https://argoverse.github.io/user-guide/datasets/sensor.html. Feather files need pyarrow (extra ``argoverse``).

Shapes: n boxes of a log, s sweeps, k wanted ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ....core.argoverse2 import EVALUATED_CLASSES, OTHER_CATEGORIES, sweep_token
from ....core.errors import ConfigError, DataError
from ....core.feather import FeatherTable
from ....core.files import file_name
from ....core.frames import Annotations, Frame
from ....core.once import warn_once
from ....geometry import quaternion_to_matrix
from ..checks import check_frames
from ..links import link_frames
from ..nuscenes.reader import MAX_VELOCITY_GAP_S
from ..registry import Conventions, register_reader
from .files import (
    REPAIR,
    TRANSLATION,
    MissingImages,
    Trajectory,
    conditions_of,
    read_cameras,
    read_trajectory,
    sweep_times_ns,
    unit_quaternions,
    views_at,
)
from .lanes import map_labels, map_path, read_map

SPLITS = ("train", "val", "test")
ANNOTATIONS = "annotations.feather"


@register_reader(
    "argoverse2_sensor",
    "the Argoverse 2 sensor data set: 3D boxes, seven ring cameras, splits",
    Conventions(
        boxes="centre, (l, w, h) and quaternion in the EGO frame of the sweep; velocities: differences of tracks",
        quaternions="w x y z",
        time="nanoseconds; microseconds in Frames, the token has all digits",
        cameras="front centre first, seven in all; images are undistorted: k1 k2 k3 do not apply; sizes as calibrated",
        frames="EGO: x ahead, y left, z up, at the rear axle, some 0.3 m over the ground; BEV maps lie in it; "
        "global: the city frame",
    ),
)
def read_argoverse2_sensor(
    root: str | Path,
    split: str = "val",
    stride: int = 1,
    max_logs: int | None = None,
    classes: Mapping[str, str] | None = None,
    lanes: bool = False,
) -> list[Frame]:
    """Frames of a split, log after log; of a single log where ``root`` is one, of the logs in ``root`` for split "".

    stride: every n-th sweep of a log (10 Hz); velocities come from all sweeps. max_logs: the first so many. classes:
    category -> class of a model, others become none; default: the 26 categories that the benchmark evaluates, under
    their own names. lanes: lane labels from the vector map.

    A camera shows its image nearest to the sweep, from where the car was then; without one within 25 ms it is missing,
    and a sweep without any camera is left out: both are counted in a warning. A log without the folder
    ``sensors/cameras`` gives the paths where images would lie at the sweep's time, enough for scoring.
    Raises DataError naming the log or file that is missing or broken; ConfigError for options, and without pyarrow.
    """
    if stride < 1 or (max_logs is not None and max_logs < 1):
        raise ConfigError(f"stride {stride}, max_logs {max_logs}: give whole numbers of at least 1")
    of_category = _class_of_category(classes)
    logs = find_logs(Path(root), split)[:max_logs]
    missing, unlabelled = MissingImages(), 0
    frames: list[Frame] = []
    for log in logs:
        labelled = split in ("train", "val") and logs != [Path(root)]
        own = _Log(log, labelled).frames(stride, of_category, lanes, missing)
        unlabelled += sum(frame.annotations is not None and not len(frame.annotations) for frame in own)
        frames += own
    missing.report(f"{root} ({split})", len(logs), "sweep")
    if unlabelled:
        warn_once(f"{root} ({split}): {unlabelled} sweeps have no row in {ANNOTATIONS}: read as having no objects")
    frames = link_frames(frames)
    check_frames(frames)
    return frames


def find_logs(root: Path, split: str) -> list[Path]:
    """Folders of the logs of a split, by name. Raises DataError naming what is there instead."""
    if (root / "calibration").is_dir():
        return [root]
    folder = root / file_name(split, "split") if split else root
    if not folder.is_dir():
        found = ", ".join(sorted(p.name for p in root.iterdir() if p.is_dir())[:10]) if root.is_dir() else ""
        raise DataError(
            f"{folder}: no such folder; give the data set's root with {', '.join(SPLITS)}"
            + (f" (there: {found})" if found else "")
        )
    logs = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not logs:
        raise DataError(f"{folder}: has no logs; download some, or name another split")
    return logs


def log_folder(frame: Frame) -> Path:
    """Where the log of a frame lies, by the paths of its images. Raises DataError for frames of another reader."""
    for view in frame.cameras:
        path = Path(view.image_path)
        if path.parts[-4:-2] == ("sensors", "cameras"):
            return path.parents[3]
    raise DataError(f"sample {frame.token}: its images lie in no log of Argoverse 2; use the reader argoverse2_sensor")


def _class_of_category(classes: Mapping[str, str] | None) -> Mapping[str, str]:
    if classes is None:
        return {name: name for name in EVALUATED_CLASSES}
    known = (*EVALUATED_CLASSES, *OTHER_CATEGORIES)
    if not isinstance(classes, Mapping) or not all(isinstance(name, str) for name in classes.values()):
        raise ConfigError(f"classes {str(classes)[:60]}: give a mapping of categories to names of classes")
    if unknown := [name for name in classes if name not in known]:
        raise ConfigError(f"classes: {str(unknown[0])[:60]!r} is no category; there are {', '.join(known)}")
    return classes


class _Log:
    """One log while it is read."""

    def __init__(self, path: Path, labelled: bool) -> None:
        """labelled: it must have annotations."""
        self.path = path
        self.name = file_name(path.absolute().name, "log")
        self.trajectory = read_trajectory(path)
        self.cameras = read_cameras(path)
        self.boxes: _Boxes | None = None
        if (path / ANNOTATIONS).is_file():
            self.boxes = _Boxes.read(path / ANNOTATIONS, self.trajectory)
        elif labelled:
            raise DataError(f"{path / ANNOTATIONS}: is missing, as only logs of split test lack it; {REPAIR}")
        labels = [] if self.boxes is None else [self.boxes.time_ns]
        self.times_ns = np.unique(np.concatenate([sweep_times_ns(path), *labels]))
        if not len(self.times_ns):
            raise DataError(
                f"{path}: has neither {ANNOTATIONS} nor sensors/lidar, so that the times of its sweeps are not known; "
                "download sensors/lidar (only the names of its files are used)"
            )
        if not (known := self.trajectory.known(self.times_ns)).all():
            raise DataError(f"{path}: sweep {self.times_ns[~known][0]} has no pose in city_SE3_egovehicle; {REPAIR}")

    def frames(
        self, stride: int, of_category: Mapping[str, str], with_lanes: bool, missing: MissingImages
    ) -> list[Frame]:
        times_ns = self.times_ns[::stride]
        poses = self.trajectory.at(times_ns)  # [k, 4, 4]
        lanes = read_map(map_path(self.path)) if with_lanes else None
        views = views_at(self.path, times_ns, self.trajectory, self.cameras, missing)
        conditions = conditions_of(self.path)
        frames = []
        for time_ns, city_from_ego, own in zip(times_ns.tolist(), poses, views):
            if not own:
                continue
            labels = None if self.boxes is None else self.boxes.at(time_ns, of_category)
            frames.append(
                Frame(
                    token=sweep_token(self.name, time_ns),
                    scene_token=self.name,
                    scene_name=self.name,
                    timestamp_us=time_ns // 1000,
                    cameras=tuple(own),
                    global_from_ego=city_from_ego,
                    annotations=labels,
                    lanes=None if lanes is None else map_labels(lanes, city_from_ego),
                    conditions=conditions,
                )
            )
        return frames


@dataclass(frozen=True)
class _Boxes:
    """The boxes of a log, by time."""

    time_ns: NDArray[np.int64]
    """[n], ascending"""
    category_names: list[str]
    category: NDArray[np.int64]
    """[n], of category_names"""
    track_names: list[str]
    track: NDArray[np.int64]
    """[n], of track_names"""
    centre_city_m: NDArray[np.float64]
    rotation_city: NDArray[np.float64]
    """[n, 3, 3]"""
    size_lwh_m: NDArray[np.float64]
    velocity_mps: NDArray[np.float64]
    """[n, 2]"""
    num_points: NDArray[np.int64]

    @classmethod
    def read(cls, path: Path, trajectory: Trajectory) -> _Boxes:
        """Raises DataError naming the column, row or object that is wrong."""
        table = FeatherTable(path, REPAIR)
        time_ns = table.whole_numbers("timestamp_ns")
        order = np.argsort(time_ns, kind="stable")
        time_ns = time_ns[order]
        categories, category = table.texts("category")
        tracks, track = table.texts("track_uuid")
        sweeps, sweep = np.unique(time_ns, return_inverse=True)
        if not (known := trajectory.known(sweeps)).all():
            raise DataError(f"{path}: sweep {sweeps[~known][0]} has no pose in city_SE3_egovehicle; {REPAIR}")
        poses = trajectory.at(sweeps)[sweep]  # [n, 4, 4]
        centre = table.numbers(*TRANSLATION)[order]
        centre = np.einsum("nij,nj->ni", poses[:, :3, :3], centre) + poses[:, :3, 3]
        rotations = quaternion_to_matrix(unit_quaternions(table)[order]).reshape(-1, 3, 3)
        velocity, twice = track_velocities(track[order], time_ns, centre)
        if twice is not None:
            raise DataError(f"{path}: track {tracks[track[order][twice]]} is there twice at {time_ns[twice]}; {REPAIR}")
        return cls(
            time_ns=time_ns,
            category_names=categories,
            category=category[order],
            track_names=tracks,
            track=track[order],
            centre_city_m=centre,
            rotation_city=poses[:, :3, :3] @ rotations,
            size_lwh_m=table.numbers("length_m", "width_m", "height_m")[order],
            velocity_mps=velocity,
            num_points=table.whole_numbers("num_interior_pts")[order],
        )

    def at(self, time_ns: int, of_category: Mapping[str, str]) -> Annotations:
        rows = slice(*np.searchsorted(self.time_ns, [time_ns, time_ns + 1]))
        categories = [self.category_names[i] for i in self.category[rows]]
        tracks = [self.track_names[i] for i in self.track[rows]]
        n = len(tracks)
        return Annotations(
            names=[of_category.get(name, "") for name in categories],
            centre_global_m=self.centre_city_m[rows],
            rotation_global=self.rotation_city[rows],
            size_lwh_m=self.size_lwh_m[rows],
            velocity_global_mps=self.velocity_mps[rows],
            attributes=[""] * n,
            num_lidar_points=self.num_points[rows],
            num_radar_points=np.zeros(n, np.int64),
            tokens=[sweep_token(track, time_ns) for track in tracks],
            instance_tokens=tracks,
            categories=categories,
        )


def track_velocities(
    track: NDArray[np.int64], time_ns: NDArray[np.int64], centre_m: NDArray[np.float64]
) -> tuple[NDArray[np.float64], int | None]:
    """Velocities [n, 2] (m/s) of boxes [n] by their tracks, and the first box that its track has twice at one time.

    From the place before to that after, or from or to the box itself where it has one of them only; a place more than
    MAX_VELOCITY_GAP_S away does not count. NaN where there is neither.
    """
    n = len(track)
    order = np.lexsort((time_ns, track))
    time, place = time_ns[order], centre_m[order, :2]
    joined = np.diff(track[order]) == 0  # [n - 1]: box i and i + 1 are of one track
    gap = np.diff(time)
    for i in np.flatnonzero(joined & (gap == 0))[:1]:
        return np.full((n, 2), np.nan), int(order[i + 1])
    joined &= gap <= MAX_VELOCITY_GAP_S * 1e9
    index = np.arange(n)
    first, last = index - np.append(False, joined)[:n], index + np.append(joined, False)[:n]
    elapsed_s = (time[last] - time[first]) * 1e-9
    velocity = np.full((n, 2), np.nan)
    moved = place[last] - place[first]
    velocity[order] = np.where(elapsed_s[:, None] > 0, moved / np.where(elapsed_s > 0, elapsed_s, 1)[:, None], np.nan)
    return velocity, None
