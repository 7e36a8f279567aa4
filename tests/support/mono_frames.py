"""A car that drives on and turns among three objects, with three cameras and images of noise: for perspective heads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from drivestack.core.frames import Annotations, CameraView, Frame
from drivestack.geometry import CameraModel, pose, rotation_z

RANGE = (-40.0, -40.0, -5.0, 40.0, 40.0, 3.0)
WIDTH, HEIGHT = 192, 128
CLASSES = "barrier bicycle bus car construction_vehicle motorcycle pedestrian traffic_cone trailer truck"
FORWARD = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # ego from a camera that looks ahead
AZIMUTHS_DEG = (0, 120, 240)  # nothing stands in sight of the last
OBJECTS = {  # ego frame: x, y, z, l, w, h, yaw
    "car": (14.0, 2.0, 0.8, 4.4, 1.9, 1.6, 0.4),
    "pedestrian": (9.0, -4.0, 0.9, 0.7, 0.7, 1.8, 0.0),
    "truck": (-9.0, 16.0, 1.4, 7.0, 2.5, 2.8, 2.0),
}


def make_frames(folder: Path, count: int) -> list[Frame]:
    """A car that drives on and turns; objects stand in the world; images of noise."""
    rng = np.random.default_rng(0)
    ego_from_bev = pose(rotation_z(-np.pi / 2), [0.9, 0.0, 1.8])
    camera = CameraModel(np.array([[110.0, 0, WIDTH / 2], [0, 110.0, HEIGHT / 2], [0, 0, 1]]), WIDTH, HEIGHT)
    rows = np.array(list(OBJECTS.values()))
    n = len(rows)
    labels = Annotations(
        names=list(OBJECTS),
        centre_global_m=rows[:, :3],
        rotation_global=rotation_z(rows[:, 6]),
        size_lwh_m=rows[:, 3:6],
        velocity_global_mps=np.array([[2.0, 1.0], [np.nan, np.nan], [0, 0]]),
        attributes=["vehicle.moving", "", "vehicle.parked"],
        num_lidar_points=np.full(n, 9),
        num_radar_points=np.zeros(n, dtype=int),
        tokens=[""] * n,
        instance_tokens=[""] * n,
    )
    frames = []
    for i in range(count):
        global_from_ego = pose(rotation_z(0.03 * i), [0.8 * i, 0.1 * i, 0.0])
        views = []
        for k, degrees in enumerate(AZIMUTHS_DEG):
            path = folder / f"{i}_{k}.png"
            Image.fromarray(rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(path)
            ego_from_camera = pose(rotation_z(np.radians(degrees)) @ FORWARD, [0.5, 0.0, 1.5])
            views.append(
                CameraView(f"C{k}", camera, ego_from_camera, global_from_ego, 500_000 * i, image_path=str(path))
            )
        frames.append(
            Frame(
                token=f"f{i}",
                scene_token="s",
                scene_name="scene",
                timestamp_us=500_000 * i,
                cameras=tuple(views),
                ego_from_bev=ego_from_bev,
                global_from_ego=global_from_ego,
                annotations=labels,
                prev_token=f"f{i - 1}" if i else "",
                next_token=f"f{i + 1}" if i + 1 < count else "",
            )
        )
    return frames
