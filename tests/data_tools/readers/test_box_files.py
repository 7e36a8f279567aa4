"""Boxes beside images: which keyframe a time labels, and where its boxes are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivestack.core.errors import DataError
from drivestack.core.frames import Annotations, Frame
from drivestack.data_tools.readers.box_files import label_frames, read_boxes
from drivestack.geometry import pose, rotation_z

START_US = 1_700_000_000_000_000
POST = np.array([60.0, 3.0, 1.0])  # stands still, in the global frame


def car(time_us: int) -> np.ndarray:
    """20 m/s ahead."""
    return pose(rotation_z(0.0), [20e-6 * (time_us - START_US), 0.0, 0.0])


def drive(times_us: list[int], scene: str = "s") -> list[Frame]:
    return [Frame(f"{scene}{t}", scene, scene, t, (), car(t)) for t in times_us]


def images(hz: float, count: int) -> list[int]:
    return [START_US + round(i * 1e6 / hz) for i in range(count)]


def labels(path: Path, times_us: list[int], around_the_car: bool) -> Path:
    moments = []
    for time in times_us:
        centre = POST - car(time)[:3, 3] if around_the_car else POST
        box: dict[str, Any] = {"class": "post", "centre": centre.tolist(), "size_lwh": [1, 1, 2], "yaw_rad": 0.0}
        moments.append({"timestamp_us": time, "objects": [box]})
    path.write_text(json.dumps({"frames": moments}))
    return path


def labelled(frames: list[Frame]) -> list[tuple[int, Annotations]]:
    return [(i, frame.annotations) for i, frame in enumerate(frames) if frame.annotations is not None]


@pytest.mark.parametrize("boxes_in", ["global", "ego"])
def test_each_time_labels_one_keyframe(tmp_path: Path, boxes_in: str, caplog: pytest.LogCaptureFixture) -> None:
    """Images at 30 Hz, labels at 10 Hz and 12 ms late: an object that stands still has one place."""
    frames = drive(images(30, 30))
    path = labels(tmp_path / "b.json", [time + 12_000 for time in images(10, 10)], boxes_in == "ego")
    found = labelled(label_frames(frames, path, boxes_in))
    assert [i for i, _ in found] == list(range(0, 30, 3))
    for _, notes in found:
        np.testing.assert_allclose(notes.centre_global_m[0], POST, rtol=0, atol=1e-5)
    assert "labels 10 of 30 keyframes; 0 of its 10 times belong to none" in caplog.text


def test_the_nearest_of_several_times_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Labels at 30 Hz, images at 10 Hz, in any order and of two drives."""
    times = images(10, 8)
    frames = drive(times[4:], "b") + drive(times[:4], "a")
    path = labels(tmp_path / "b.json", [time + 4_000 for time in images(30, 24)], True)
    found = label_frames(frames, path, "ego")
    assert [i for i, _ in labelled(found)] == list(range(8))
    for frame in found:
        assert frame.annotations is not None
        off = float(np.linalg.norm(frame.annotations.centre_global_m[0] - POST))
        after_the_last = frame.timestamp_us in (times[3], times[7])  # of a drive: by the keyframe's pose
        assert off == pytest.approx(4e-3 * 20 if after_the_last else 0, abs=1e-5)
    assert "labels 8 of 8 keyframes; 16 of its 24 times belong to none" in caplog.text


def test_a_car_that_turns(tmp_path: Path) -> None:
    """Between two keyframes it has turned by half of the way."""
    frames = [
        Frame(str(t), "s", "s", START_US + t, (), pose(rotation_z(1e-6 * t), [0, 0, 0])) for t in (0, 80_000, 160_000)
    ]
    box = {"class": "post", "centre": [100, 0, 1], "size_lwh": [1, 1, 2], "yaw_rad": 0.5, "velocity": [1.0, 0.0]}
    moment = {"timestamp_us": START_US + 120_001, "objects": [box]}
    (tmp_path / "b.json").write_text(json.dumps({"frames": [moment]}))
    ((i, notes),) = labelled(label_frames(frames, tmp_path / "b.json", "ego"))
    turn = 0.120001
    assert i == 2
    wanted = [100 * np.cos(turn), 100 * np.sin(turn), 1, 1, 1, 2, 0.5 + turn, np.cos(turn), np.sin(turn)]
    np.testing.assert_allclose(notes.boxes_in(np.eye(4))[0], wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("time", ["1e30", "Infinity", "NaN", str(2**63), str(-(2**63) - 1), "1" * 400])
def test_times_that_are_none(tmp_path: Path, time: str) -> None:
    path = tmp_path / "b.json"
    path.write_text('{"frames": [{"timestamp_us": TIME, "objects": []}]}'.replace("TIME", time))
    with pytest.raises(DataError, match=r"b\.json: not a file of boxes") as caught:
        label_frames(drive([START_US]), path)
    assert len(str(caught.value)) < 300
    if not time.startswith(("I", "N")):
        with pytest.raises(DataError, match="is no time in microseconds"):
            read_boxes(path)


def test_the_ends_of_time_are_far_from_every_keyframe(tmp_path: Path) -> None:
    path = labels(tmp_path / "b.json", [-(2**63), 2**63 - 1], False)
    with pytest.raises(DataError, match="none of its times"):
        label_frames(drive([START_US, -START_US]), path)


def test_without_frames_there_is_nothing_to_label(tmp_path: Path) -> None:
    assert label_frames([], labels(tmp_path / "b.json", [START_US], False)) == []
    assert label_frames([], labels(tmp_path / "c.json", [], False)) == []
