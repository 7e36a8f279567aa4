"""A hand-made log of Argoverse 2's sensor data set, without images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from drivestack.core.cameras import RING_ORDER
from drivestack.core.feather import write_feather
from drivestack.geometry import matrix_to_quaternion, rotation_z

START_NS = 315_966_253_660_357_000
STEP_NS = 100_123_000
SPEED_MPS, TURN_RADPS = 8.0, 0.1
AHEAD = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])


def car_at(time_ns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quaternions [n, 4] and places [n, 3] of a car that drives ahead and turns a little."""
    seconds = (np.asarray(time_ns) - START_NS) * 1e-9
    yaw = TURN_RADPS * seconds
    place = np.stack([SPEED_MPS * seconds + 5000, 0.2 * seconds, 0 * seconds + 60], -1)
    return matrix_to_quaternion(rotation_z(yaw)), place


def columns_of(quaternions: np.ndarray, places: np.ndarray) -> dict[str, np.ndarray]:
    columns = {name: quaternions[:, i] for i, name in enumerate(("qw", "qx", "qy", "qz"))}
    return columns | {name: places[:, i] for i, name in enumerate(("tx_m", "ty_m", "tz_m"))}


def write_log(log: Path, sweeps: int = 5, labels: bool = True) -> np.ndarray:
    """A log without images; returns the sweeps' times. One car drives beside ours, one post stands still and is seen
    once, one animal has no LiDAR point."""
    times = START_NS + STEP_NS * np.arange(sweeps)
    between = np.arange(START_NS - 50_000_000, times[-1] + 60_000_000, 7_000_000)
    pose_times = np.sort(np.concatenate([between, times, times[:1] + 2]))  # two poses 2 ns apart
    write_feather(log / "city_SE3_egovehicle.feather", {"timestamp_ns": pose_times, **columns_of(*car_at(pose_times))})
    names = [*RING_ORDER, "stereo_front_left"]
    n = len(names)
    yaws = np.linspace(0, 2 * np.pi, n, endpoint=False)
    mounted = columns_of(matrix_to_quaternion(rotation_z(yaws) @ AHEAD), np.tile([1.5, 0, 1.4], (n, 1)))
    write_feather(log / "calibration/egovehicle_SE3_sensor.feather", {"sensor_name": names, **mounted})
    front = np.array([name == "ring_front_center" for name in RING_ORDER])
    optics = {
        "sensor_name": list(RING_ORDER),  # no stereo camera, as some logs lack them
        **{"fx_px": np.full(7, 1700.0), "fy_px": np.full(7, 1701.0)},
        **{"cx_px": np.where(front, 775.0, 1024), "cy_px": np.where(front, 1024.0, 775)},
        **{"k1": np.full(7, -0.25), "k2": np.zeros(7), "k3": np.zeros(7)},
        "height_px": np.where(front, 2048, 1550).astype(np.uint16),
        "width_px": np.where(front, 1550, 2048).astype(np.uint16),
    }
    write_feather(log / "calibration/intrinsics.feather", optics)
    if labels:
        rows = [(time, "car", "REGULAR_VEHICLE", 5) for time in times]
        rows += [(times[1], "post", "BOLLARD", 2), *((time, "dog", "ANIMAL", 0) for time in times)]
        time, track, category, points = map(list, zip(*rows))
        place = np.array([[10.0, 3, 0.5] if t == "car" else [20.0, -4, 0.2] for t in track])
        write_feather(
            log / "annotations.feather",
            {
                "timestamp_ns": np.array(time), "track_uuid": track, "category": category,
                "length_m": np.full(len(rows), 4.0), "width_m": np.full(len(rows), 2.0),
                "height_m": np.full(len(rows), 1.5),
                **columns_of(np.tile([np.cos(0.1), 0, 0, np.sin(0.1)], (len(rows), 1)), place),
                "num_interior_pts": np.array(points),
            },
        )  # fmt: skip
    return times


def touch_images(log: Path, camera: str, times: np.ndarray) -> None:
    folder = log / "sensors" / "cameras" / camera
    folder.mkdir(parents=True, exist_ok=True)
    for time in times:
        (folder / f"{time}.jpg").touch()
