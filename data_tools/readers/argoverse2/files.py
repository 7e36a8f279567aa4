"""Files of an Argoverse 2 log that its readers share: poses, calibration, times of images and sweeps.

<log>/city_SE3_egovehicle.feather                          poses of the car, every 5 to 10 ms
<log>/calibration/{intrinsics,egovehicle_SE3_sensor}.feather
<log>/sensors/cameras/<camera>/<nanoseconds>.jpg           where the images were downloaded
<log>/sensors/lidar/<nanoseconds>.feather                  one per sweep
<log>/map/log_map_archive_<log>____<city>_city_<n>.json
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ....core.cameras import RING_ORDER
from ....core.errors import LIBRARY_ERRORS, DataError, library_errors
from ....core.feather import FeatherTable
from ....core.frames import CameraView
from ....core.once import warn_once
from ....core.physics import MAX_KEYFRAME_GAP_S
from ....geometry import CameraModel, quaternion_to_matrix, slerp

QUATERNION, TRANSLATION = ("qw", "qx", "qy", "qz"), ("tx_m", "ty_m", "tz_m")
POSES = "city_SE3_egovehicle.feather"
MAX_POSE_GAP_NS = 100_000_000
"""Between two poses that others are interpolated from."""
MAX_IMAGE_DELAY_NS = 25_000_000
"""Between a sweep or keyframe and the image shown with it: half the cameras' period of 50 ms."""
REPAIR = "fetch this log again"


@dataclass(frozen=True)
class Trajectory:
    """Where the car was: city from ego at n times."""

    times_ns: NDArray[np.int64]
    """[n], ascending; neighbours may be nanoseconds apart, or equal."""
    quaternions: NDArray[np.float64]
    """[n, 4] w x y z, of length 1."""
    translations: NDArray[np.float64]
    """[n, 3]"""

    def known(self, times_ns: NDArray[np.int64]) -> NDArray[np.bool_]:
        """[k]: whether there is a pose at each time, or one on each side at most MAX_POSE_GAP_NS apart."""
        before, after = self._around(times_ns)
        inside = (times_ns >= self.times_ns[0]) & (times_ns <= self.times_ns[-1])
        return inside & (self.times_ns[after] - self.times_ns[before] <= MAX_POSE_GAP_NS)

    def at(self, times_ns: NDArray[np.int64]) -> NDArray[np.float64]:
        """Poses [k, 4, 4]: those of the file at its times, interpolated between them, its ends beyond them."""
        before, after = self._around(times_ns)
        gap = self.times_ns[after] - self.times_ns[before]
        share = np.where(gap > 0, np.clip((times_ns - self.times_ns[before]) / np.maximum(gap, 1), 0, 1), 0)
        out = np.tile(np.eye(4), (len(times_ns), 1, 1))
        out[:, :3, :3] = quaternion_to_matrix(slerp(self.quaternions[before], self.quaternions[after], share))
        out[:, :3, 3] = (1 - share)[:, None] * self.translations[before] + share[:, None] * self.translations[after]
        return out

    def nearest(self, time_ns: int) -> int:
        """Index of the pose nearest in time."""
        return int(np.abs(self.times_ns - time_ns).argmin())

    def _around(self, times_ns: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Poses [k], [k] at or before each time and at or after it; the same one where its time is met."""
        last = len(self.times_ns) - 1
        after = np.minimum(np.searchsorted(self.times_ns, times_ns, "left"), last)
        met = self.times_ns[after] == times_ns
        return np.where(met, after, np.maximum(after - 1, 0)), after


def read_trajectory(log: Path) -> Trajectory:
    """Poses of a log. Raises DataError naming the file that is missing, broken or in another unit."""
    table = FeatherTable(log / POSES, REPAIR)
    times_ns = table.whole_numbers("timestamp_ns")
    gaps = np.diff(times_ns.astype(np.float64)) * 1e-9
    usual = not len(gaps) or (gaps.min() >= 0 and gaps.max() >= 1e-3 and np.median(gaps) <= MAX_KEYFRAME_GAP_S)
    if not len(times_ns) or not usual:
        apart = f"are {np.median(gaps):.3g} s apart, or out of order" if len(gaps) else "are not there"
        raise DataError(f"{log / POSES}: poses {apart}; timestamp_ns are nanoseconds in ascending order")
    translations = table.numbers(*TRANSLATION)
    if not np.isfinite(translations).all():
        raise DataError(f"{log / POSES}: a translation is not finite; {REPAIR}")
    return Trajectory(times_ns, unit_quaternions(table), translations)


def unit_quaternions(table: FeatherTable) -> NDArray[np.float64]:
    """Column qw..qz [n, 4]. Raises DataError where one is no rotation."""
    quaternions = table.numbers(*QUATERNION).reshape(-1, 4)
    length = np.linalg.norm(quaternions, axis=1)
    for row in np.flatnonzero(~(np.abs(length - 1) < 1e-3))[:1]:  # NaN too
        raise DataError(f"{table.path}: row {row}: qw qx qy qz is no quaternion of length 1; {table.fix}")
    return quaternions / length[:, None]


def read_cameras(log: Path) -> dict[str, tuple[CameraModel, NDArray[np.float64]]]:
    """Each ring camera with its mounting [4, 4]. Other sensors may be missing, as the stereo cameras of some logs are.

    The lens coefficients k1 k2 k3 of the file are left out: the published images are undistorted.
    Raises DataError naming the file and camera.
    """
    optics = FeatherTable(log / "calibration" / "intrinsics.feather", REPAIR)
    mounted = FeatherTable(log / "calibration" / "egovehicle_SE3_sensor.feather", REPAIR)
    values = optics.numbers("fx_px", "fy_px", "cx_px", "cy_px", "width_px", "height_px")
    poses = np.tile(np.eye(4), (len(mounted), 1, 1))
    poses[:, :3, :3] = quaternion_to_matrix(unit_quaternions(mounted)) if len(mounted) else 0
    poses[:, :3, 3] = mounted.numbers(*TRANSLATION)
    optics_row, mounted_row = _rows(optics), _rows(mounted)
    cameras = {}
    for name in RING_ORDER:
        for table, row in ((optics, optics_row), (mounted, mounted_row)):
            if name not in row:
                raise DataError(f"{table.path}: has no {name}; {REPAIR}")
        fx, fy, cx, cy, width, height = values[optics_row[name]]
        try:
            camera = CameraModel(np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), int(width), int(height))
        except LIBRARY_ERRORS as error:
            raise DataError(f"{optics.path}: {name}: unusable calibration, {error}; {REPAIR}") from None
        cameras[name] = camera, poses[mounted_row[name]]
    return cameras


def _rows(table: FeatherTable) -> dict[str, int]:
    names, codes = table.texts("sensor_name")
    return {names[code]: row for row, code in enumerate(codes)}


def image_times_ns(log: Path, camera: str) -> NDArray[np.int64]:
    """Times of a camera's images on the disk, ascending. Raises DataError for names that are no times."""
    return _times_in(log / "sensors" / "cameras" / camera, "jpg", "images", "315967812249927216.jpg")


def sweep_times_ns(log: Path) -> NDArray[np.int64]:
    """Times of the LiDAR sweeps on the disk, whose names alone are looked at. Raises DataError as image_times_ns."""
    return _times_in(log / "sensors" / "lidar", "feather", "sweeps", "315967812259927000.feather")


def _times_in(folder: Path, ending: str, what: str, example: str) -> NDArray[np.int64]:
    with library_errors(DataError, folder, f"name {what} by their time in nanoseconds, as in {example}"):
        names = (path.stem for path in folder.glob(f"*.{ending}") if not path.name.startswith("."))
        return np.array(sorted(int(name) for name in names), np.int64)


def nearest_times(times_ns: NDArray[np.int64], wanted_ns: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each wanted time [k] the index of the nearest of the ascending times [n > 0], the earlier of two."""
    after = np.clip(np.searchsorted(times_ns, wanted_ns), 1, max(len(times_ns) - 1, 1))
    before = after - 1
    after = np.minimum(after, len(times_ns) - 1)
    return np.where(wanted_ns - times_ns[before] <= times_ns[after] - wanted_ns, before, after)


def conditions_of(log: Path) -> dict[str, str]:
    """What the name of a log's map says about it: its city, as ``PIT``; {} where it has no map or another name."""
    names = sorted(path.name for path in log.glob("map/log_map_archive_*.json"))
    found = re.search(r"_([A-Za-z]{2,5})_city_\d+", names[0]) if names else None
    return {"location": found[1]} if found else {}


@dataclass
class MissingImages:
    """What is not there, counted for one warning."""

    images: Counter[str] = field(default_factory=Counter)
    """By camera."""
    wanted: int = 0
    frames: int = 0
    logs: int = 0

    def report(self, where: str, num_logs: int, what: str) -> None:
        """what: one of the wanted times, "sweep" or "keyframe"."""
        if self.images:
            most, count = self.images.most_common(1)[0]
            warn_once(
                f"{where}: {self.images.total()} of {self.wanted} images are missing within "
                f"{MAX_IMAGE_DELAY_NS // 1_000_000} ms of their {what}, or have no pose (most: {most}, {count}); "
                "these cameras are left out of their frames"
            )
        if self.frames:
            warn_once(f"{where}: {self.frames} {what}s have no image of any camera and are left out")
        if self.logs:
            warn_once(
                f"{where}: {self.logs} of {num_logs} logs have no images (sensors/cameras): cameras are taken at the "
                f"times of the {what}s"
            )


def views_at(
    log: Path,
    times_ns: NDArray[np.int64],
    trajectory: Trajectory,
    cameras: Mapping[str, tuple[CameraModel, NDArray[np.float64]]],
    missing: MissingImages,
) -> list[list[CameraView]]:
    """The cameras of each wanted time [k], each with its nearest image from where the car was then; those without one
    within MAX_IMAGE_DELAY_NS are left out and counted. A log without the folder ``sensors/cameras`` gives every camera
    at the wanted time, and the path where its image would lie.
    """
    views: list[list[CameraView]] = [[] for _ in times_ns]
    folder = log / "sensors" / "cameras"
    downloaded = folder.is_dir()
    missing.logs += not downloaded
    for name, (camera, mounting) in cameras.items():
        shown, there = times_ns, np.ones(len(times_ns), bool)
        if downloaded:
            missing.wanted += len(times_ns)
            images = image_times_ns(log, name)
            shown = images[nearest_times(images, times_ns)] if len(images) else times_ns
            there = np.full(len(times_ns), len(images) > 0) & trajectory.known(shown)
            there &= np.abs(shown - times_ns) <= MAX_IMAGE_DELAY_NS
            if not there.all():
                missing.images[name] += int((~there).sum())
        poses = trajectory.at(shown)
        for i in np.flatnonzero(there):
            path = str(folder / name / f"{shown[i]}.jpg")
            views[i].append(CameraView(name, camera, mounting, poses[i], int(shown[i]) // 1000, path))
    missing.frames += sum(not own for own in views)
    return views
