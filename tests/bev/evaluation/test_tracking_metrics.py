"""Our tracking scores are those of nuscenes-devkit with motmetrics, and follow from simple cases by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivestack.bev.evaluation.tracking_metrics import KEYS, evaluate_tracks, table
from drivestack.bev.evaluation.tracking_submission import TrackedBoxes
from drivestack.core.errors import DataError, NoLabelsError, SubmissionError
from drivestack.core.frames import Annotations, Frame
from support.tracked_scenes import SEEDS, devkit_tracking_scores, random_tracks

RECORDED = Path(__file__).parents[2] / "reference" / "bev" / "tracking_official.json"


def assert_equal(ours: dict[str, Any], official: dict[str, Any]) -> None:
    for key in KEYS:
        assert ours[key] == pytest.approx(official[key], abs=1e-6), key
    for name, own in official["per_class"].items():
        assert ours["per_class"][name] == pytest.approx(own, abs=1e-6), name


@pytest.mark.parametrize("seed", SEEDS)
def test_random_tracks_score_as_the_devkit_scored_them(seed: int) -> None:
    """The recorded numbers come from support/tracked_scenes.py, run with the devkit, motmetrics 1.4.0 and pandas 2."""
    assert_equal(evaluate_tracks(*random_tracks(seed)), json.loads(RECORDED.read_text())[str(seed)])


def test_the_recorded_scenes_hold_what_the_score_treats_apart() -> None:
    recorded = json.loads(RECORDED.read_text()).values()
    for key in ("ids", "frag", "fp", "fn", "mt", "ml"):
        assert sum(own[key] for own in recorded) > 5, key
    assert any(own["amota"] > 0.3 for own in recorded)


@pytest.mark.parametrize("seed", [100, 101])
def test_the_devkit_still_says_the_same(seed: int) -> None:
    pytest.importorskip("motmetrics", reason="the official tracking score needs motmetrics and pandas")
    pytest.importorskip("nuscenes", reason="nuscenes-devkit, the oracle, is not installed")
    frames, found = random_tracks(seed)
    assert_equal(evaluate_tracks(frames, found), devkit_tracking_scores(frames, found))


# ------------------------------------------------------------------------------------------------- cases by hand


def drive(steps: int = 10, cars: int = 2) -> list[Frame]:
    """Cars 10 m apart that drive along x at 2 m/s."""
    frames = []
    for i in range(steps):
        centre = np.stack([np.full(cars, 1.0 * i), 10.0 * np.arange(cars), np.zeros(cars)], 1)
        names = [f"car{k}" for k in range(cars)]
        notes = Annotations.of_boxes(["car"] * cars, centre, np.full((cars, 3), 2.0), np.zeros(cars), tracks=names)
        frames.append(Frame(f"s{i}", "scene", "scene", 500_000 * i, (), np.eye(4), annotations=notes))
    return frames


def found(frames: list[Frame], ids: dict[str, list[str]] | None = None) -> dict[str, TrackedBoxes]:
    """The labels themselves as predictions of score 0.5, with other ids at some samples."""
    from drivestack.bev.evaluation.nuscenes_boxes import ScoredBoxes

    out = {}
    for frame in frames:
        notes = frame.annotations
        assert notes is not None
        n = len(notes)
        boxes = ScoredBoxes(
            notes.names,
            np.full(n, 0.5),
            notes.centre_global_m,
            notes.size_lwh_m,
            np.zeros(n),
            np.zeros((n, 2)),
            [""] * n,
        )
        out[frame.token] = TrackedBoxes(boxes, (ids or {}).get(frame.token, list(notes.instance_tokens)))
    return out


def test_perfect_tracks_score_one() -> None:
    scores = evaluate_tracks(drive(), found(drive()))
    assert (scores["amota"], scores["amotp"], scores["mota"], scores["recall"]) == (1, 0, 1, 1)
    assert (scores["ids"], scores["frag"], scores["fp"], scores["fn"], scores["mt"]) == (0, 0, 0, 0, 2)
    assert "AMOTA 1.000" in table(scores)[0]


def test_a_swap_of_two_ids_is_two_switches_and_no_error_of_place() -> None:
    frames = drive()
    swapped = {f"s{i}": ["car1", "car0"] for i in range(5, 10)}
    scores = evaluate_tracks(frames, found(frames, swapped))
    assert (scores["ids"], scores["fp"], scores["fn"], scores["motp"]) == (2, 0, 0, 0)
    assert scores["mota"] == pytest.approx(1 - 2 / 20)


def test_a_gap_of_a_track_is_filled_and_a_new_id_after_it_is_a_switch_and_a_gap() -> None:
    frames = drive(cars=1)
    predictions = found(frames)
    nothing = predictions["s4"].boxes
    nothing = replace(
        nothing, names=[], scores=np.zeros(0), centre_global_m=np.zeros((0, 3)), size_lwh_m=np.zeros((0, 3)),
        yaw_rad=np.zeros(0), velocity_global_mps=np.zeros((0, 2)), attributes=[],
    )  # fmt: skip
    predictions["s4"] = TrackedBoxes(nothing, [])
    assert evaluate_tracks(frames, predictions)["fn"] == 0
    for i in range(5, 10):
        predictions[f"s{i}"] = TrackedBoxes(predictions[f"s{i}"].boxes, ["another"])
    scores = evaluate_tracks(frames, predictions)
    assert (scores["ids"], scores["frag"], scores["fn"], scores["lgd"]) == (1, 1, 1, 0.5)


def test_equal_ids_of_two_scenes_are_two_tracks() -> None:
    frames = drive()
    other = [replace(frame, token=f"b{frame.token}", scene_token="b") for frame in frames]
    both = found(frames) | {token: own for token, own in found(other).items()}
    assert evaluate_tracks([*frames, *other], both)["mt"] == 4


def test_what_cannot_be_scored_is_named() -> None:
    frames = drive()
    with pytest.raises(SubmissionError, match="sample s0: no prediction"):
        evaluate_tracks(frames, {})
    nameless = [replace(f, annotations=replace(f.annotations, instance_tokens=["", ""])) for f in frames]
    with pytest.raises(DataError, match="sample s0: a label of an object has no instance"):
        evaluate_tracks(nameless, found(frames))
    cones = [replace(f, annotations=replace(f.annotations, names=["traffic_cone"] * 2)) for f in frames]
    with pytest.raises(NoLabelsError, match="bicycle, bus, car"):
        evaluate_tracks(cones, found(frames))
