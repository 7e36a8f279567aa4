"""Pictures: boxes land where the projection says, clips and errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drivestack.core.answers import Detections
from drivestack.core.errors import ConfigError, DataError
from drivestack.core.frames import Annotations, CameraView, Frame
from drivestack.data_tools.clips.perturb import perturb_calibration
from drivestack.geometry import PinholeCamera, pose, rotation_z
from drivestack.view.boxes import camera_rows, render_clip, render_frame, save_picture
from drivestack.view.drawing import CLASS_COLOURS, GROUND_TRUTH, View, clip_near

FORWARD = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # ego from a camera that looks ahead
AZIMUTHS = {"CAM_BACK": 180, "CAM_FRONT": 0, "CAM_BACK_RIGHT": -110, "CAM_FRONT_LEFT": 55}
AZIMUTHS |= {"CAM_FRONT_RIGHT": -55, "CAM_BACK_LEFT": 110}
VIEW = View(camera_width_px=160)


def make_frame(folder: Path, boxes_ego: np.ndarray, names: list[str]) -> Frame:
    """Six grey cameras around the ego; the BEV frame has x to the right and y forward, as on nuScenes."""
    ego_from_bev = pose(rotation_z(-np.pi / 2), [0.0, 0.0, 0.0])
    camera = PinholeCamera(np.array([[80.0, 0, 80], [0, 80.0, 45], [0, 0, 1]]), 160, 90)
    cameras = []
    for name, degrees in AZIMUTHS.items():
        ego_from_camera = pose(rotation_z(np.radians(degrees)) @ FORWARD, [0.0, 0.0, 1.5])
        path = folder / f"{name}.png"
        Image.new("RGB", (160, 90), (90, 90, 90)).save(path)
        cameras.append(CameraView(name, camera, ego_from_camera, np.eye(4), 0, str(path)))
    count = len(names)
    labels = Annotations(
        names,
        boxes_ego[:, :3],
        rotation_z(boxes_ego[:, 6]),
        boxes_ego[:, 3:6],
        np.zeros((count, 2)),
        [""] * count,
        np.ones(count, dtype=np.int64),
        np.zeros(count, dtype=np.int64),
        [""] * count,
        [""] * count,
    )
    return Frame("token", "s", "scene-0001", 0, tuple(cameras), np.eye(4), ego_from_bev, annotations=labels)


@pytest.fixture
def frame(tmp_path: Path) -> Frame:
    ahead = [12.0, 0, 1.0, 4, 2, 2, 0]
    behind_left = [-10.0, 8.0, 1.0, 4, 2, 2, 1]
    return make_frame(tmp_path, np.array([ahead, behind_left]), ["car", "truck"])


def count_of(picture: Image.Image, colour: tuple[int, int, int], box: tuple[int, int, int, int]) -> int:
    part = np.asarray(picture.crop(box)).astype(int)
    return int((abs(part - colour).max(-1) < 60).sum())


def tile(name: str, frame: Frame) -> tuple[int, int, int, int]:
    """Where a camera's image lies in the finished picture, without its name tag."""
    for j, row in enumerate(camera_rows(frame)):
        for i, view in enumerate(row):
            if view.name == name:
                return (i * 161 + 40, 10 + j * 91 + 12, i * 161 + 158, 10 + j * 91 + 90)
    raise KeyError(name)


def test_cameras_stand_as_on_the_car(frame: Frame) -> None:
    front, back = camera_rows(frame)
    assert [view.name for view in front] == ["CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT"]
    assert [view.name for view in back] == ["CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT"]


def test_one_camera_is_enough(frame: Frame) -> None:
    single = replace(frame, cameras=frame.cameras[1:2])
    assert [[v.name for v in row] for row in camera_rows(single)] == [["CAM_FRONT"]]
    assert render_frame(single, None, ["car"], VIEW).size[0] > 160


def test_ground_truth_is_green_and_in_the_right_cameras(frame: Frame) -> None:
    picture = render_frame(frame, None, ["car"], VIEW)
    assert count_of(picture, GROUND_TRUTH, tile("CAM_FRONT", frame)) > 10
    assert count_of(picture, GROUND_TRUTH, tile("CAM_BACK_LEFT", frame)) > 10
    assert count_of(picture, GROUND_TRUTH, tile("CAM_FRONT_RIGHT", frame)) == 0


def test_objects_without_points_are_left_out(frame: Frame) -> None:
    unseen = replace(frame.annotations, num_lidar_points=np.array([0, 1]))
    picture = render_frame(replace(frame, annotations=unseen), None, ["car"], VIEW)
    assert count_of(picture, GROUND_TRUTH, tile("CAM_FRONT", frame)) == 0


def test_predictions_have_their_class_colour_above_the_threshold(frame: Frame) -> None:
    boxes = np.concatenate([frame.bev_boxes()[[0, 0]]]).astype(np.float32)
    boxes[1, :2] = [3, -12]  # in the BEV frame: behind
    found = Detections("token", boxes, np.array([0.9, 0.2], np.float32), np.array([0, 0]))
    picture = render_frame(replace(frame, annotations=None), found, ["bus"], VIEW)
    assert count_of(picture, CLASS_COLOURS["bus"], tile("CAM_FRONT", frame)) > 10
    assert count_of(picture, CLASS_COLOURS["bus"], tile("CAM_BACK", frame)) == 0


def test_near_plane_clipping_keeps_the_visible_part() -> None:
    segment = np.array([[0.0, 0, -1], [2.0, 0, 1]])
    np.testing.assert_allclose(clip_near(segment, 0.0)[:2], [[1.0, 0, 0], [2.0, 0, 1]])
    assert len(clip_near(segment - [0, 0, 5])) == 0
    square = np.array([[0.0, 0, -1], [1.0, 0, -1], [1.0, 0, 1], [0.0, 0, 1]])
    assert len(clip_near(square, 0.5)) == 4


def test_boxes_around_the_camera_do_not_break_the_picture(tmp_path: Path) -> None:
    around = make_frame(tmp_path, np.array([[0.5, 0, 1.5, 6, 6, 6, 0.3]]), ["car"])
    render_frame(around, None, ["car"], VIEW)


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_clips(frame: Frame, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clip{suffix}"
    other = replace(frame, token="other", annotations=None)  # a still picture would be merged into one image
    render_clip([frame, other, frame], {}, ["car"], path, VIEW)
    if suffix == ".gif":
        with Image.open(path) as clip:
            assert clip.n_frames == 3
            assert clip.info["duration"] == 500
    assert path.stat().st_size > 1000
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_clips_of_another_kind_are_refused(frame: Frame, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"name it \.gif or \.mp4"):
        render_clip([frame], {}, ["car"], tmp_path / "clip.avi")
    with pytest.raises(DataError, match="no frames"):
        render_clip([], {}, ["car"], tmp_path / "clip.gif")


@pytest.mark.parametrize("content", [None, b"", b"\x89PNG\r\n\x1a\nbroken"])
def test_a_bad_image_is_named_and_nothing_is_written(frame: Frame, tmp_path: Path, content: bytes | None) -> None:
    path = Path(frame.cameras[2].image_path)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"sample token, camera CAM_BACK_RIGHT: .*CAM_BACK_RIGHT\.png"):
        save_picture(render_frame(frame, None, ["car"], VIEW), tmp_path / "picture.png")
    assert not (tmp_path / "picture.png").exists()


def test_perturbed_calibration_moves_the_boxes_in_the_images(frame: Frame) -> None:
    (turned,) = perturb_calibration([frame], "yaw:90")
    before, after = frame.cameras[1], turned.cameras[1]
    axis = after.ego_from_camera[:3, 2]
    np.testing.assert_allclose(axis, [0, 1, 0], atol=1e-9)  # CAM_FRONT is now said to look to the left
    np.testing.assert_allclose(after.global_from_camera, frame.global_from_ego @ after.ego_from_camera, atol=1e-9)
    assert after.image_path == before.image_path
    (shuffled,) = perturb_calibration([frame], "shuffle")
    for i, view in enumerate(shuffled.cameras):
        other = frame.cameras[(i + 1) % 6]
        np.testing.assert_array_equal(view.global_from_camera, other.global_from_camera)
    for wrong in ("mix", "yaw:far", "pitch:3"):
        with pytest.raises(ConfigError, match="shuffle"):
            perturb_calibration([frame], wrong)
