"""Velocities of linked boxes: what a tracker without training gets right and wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from drivestack.bev.evaluation.linked_velocity import ESTIMATES, table, velocity_errors
from drivestack.bev.evaluation.nuscenes_boxes import ScoredBoxes
from drivestack.core.errors import SubmissionError
from drivestack.core.frames import Annotations, Frame

STEP_US = 500_000
FIRST_US = 1_600_000_000_000_000


def drive(
    tracks: dict[str, tuple[str, np.ndarray, float]], offset_m: np.ndarray | None = None, said_mps: float = 0.0
) -> tuple[list[Frame], dict[str, ScoredBoxes]]:
    """Labels of objects (class, places [T, 2], score of its boxes) and boxes beside them by ``offset_m`` [T], in x.

    The labels' velocities are those of the places; the boxes' are ``said_mps`` along x.
    """
    steps = len(next(iter(tracks.values()))[1])
    frames, found = [], {}
    for k in range(steps):
        names = [name for name, _, _ in tracks.values()]
        place = np.stack([places[k] for _, places, _ in tracks.values()])
        velocity = np.stack([np.gradient(places, axis=0)[k] / 0.5 for _, places, _ in tracks.values()])
        n = len(names)
        centre = np.concatenate([place, np.zeros((n, 1))], 1)
        notes = Annotations.of_boxes(names, centre, np.ones((n, 3)), np.zeros(n), velocity_mps=velocity)
        before = f"f{k - 1}" if k else ""
        identity = np.eye(4)
        frame = Frame(f"f{k}", "s", "s", FIRST_US + k * STEP_US, (), identity, identity, annotations=notes)
        frames.append(replace(frame, prev_token=before))
        moved = centre + ([0 if offset_m is None else offset_m[k], 0, 0])
        scores = np.array([score for _, _, score in tracks.values()])
        said = np.tile([said_mps, 0.0], (n, 1))
        found[f"f{k}"] = ScoredBoxes(names, scores, moved, np.ones((n, 3)), np.zeros(n), said, [""] * n)
    return frames, found


def straight(start: float, speed_mps: float, steps: int = 6) -> np.ndarray:
    return np.stack([start + speed_mps * 0.5 * np.arange(steps), np.zeros(steps)], 1)


def test_exact_places_give_exact_velocities_and_the_model_errs() -> None:
    frames, found = drive({"a": ("car", straight(0, 4), 0.9)}, said_mps=3.0)
    errors = velocity_errors(frames, found)
    assert errors["boxes"] == 5 and errors["moving_share"] == 1.0  # the first keyframe has no link
    assert errors["network"]["all"] == pytest.approx(1.0)
    for name in ESTIMATES[1:]:
        assert errors[name]["all"] == pytest.approx(0.0, abs=1e-9)
    assert errors["network"]["standing"] is None and errors["network"]["class_mean"] == pytest.approx(1.0)


def test_the_line_is_the_least_squares_slope_of_four_keyframes() -> None:
    offset = np.array([0.0, 0.3, -0.2, 0.1, 0.4, -0.3])
    frames, found = drive({"a": ("car", straight(0, 4), 0.9)}, offset, said_mps=4.0)
    errors = velocity_errors(frames, found)
    x = straight(0, 4)[:, 0] + offset
    slopes = [np.polyfit(0.5 * np.arange(k + 1)[-4:], x[: k + 1][-4:], 1)[0] for k in range(1, 6)]
    steps = np.diff(x) / 0.5
    assert errors["line"]["all"] == pytest.approx(np.abs(np.array(slopes) - 4).mean())
    assert errors["one step"]["all"] == pytest.approx(np.abs(steps - 4).mean())
    assert errors["network"]["all"] == pytest.approx(0)


def test_where_the_model_says_slow_it_is_believed() -> None:
    offset = np.array([0.0, 0.3, -0.2, 0.1, 0.4, -0.3])
    frames, found = drive({"a": ("car", straight(0, 0), 0.9)}, offset, said_mps=0.4)
    errors = velocity_errors(frames, found)
    assert errors["moving_share"] == 0.0 and errors["network"]["standing"] == pytest.approx(0.4)
    assert errors["network if slow, else line"] == errors["network"]
    frames, found = drive({"a": ("car", straight(0, 0), 0.9)}, offset, said_mps=0.6)
    errors = velocity_errors(frames, found)
    assert errors["network if slow, else line"] == errors["line"]


def test_cones_weak_boxes_and_boxes_without_a_label_are_left_out() -> None:
    tracks = {"a": ("car", straight(0, 4), 0.9), "b": ("traffic_cone", straight(30, 0), 0.9)}
    tracks["c"] = ("bus", straight(60, 0), 0.14)
    frames, found = drive(tracks, said_mps=4.0)
    assert velocity_errors(frames, found)["boxes"] == 5
    far = {token: replace(own, centre_global_m=own.centre_global_m + [0, 2.5, 0]) for token, own in found.items()}
    errors = velocity_errors(frames, far)
    assert errors["boxes"] == 0 and errors["line"]["all"] is None and "-" in table(errors)[3]
    with pytest.raises(SubmissionError, match="sample f1: no prediction"):
        velocity_errors(frames, {"f0": found["f0"]})


def test_a_missing_keyframe_breaks_the_link_and_classes_are_averaged() -> None:
    tracks = {"a": ("car", straight(0, 4), 0.9), "b": ("bus", straight(60, 1), 0.9)}
    frames, found = drive(tracks, said_mps=4.0)
    errors = velocity_errors(frames, found)
    assert errors["boxes"] == 10 and errors["network"]["class_mean"] == pytest.approx((0 + 3) / 2)
    nothing = {name: getattr(found["f3"], name)[:0] for name in ScoredBoxes.__dataclass_fields__}
    errors = velocity_errors(frames, {**found, "f3": ScoredBoxes(**nothing)})
    assert errors["boxes"] == 6  # keyframes 1, 2 and 5
