"""The picture of all answers: what is asked for is in it, labels and answers may each be missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drivestack.core.answers import Detections, LaneGraph, OccupancyGrid, SceneAnswer
from drivestack.core.errors import DataError
from drivestack.core.frames import CameraView, Frame
from drivestack.core.labels import LaneLabels, OccupancyLabels
from drivestack.data_tools.labels.files import write_occupancy
from drivestack.geometry import PinholeCamera, pose, rotation_z
from drivestack.view.drawing import GROUND_TRUTH, View
from drivestack.view.picture import LANE_COLOUR, render_answer_clip, render_answers

FORWARD = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # ego from a camera that looks ahead
VIEW = View(camera_width_px=200)


@pytest.fixture
def frame(tmp_path: Path) -> Frame:
    """Six grey cameras, no labels; the BEV frame has x to the right and y forward."""
    ego_from_bev = pose(rotation_z(-np.pi / 2), [0.0, 0.0, 0.0])
    camera = PinholeCamera(np.array([[80.0, 0, 80], [0, 80.0, 45], [0, 0, 1]]), 160, 90)
    path = tmp_path / "grey.png"
    Image.new("RGB", (160, 90), (90, 90, 90)).save(path)
    cameras = []
    for degrees in (0, -55, 55, 180, 110, -110):
        ego_from_camera = pose(rotation_z(np.radians(degrees)) @ FORWARD, [0.0, 0.0, 1.5])
        cameras.append(CameraView(f"CAM_{degrees}", camera, ego_from_camera, np.eye(4), 0, str(path)))
    return Frame("token", "s", "scene-0001", 0, tuple(cameras), np.eye(4), ego_from_bev)


def lane_graph() -> LaneGraph:
    """Two lanes, the first ends where the second starts, and a red light for the first."""
    x = np.linspace(0, 20, 11, dtype=np.float32)
    line = np.stack([x, np.full(11, 4, np.float32), np.zeros(11, np.float32)], 1)
    return LaneGraph(
        "token",
        np.stack([line, line + [20, 0, 0]]).astype(np.float32),
        np.array([0.9, 0.8], np.float32),
        np.array([[60, 10, 80, 30]], np.float32),
        np.array([1]),
        np.array([0.9], np.float32),
        np.array([[0, 0.9], [0, 0]], np.float32),
        np.array([[0.9], [0]], np.float32),
    )


def lane_labels() -> LaneLabels:
    graph = lane_graph()
    return LaneLabels(
        list(graph.centrelines),
        np.zeros(2, bool),
        graph.elements_xyxy_px,
        graph.attributes,
        (graph.lane_lane > 0.5).astype(np.int8),
        (graph.lane_element > 0.5).astype(np.int8),
    )


def voxels() -> np.ndarray:
    out = np.full((200, 200, 16), 17, np.uint8)
    out[:, :, 2] = 11
    out[120:130, 100:105, 3:7] = 4
    return out


def answer(**parts) -> SceneAnswer:
    detections = Detections(
        "token", np.array([[-3, 12, 0.8, 4, 2, 1.6, 0, 0, 0]], np.float32), np.array([0.9], np.float32), np.array([0])
    )
    full = SceneAnswer("token", detections, OccupancyGrid("token", voxels()), lane_graph())
    return replace(full, **parts)


def shows(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    """Pixels of the colour's hue, as thin lines blend with what is under them."""
    hue = np.subtract(colour, np.mean(colour))
    hues = picture - picture.mean(-1, keepdims=True)
    strength = np.linalg.norm(hues, axis=-1)
    return int(((hues @ hue > 0.97 * np.linalg.norm(hue) * strength) & (strength > 25)).sum())


@pytest.mark.parametrize("missing", [(), ("boxes",), ("occupancy",), ("lanes",), ("boxes", "occupancy", "lanes")])
def test_any_subset_of_answers_without_labels(frame: Frame, missing: tuple[str, ...]) -> None:
    picture = render_answers(frame, answer(**dict.fromkeys(missing)), ["car"], VIEW)
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    assert abs(picture.shape[1] - (200 * 1900 / 560 if "occupancy" not in missing else 3 * 200 + 225)) < 15
    assert (shows(picture, LANE_COLOUR) > 50) == ("lanes" not in missing)
    assert not shows(picture, GROUND_TRUTH)


def test_labels_are_green_and_can_be_left_out(frame: Frame, tmp_path: Path) -> None:
    path = tmp_path / "labels.npz"
    write_occupancy(path, OccupancyLabels(voxels(), np.ones((200, 200, 16), bool), np.ones((200, 200, 16), bool)))
    labelled = replace(frame, occupancy_path=str(path), lanes=lane_labels())
    with_labels = render_answers(labelled, None, ["car"], VIEW)
    assert shows(with_labels, GROUND_TRUTH) > 50 and not shows(with_labels, LANE_COLOUR)
    both = render_answers(labelled, answer(), ["car"], VIEW)
    assert shows(both, GROUND_TRUTH) and shows(both, LANE_COLOUR)
    assert not shows(render_answers(labelled, answer(), ["car"], replace(VIEW, ground_truth=False)), GROUND_TRUTH)


def test_lanes_below_the_threshold_stay_invisible(frame: Frame) -> None:
    picture = render_answers(frame, answer(), ["car"], replace(VIEW, score_threshold=0.95))
    assert not shows(picture, LANE_COLOUR)


def test_missing_image_and_clip_suffix(frame: Frame, tmp_path: Path) -> None:
    answers = {"token": answer(), "later": answer(occupancy=None, token="later")}
    frames = [frame, replace(frame, token="later")]  # pictures of two sizes
    render_answer_clip(frames, lambda f: answers[f.token], ["car"], tmp_path / "clip.gif", VIEW)
    with Image.open(tmp_path / "clip.gif") as clip:
        assert clip.n_frames == 2
    with pytest.raises(DataError, match=r"name it \.gif or \.mp4"):
        render_answer_clip([frame], lambda _: None, ["car"], tmp_path / "clip.avi", VIEW)
    broken = replace(frame, cameras=(replace(frame.cameras[0], image_path="nowhere.png"), *frame.cameras[1:]))
    with pytest.raises(DataError, match=r"CAM_0.*nowhere\.png is missing"):
        render_answers(broken, None, ["car"], VIEW)
