"""A car that drives and turns, its cameras of any lens, objects around it: what readers and writers must agree on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from drivestack.core.frames import Annotations, CameraView, Frame
from drivestack.geometry import CameraModel, brown_conrady, f_theta, invert_pose, mei, pose, rotation_z

AHEAD = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # ego from a camera that looks ahead
SIZE = 64, 48
K = np.array([[50.0, 0, 31.5], [0, 52.0, 24.0], [0, 0, 1]])

PINHOLE = CameraModel(K, *SIZE)
BROWN = brown_conrady(K, *SIZE, (-0.31, 0.11, 1e-3, -2e-3, -0.02))
MEI = mei(np.array([[70.0, 0, 31.5], [0, 70.0, 24.0], [0, 0, 1]]), *SIZE, 2.2, (0.016, 1.65, 3e-4, -4e-4))
F_THETA = f_theta(*SIZE, (31.5, 24.0), forward=(0.0, 30.0, 0.4, -1.1, 0.2, -0.05))
RIGS: Mapping[str, tuple[CameraModel, ...]] = {
    "pinhole": (PINHOLE, PINHOLE, PINHOLE),
    "distorted": (BROWN, MEI, F_THETA),
}
CAMERAS = {"CAM_FRONT": 0.0, "CAM_LEFT": np.pi / 2, "CAM_RIGHT": -np.pi / 2}


def moving_frames(
    cameras: Sequence[CameraModel], names: Sequence[str], num_frames: int = 4, step_us: int = 500_000
) -> list[Frame]:
    """Keyframes of one scene. names: category of each object; objects stand or drive along their headings.

    Cameras have times of their own; images are in memory.
    """
    rng = np.random.default_rng(0)
    n = len(names)
    start = np.concatenate([rng.uniform(-20, 20, (n, 2)), np.full((n, 1), 0.8)], 1) + [600, 1600, 0]
    yaw = rng.uniform(-3, 3, n)
    speed = np.where(np.arange(n) % 2, 0.0, 6.0)
    velocity = speed[:, None] * np.stack([np.cos(yaw), np.sin(yaw)], 1)
    size = np.tile([4.5, 1.9, 1.6], (n, 1))

    def ego(time_us: int) -> np.ndarray:
        """On a circle at 8 m/s, on a slope."""
        yaw = 0.2 + 0.1 * time_us * 1e-6
        place = [600 + 80 * (np.sin(yaw) - np.sin(0.2)), 1600 - 80 * (np.cos(yaw) - np.cos(0.2)), 0.3]
        cos, sin = np.cos(0.01), np.sin(0.01)
        return pose(rotation_z(yaw) @ np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]]), place)

    frames = []
    for k in range(num_frames):
        time_us = k * step_us
        views = []
        for i, ((name, heading), camera) in enumerate(zip(CAMERAS.items(), cameras)):
            late_us = 20_000 * i
            mounted = pose(rotation_z(heading) @ AHEAD, [1.0, 0.4 * np.sin(heading), 1.5])
            pixels = rng.integers(0, 255, (camera.height_px, camera.width_px, 3), dtype=np.uint8)
            then = ego(time_us + late_us)
            views.append(CameraView(name, camera, mounted, then, 1_700_000_000_000_000 + time_us + late_us, "", pixels))
        centre = start.copy()
        centre[:, :2] += velocity * time_us * 1e-6
        labels = Annotations.of_boxes(
            list(names), centre, size, yaw, velocity_mps=velocity, tracks=[f"{i:016x}" for i in range(n)]
        )
        labels = replace(labels, num_lidar_points=np.arange(n) + 3, categories=list(names))
        frames.append(
            Frame(
                token=f"{k:032x}",
                scene_token="scene",
                scene_name="2021.05.12.22.00.38_veh-35",
                timestamp_us=1_700_000_000_000_000 + time_us,
                cameras=tuple(views),
                global_from_ego=ego(time_us),
                annotations=labels,
                can_signals=np.array([0.1, 0.2, 9.8, 0, 0, 0.1, 8.0, 0, 0]),
            )
        )
    return frames


def furthest_px(ours: Frame, theirs: Frame, ours_name: str, theirs_name: str) -> float:
    """Largest distance of the pixels of points around the car, which must be seen alike in both."""
    points = np.random.default_rng(1).uniform([-30, -30, -1], [30, 30, 4], (2000, 3))
    points = np.concatenate([points, np.ones((len(points), 1))], 1) @ ours.global_from_ego.T
    pixels = []
    for frame, name in ((ours, ours_name), (theirs, theirs_name)):
        view = next(view for view in frame.cameras if view.name == name)
        camera = points @ invert_pose(view.global_from_camera).T
        pixels.append(view.camera.project(camera[:, :3])[0])
    seen = [np.isfinite(p).all(1) for p in pixels]
    assert seen[0].sum() > 100 and (seen[0] == seen[1]).all()
    near = seen[0] & (np.abs(pixels[0]) < 1e4).all(1)
    return float(np.abs(pixels[0] - pixels[1])[near].max())
