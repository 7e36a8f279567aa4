"""A drive with Waymo's five cameras of two sizes, each at its own time, small enough to be written in a test."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from drivestack.core.frames import Annotations, CameraView, Frame, RollingShutter
from drivestack.geometry import brown_conrady, pose, rotation_z

CONTEXT = "1024360143612057520_3580_000_3600_000"
AHEAD = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # EGO from a camera that looks ahead
YAW_DEG = {"FRONT": 0, "FRONT_LEFT": 45, "FRONT_RIGHT": -45, "SIDE_LEFT": 90, "SIDE_RIGHT": -90}
DELAY_US = {"FRONT": 52_418, "FRONT_LEFT": 42_418, "FRONT_RIGHT": 62_418, "SIDE_LEFT": 22_418, "SIDE_RIGHT": 72_418}
LENS = [0.0404, -0.33, 0.00104, -0.00157, 0.0]
FIRST_US = 1_553_735_853_462_203


@dataclass(frozen=True)
class Encoded:
    """A JPEG in memory."""

    data: bytes
    source: str = "a test's image"

    def read(self) -> bytes:
        return self.data


def car(time_us: int) -> np.ndarray:
    """global_from_ego of a car at 12 m/s in a bend, on a slope, far from the origin."""
    seconds = (time_us - FIRST_US) * 1e-6
    yaw, slope = 0.7 + 0.3 * seconds, 0.02
    tilt = np.array([[np.cos(slope), 0, -np.sin(slope)], [0, 1, 0], [np.sin(slope), 0, np.cos(slope)]])
    place = [15_568.6 + 40 * np.sin(yaw), -860.6 - 40 * np.cos(yaw), -651.4 + 12 * slope * seconds]
    return pose(rotation_z(yaw) @ tilt, place)


def drive(
    lens: list[float] | None = LENS, num_frames: int = 4, labelled: bool = True, synced: bool = True
) -> list[Frame]:
    """Frames at 10 Hz; lens: Brown-Conrady coefficients, None for pinholes; synced: boxes are camera-synced."""
    rng = np.random.default_rng(3)
    return [_frame(i, lens, labelled, synced, rng) for i in range(num_frames)]


def _frame(i: int, lens: list[float] | None, labelled: bool, synced: bool, rng: np.random.Generator) -> Frame:
    time_us = FIRST_US + 100_000 * i
    views = []
    for name, yaw in YAW_DEG.items():
        width, height = (96, 44) if name.startswith("SIDE") else (96, 64)
        intrinsics = np.array([[102.4, 0, 47.3], [0, 102.4, height * 0.49], [0, 0, 1]])
        mounted = pose(rotation_z(np.deg2rad(yaw)) @ AHEAD, [1.5 + 0.1 * (yaw == 0), yaw / 300, 2.1])
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(file, "jpeg")
        at_us = time_us + DELAY_US[name]
        views.append(
            CameraView(
                name=name,
                camera=brown_conrady(intrinsics, width, height, lens or [0.0] * 5),
                ego_from_camera=mounted,
                global_from_ego=car(at_us),
                timestamp_us=at_us,
                encoded=Encoded(file.getvalue()),
                rolling_shutter=RollingShutter(
                    "left_to_right", 0.0026, at_us - 25_000, at_us + 21_500, (12.0, -3.5, 0.25), (0.001, -0.002, 0.3)
                ),
            )
        )
    return Frame(
        token=f"{CONTEXT}_{time_us}",
        scene_token=CONTEXT,
        scene_name=CONTEXT,
        timestamp_us=time_us,
        cameras=tuple(views),
        global_from_ego=car(time_us),
        annotations=_labels(car(time_us), synced) if labelled else None,
        conditions={"time_of_day": "Dawn/Dusk", "location": "location_sf", "weather": "rain"},
    )


def _labels(global_from_ego: np.ndarray, synced: bool) -> Annotations:
    """A car ahead, a pedestrian to the left, a sign, a cyclist to the right, and a car behind that no camera sees."""
    names = ["vehicle", "pedestrian", "sign", "cyclist", "vehicle"]
    centre = np.array([[18.0, 1, 0.9], [3, 9, 0.9], [25, -14, 2.4], [1, -8, 0.8], [-15, 0.5, 0.8]])
    size = np.array([[4.7, 2.1, 1.7], [0.9, 0.8, 1.8], [0.1, 0.7, 0.9], [1.8, 0.8, 1.7], [4.5, 1.9, 1.5]])
    yaw = np.array([0.1, -2.0, 3.0, 1.2, 0.0])
    velocity = np.array([[14.0, 0.4], [0.2, -1.1], [0, 0], [3, 2], [np.nan, np.nan]])
    plain = Annotations.of_boxes(
        names, centre, size, yaw, velocity_mps=velocity, tracks=list("abcde"), global_from_frame=global_from_ego
    )
    return Annotations(
        **{
            **vars(plain),
            "num_lidar_points": np.array([200, 14, 5, 90, 30]),
            "difficulty": np.array([1, 1, 2, 1, 1]),
            "num_top_lidar_points": np.array([190, 12, 4, 80, 25]),
            "most_visible_cameras": ["FRONT", "SIDE_LEFT", "FRONT_RIGHT", "SIDE_RIGHT", ""] if synced else None,
        }
    )
