"""Pictures for a look at calibration: the ground where the lens has it, boxes of any lens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from drivestack.geometry import CameraModel, brown_conrady, kannala_brandt, pose, rotation_z
from drivestack.view.data_check import ground_lines, pictured, render_camera_check, render_data_check
from support.toy_drive import K, toy_drive


def ground_pixels(camera: CameraModel, turn: float = 0.0) -> np.ndarray:
    """Where a white image of a camera 1.5 m over the ground is changed by the grid: [H, W]."""
    frame = toy_drive(1, models={"front": camera})[0]
    view = replace(
        frame.cameras[0],
        image=np.zeros((camera.height_px, camera.width_px, 3), np.uint8),
        ego_from_camera=pose(rotation_z(turn) @ frame.cameras[0].ego_from_camera[:3, :3], [0, 0, 1.5]),
    )
    picture, problem = render_camera_check(replace(frame, cameras=(view,), annotations=None), view)
    assert problem == ""
    return picture[20:].max(-1) > 60  # below the camera's name


def test_the_ground_is_drawn_through_the_lens() -> None:
    """The ring at 10 m lies where the lens projects it; a pinhole of the same matrix has it elsewhere."""
    k = np.array([[200.0, 0, 320], [0, 200.0, 150], [0, 0, 1]])
    lens = kannala_brandt(k, 640, 400, [0.05, -0.01, 0.0, 0.0])
    angle = np.linspace(-1.2, 1.2, 200)
    ring_camera = np.stack([-10 * np.sin(angle), np.full_like(angle, 1.5), 10 * np.cos(angle)], 1)
    for camera, other in ((lens, lens.pinhole), (lens.pinhole, lens)):
        drawn = ground_pixels(camera)

        def hit(model: CameraModel, drawn: np.ndarray = drawn) -> float:
            pixels, _ = model.project(ring_camera)
            inside = ((pixels > 0) & (pixels < [639, 399])).all(1)
            u, v = np.round(pixels[inside]).astype(int).T
            near = [drawn[max(0, y - 21) : y - 18, max(0, x - 1) : x + 2].any() for x, y in zip(u, v)]
            return float(np.mean(near))

        assert hit(camera) > 0.97
        outer = np.abs(angle) > 0.5
        assert (
            np.nanmin(np.linalg.norm(camera.project(ring_camera)[0] - other.project(ring_camera)[0], axis=1)[outer]) > 2
        )
    assert not ground_pixels(lens)[:125].any()  # nothing above the horizon


def test_ground_lines_lie_on_the_ground() -> None:
    lines = list(ground_lines())
    assert sum(ring for _, ring in lines) == 3 and all((line[:, 2] == 0).all() for line, _ in lines)
    rings = [np.hypot(*line[:, :2].T) for line, ring in lines if ring]
    np.testing.assert_allclose([[r.min(), r.max()] for r in rings], [[10, 10], [20, 20], [30, 30]])


def test_boxes_are_drawn_whatever_the_lens() -> None:
    """Boxes all around, half of them out of a lens's sight."""
    k = np.array([[30.0, 0, 64], [0, 30, 40], [0, 0, 1]])
    models = {
        "front": kannala_brandt(k, 128, 80, [0.02, -0.01, 0.003, 0]),
        "left": brown_conrady(k, 128, 80, [-0.3, 0.1, 0, 0, -0.02]),
        "rear": CameraModel(K, 128, 80),
    }
    frame = toy_drive(1, models=models)[0]
    notes = frame.annotations
    assert notes is not None
    for turn in np.linspace(0, 2 * np.pi, 7):
        centres = (frame.global_from_ego @ pose(rotation_z(turn), [0, 0, 0]) @ np.array([6.0, 0, 0.8, 1]))[:3]
        boxes = replace(notes, centre_global_m=np.tile(centres, (3, 1)))
        picture, problems = render_data_check(replace(frame, annotations=boxes))
        assert problems == [] and picture.shape[2] == 3


def test_which_frames_are_drawn() -> None:
    frames = toy_drive(6)
    assert [frame.token for frame in pictured(frames, 3)] == ["toy-0", "toy-2", "toy-5"]
    bare = [replace(frame, annotations=None) for frame in frames[:4]]
    assert [frame.token for frame in pictured([*bare, *frames[4:]], 3)] == ["toy-4", "toy-5"]
    assert len(pictured(bare, 9)) == 4
