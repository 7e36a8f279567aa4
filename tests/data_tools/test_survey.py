"""What a set shows, and what looks wrong in it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drivestack.core.frames import Annotations, CameraView, Frame
from drivestack.data_tools.survey import survey, survey_boxes, survey_cameras, survey_times
from drivestack.data_tools.survey.cameras import covered, field_of_view_deg, mounting
from drivestack.geometry import CameraModel, cylinder, kannala_brandt, pose, rotation_z
from support.toy_drive import AHEAD, MODELS, K, toy_drive

WIDE = np.array([[9.0, 0, 64], [0, 9.0, 40], [0, 0, 1]])


def rotation_x(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def each_camera(frames: list[Frame], change: Callable[[CameraView], CameraView]) -> list[Frame]:
    return [replace(frame, cameras=tuple(change(view) for view in frame.cameras)) for frame in frames]


def each_label(frames: list[Frame], change: Callable[[Frame], Annotations]) -> list[Frame]:
    return [replace(frame, annotations=change(frame)) for frame in frames]


def test_a_drive_that_fits() -> None:
    frames = toy_drive(6)
    numbers, problems = survey(frames)
    assert problems == []
    times, cameras, boxes = numbers["times"], numbers["cameras"], numbers["boxes"]
    assert (times["drives"], times["keyframes"], times["rate_hz"], times["gaps"]) == (1, 6, 2.0, 0)
    assert times["speed_mps"]["median"] == pytest.approx(8.2, abs=0.4)
    assert times["camera_offset_ms"]["right"] == {"median": 21.0, "max": 21.0}
    assert list(cameras["each"]) == list(MODELS)
    assert boxes["boxes"] == 18 and boxes["tracks"] == 3 and boxes["in_cameras"]["in_one"] == 1.0
    car = boxes["classes"]["car"]
    assert car["boxes"] == 12 and car["length_m"]["median"] == 4.35 and car["speed_known"] == 0.5
    assert (car["length_m"]["min"], car["length_m"]["max"]) == (4.2, 4.5)
    assert car["length_m"]["max_in"] == "toy-0 object 0"
    assert boxes["height_of_bottoms_m"] == pytest.approx(0.025, abs=0.01) and boxes["lidar"] is None


def test_angles_and_fields_of_view() -> None:
    """A camera turned 30 degrees to the left, 10 down, its right side 5 down."""
    camera = CameraModel(np.array([[100.0, 0, 100], [0, 100, 50], [0, 0, 1]]), 200, 100)
    tilt = AHEAD @ rotation_x(np.radians(-10))  # the optical axis towards the image's bottom
    roll = np.eye(4)
    roll[:3, :3] = rotation_z(np.radians(5))  # about the optical axis, which is z here
    view = CameraView("a", camera, pose(rotation_z(np.radians(30)) @ tilt, [1, 2, 1.5]) @ roll, np.eye(4), 0)
    found = mounting(view)
    assert found["yaw_deg"] == pytest.approx(30) and found["pitch_deg"] == pytest.approx(-10)
    assert found["roll_deg"] == pytest.approx(5) and found["position_m"] == [1, 2, 1.5]
    assert found["field_of_view_deg"] == [90.0, pytest.approx(2 * np.degrees(np.arctan(0.5)), abs=0.1)]
    assert field_of_view_deg(cylinder(360, 100, np.radians(180)))[0] == 180.0
    wide = kannala_brandt(np.array([[100.0, 0, 160], [0, 100, 100], [0, 0, 1]]), 320, 200, [0.0] * 4)
    assert field_of_view_deg(wide)[0] == pytest.approx(np.degrees(3.2), abs=0.1)  # over 180: the model is t = angle


def test_coverage_and_overlaps() -> None:
    """Four cameras of 90 degrees at the middle of the car see all around once; of 100 degrees, 10 with each other."""

    def rig(degrees: float) -> list[Frame]:
        focal = 50 / np.tan(np.radians(degrees / 2))
        camera = CameraModel(np.array([[focal, 0, 50], [0, focal, 50], [0, 0, 1]]), 100, 100)
        yaws = {"front": 0, "left": 90, "back": 180, "right": -90}
        views = [
            CameraView(n, camera, pose(rotation_z(np.radians(d)) @ AHEAD, [0, 0, 1 + 1e-3 * d]), np.eye(4), 0)
            for n, d in yaws.items()
        ]
        return [Frame("a", "s", "s", 0, tuple(views), np.eye(4))]

    numbers, _ = survey_cameras(rig(100))
    assert numbers["covered_deg"] == 360 and numbers["unseen_deg"] == []
    assert set(numbers["overlaps_deg"]) == {"left / front", "front / right", "back / left", "right / back"}
    assert all(abs(degrees - 10) <= 1 for degrees in numbers["overlaps_deg"].values())
    numbers, _ = survey_cameras(rig(80))
    assert numbers["covered_deg"] == pytest.approx(320, abs=4) and numbers["overlaps_deg"] == {}
    assert [round(a + b) // 2 for a, b in numbers["unseen_deg"]] == pytest.approx([45, 135, 225, 315], abs=1)
    left = covered(rig(80)[0].cameras[1])
    assert np.flatnonzero(left).mean() / 2 == pytest.approx(90, abs=0.5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda v: replace(v, name={"left": "right", "right": "left"}.get(v.name, v.name)), "its name says right, but"),
        (lambda v: replace(v, name={"front": "rear", "rear": "front"}.get(v.name, v.name)), "its name says front, but"),
        (lambda v: replace(v, ego_from_camera=pose(v.ego_from_camera[:3, :3], [*v.ego_from_camera[:2, 3], -0.4])),
         r"camera front: stands -0\.40 m over the ground"),
        (lambda v: replace(v, ego_from_camera=v.ego_from_camera @ pose(rotation_z(0.5), [0, 0, 0])), "rolled by 29"),
        (lambda v: replace(v, ego_from_camera=v.ego_from_camera @ pose(rotation_x(0.7), [0, 0, 0])), "40 degrees up"),
        (lambda v: replace(v, camera=CameraModel(K, 64, 80)), "principal point .* is far from the middle of 64 x 80"),
        (lambda v: replace(v, camera=CameraModel(K * [[2], [1], [1]], 256, 80)), "focal lengths .* differ"),
        (lambda v: replace(v, camera=CameraModel(WIDE, 128, 80)), "is a lens missing"),
        (lambda v: replace(v, ego_from_camera=pose(AHEAD, [1, 0, 1.5])), "cameras front and left have the same pose"),
    ],
)  # fmt: skip
def test_cameras_that_look_wrong(change: Callable[[CameraView], CameraView], says: str) -> None:
    _, problems = survey_cameras(each_camera(toy_drive(2), change))
    assert any(re.search(says, text) for text in problems), problems


def shifted(up_m: float) -> Callable[[Frame], Annotations]:
    def change(frame: Frame) -> Annotations:
        notes = frame.annotations
        assert notes is not None
        return replace(notes, centre_global_m=notes.centre_global_m + [0, 0, up_m])

    return change


def resized(factors: list[float]) -> Callable[[Frame], Annotations]:
    def change(frame: Frame) -> Annotations:
        notes = frame.annotations
        assert notes is not None
        return replace(notes, size_lwh_m=notes.size_lwh_m * factors)

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (shifted(1.6), "boxes within 25 m float: their bottoms are 1.6"),
        (shifted(-0.8), "boxes within 25 m sink: their bottoms are -0.7"),
        (shifted(-60.0), "no box shows up in any camera"),
        (resized([2, 2, 1]), "class car: the median length is 8.70 m, usual are 3 to 6.5"),
    ],
)
def test_boxes_that_look_wrong(change: Callable[[Frame], Annotations], says: str) -> None:
    _, problems = survey_boxes(each_label(toy_drive(6), change))
    assert any(says in text for text in problems), problems


def test_times_that_look_wrong() -> None:
    frames = toy_drive(6)
    still = [replace(frame, global_from_ego=np.eye(4)) for frame in frames]
    assert "the car never moves" in survey_times(still)[1][0]
    late = each_camera(frames, lambda v: replace(v, timestamp_us=v.timestamp_us + 400_000 * (v.name == "left")))
    assert survey_times(late)[1][0].startswith("camera left fires up to 407 ms from its keyframe")
    gap = [*frames[:2], *frames[4:]]
    numbers, problems = survey_times(gap)
    assert (numbers["gaps"], numbers["longest_gap_s"], numbers["longest_gap_after"]) == (1, 1.5, "toy-1")
    assert problems == []
    without = [frames[0], *(replace(frame, cameras=frame.cameras[:3]) for frame in frames[1:])]
    assert survey_times(without)[0]["keyframes_without_camera"] == {"right": 5}


def test_boxes_and_points(tmp_path: Path) -> None:
    """A sweep with 20 points in each box; then boxes three metres aside."""
    rng = np.random.default_rng(0)
    frames = []
    for frame in toy_drive(4):
        boxes = frame.bev_boxes()
        points = np.concatenate([box[:3] + rng.uniform(-0.3, 0.3, (20, 3)) for box in boxes])
        scattered = rng.uniform(-30, 30, (200, 3)) * [1, 1, 0] + [0, 0, -3]
        path = tmp_path / f"{frame.token}.bin"
        np.concatenate([np.concatenate([points, scattered]), np.full((260, 1), 0.5)], 1).astype(np.float32).tofile(path)
        frames.append(replace(frame, lidar_path=str(path)))
    numbers, problems = survey_boxes(frames)
    lidar = numbers["lidar"]
    assert lidar == {"sweeps": 4, "near_boxes": 12, "with_points": 1.0, "median_points": 20.0} and problems == []

    def aside(frame: Frame) -> Annotations:
        notes = frame.annotations
        assert notes is not None
        return replace(notes, centre_global_m=notes.centre_global_m + [4.0, 4.0, 0])

    assert "only 0% of 12 boxes within 25 m hold LiDAR points" in survey_boxes(each_label(frames, aside))[1][0]


def test_without_labels() -> None:
    frames = [replace(frame, annotations=None) for frame in toy_drive(2)]
    numbers, problems = survey(frames)
    assert numbers["boxes"]["boxes"] == 0 and problems == []
