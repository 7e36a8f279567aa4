"""Objects that are occluded now and were seen, and false boxes on the ray of an object."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from drivestack.bev.evaluation.box_details import false_boxes_on_rays, occluded_objects
from drivestack.bev.evaluation.nuscenes_boxes import ScoredBoxes
from drivestack.core.frames import Annotations, Frame
from drivestack.geometry import pose, rotation_z


def frame(
    k: int, names: list[str], xy: np.ndarray, levels: list[int], points: list[int] | None = None, turn: float = 0.0
) -> Frame:
    """Keyframe k, half a second apart; instances are numbered by their place in the list."""
    centre = np.concatenate([np.reshape(xy, (-1, 2)), np.zeros((len(names), 1))], 1)
    notes = Annotations.of_boxes(names, centre, np.ones((len(names), 3)), np.zeros(len(names)))
    notes = replace(
        notes,
        visibility=np.array(levels),
        instance_tokens=[f"i{n}" for n in range(len(names))],
        num_lidar_points=np.array(points or [5] * len(names)),
    )
    return Frame(f"f{k}", "s", "s", 500_000 * k, (), pose(rotation_z(turn), [0, 0, 0]), np.eye(4), annotations=notes)


def boxes(names: list[str], xy: np.ndarray, scores: list[float]) -> ScoredBoxes:
    n = len(names)
    centre = np.concatenate([np.reshape(xy, (-1, 2)), np.zeros((n, 1))], 1)
    return ScoredBoxes(names, np.array(scores), centre, np.ones((n, 3)), np.zeros(n), np.zeros((n, 2)), [""] * n)


def test_hidden_objects_count_if_they_were_seen_within_two_seconds() -> None:
    xy, names = np.array([[10.0, 0], [20, 0], [30, 0]]), ["car", "car", "bus"]
    levels = [[4, 1, 4], [1, 1, 4], [1, 1, 2], [1, 1, 1], [1, 1, 1], [1, 1, 1]]
    frames = [frame(k, names, xy, own, [0, 0, 5]) for k, own in enumerate(levels)]
    none = {own.token: boxes([], np.zeros((0, 2)), []) for own in frames}
    found = occluded_objects(frames, none)
    # the first car in keyframes 1 to 4 (2 s after it was seen), the bus in 3 to 5; the second was never seen
    assert found["labels"] == 4 + 3 and found["recall"] == found["ap"] == 0.0
    assert found["others"] == 3 and found["recall_others"] == 0.0  # the bus; what has no points counts nowhere else
    only = {**none, "f3": boxes(["car", "car", "bus"], xy, [0.9, 0.8, 0.7])}
    found = occluded_objects(frames, only)
    assert found["recall"] == pytest.approx(2 / 7)
    # of the list car (a hit), car at 20 m (no label that counts: false), bus (a hit)
    assert found["ap"] == pytest.approx((1 + 2 / 3) / 7)
    weak = {**none, "f3": boxes(["car"], xy[:1], [0.1])}
    assert occluded_objects(frames, weak)["recall"] == 0 and occluded_objects(frames, weak)["ap"] > 0


def test_boxes_of_other_labels_are_no_false_positives() -> None:
    xy = np.array([[10.0, 0], [20, 0]])
    frames = [frame(0, ["car", "car"], xy, [4, 4]), frame(1, ["car", "car"], xy, [1, 4])]
    found = {own.token: boxes(["car", "car"], xy, [0.5, 0.9]) for own in frames}
    assert occluded_objects(frames, found)["ap"] == 1.0
    found["f0"] = boxes(["car"], [30.0, 5.0], [0.9])
    assert occluded_objects(frames, found)["ap"] == pytest.approx(1 / 2)


def test_labels_without_levels_and_beyond_the_range() -> None:
    xy = np.array([[10.0, 0]])
    plain = frame(0, ["car"], xy, [4])
    assert occluded_objects([replace(plain, annotations=replace(plain.annotations, visibility=None))], {}) is None
    far = [frame(k, ["car"], np.array([[60.0, 0]]), [4, 1][k : k + 1]) for k in range(2)]
    none = {own.token: boxes([], np.zeros((0, 2)), []) for own in far}
    assert occluded_objects(far, none) == {
        "labels": 0, "recall": None, "ap": None, "others": 0, "recall_others": None
    }  # fmt: skip


@pytest.mark.parametrize("turn", [0.0, 2.0])
def test_false_boxes_on_the_ray(turn: float) -> None:
    """The ray is seen from the car, whichever way it looks, and over the jump of azimuth at the back."""
    one = frame(0, ["car"], [-20.0, 0.01], [4], turn=turn)
    ray = lambda along_m, azimuth_deg: [
        -(20 + along_m) * np.cos(np.deg2rad(azimuth_deg)),
        -(20 + along_m) * np.sin(np.deg2rad(azimuth_deg)),
    ]
    cases = {
        (3.0, 1.0): 1, (-3.0, -1.0): 1, (5.9, 0.0): 1, (6.2, 0.0): 0, (1.0, 0.0): 0, (3.0, 2.5): 0, (-1.4, 3.0): 0
    }  # fmt: skip
    for (along_m, azimuth_deg), expected in cases.items():
        found = false_boxes_on_rays([one], {"f0": boxes(["car"], ray(along_m, azimuth_deg), [0.5])})
        assert found["on_rays"] == expected, (along_m, azimuth_deg)
        assert found["per_frame"] == expected
    other = {"f0": boxes(["bus", "car"], np.array([ray(3, 0), ray(3, 0)]), [0.5, 0.1])}
    assert false_boxes_on_rays([one], other) == {"false": 1, "on_rays": 0, "per_frame": 0.0}  # another class; too weak
    right = {"f0": boxes(["car", "car"], np.array([ray(0, 0), ray(1.8, 0)]), [0.5, 0.4])}
    assert false_boxes_on_rays([one], right)["false"] == 1  # a second box of a label is false
