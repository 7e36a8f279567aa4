"""A drive of a few keyframes: four cameras with lenses of their own, images in memory, boxes; nothing is rendered."""

from __future__ import annotations

import numpy as np

from drivestack.core.frames import Annotations, CameraView, Frame
from drivestack.geometry import CameraModel, brown_conrady, kannala_brandt, pose, rotation_z

AHEAD = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
START_US = 1_700_000_000_000_000
K = np.array([[90.0, 0, 64.5], [0, 91.0, 40.25], [0, 0, 1]])
MODELS = {
    "front": kannala_brandt(
        np.array([[55.0, 0, 64.5], [0, 55.0, 40.25], [0, 0, 1]]), 128, 80, [0.02, -0.01, 3e-3, 1e-4]
    ),
    "left": brown_conrady(K, 128, 80, [-0.3, 0.12, 1e-3, -5e-4, -0.02]),
    "rear": CameraModel(K, 128, 80),
    "right": brown_conrady(K, 128, 80, [0.5, 0.1, 1e-4, 2e-4, 0.01, 0.8, 0.2, 0.02]),
}
YAWS_DEG = {"front": 0, "left": 90, "rear": 180, "right": -90}


def toy_drive(num_frames: int = 4, late_us: int = 7_000, models: dict[str, CameraModel] | None = None) -> list[Frame]:
    """Frames 0.5 s apart in a drive on a curve; each camera fires ``late_us`` later than the one before it."""
    rng = np.random.default_rng(0)
    models = models or MODELS

    def car(time_us: int) -> np.ndarray:
        t = time_us * 1e-6
        return pose(rotation_z(0.1 + 0.2 * t), [600.0 + 8 * t, -30 + 0.9 * t * t + 0.8 * t, 0.02 * t])

    frames = []
    for i in range(num_frames):
        views = []
        for n, (name, model) in enumerate(models.items()):
            time_us = 500_000 * i + late_us * n
            turn = rotation_z(np.radians(YAWS_DEG[name])) @ AHEAD
            image = np.repeat(np.repeat(rng.integers(0, 255, (10, 16, 3), dtype=np.uint8), 8, 0), 8, 1)
            mounted = pose(turn, [1.5 - n, 0.2 * n, 1.5])
            views.append(CameraView(name, model, mounted, car(time_us), START_US + time_us, image=image))
        here = car(500_000 * i)
        boxes = [[15.0, 1.0, 0.8], [-12.0, 3.0, 0.9], [9.0, -6.0, 0.9]]
        notes = Annotations.of_boxes(
            ["car", "car", "person"],
            boxes,
            [[4.5, 1.9, 1.6], [4.2, 1.8, 1.5], [0.6, 0.7, 1.75]],
            [0.1, 3.0, 0.5],
            velocity_mps=[[8.0, 0.5], [np.nan, np.nan], [0.0, 0.0]],
            tracks=["a", "b", "c"],
            global_from_frame=here,
        )
        token = f"toy-{i}"
        before, after = f"toy-{i - 1}" if i else "", f"toy-{i + 1}" if i + 1 < num_frames else ""
        frames.append(
            Frame(token, "toy", "toy", START_US + 500_000 * i, tuple(views), here, annotations=notes,
                  prev_token=before, next_token=after)
        )  # fmt: skip
    return frames
