"""Our scores are nuscenes-devkit's, on files and in memory, and hold for classes that it does not know."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drivestack.bev.evaluation.nuscenes_metrics import (
    DETECTION_CVPR_2019,
    DetectionSettings,
    evaluate,
    evaluate_submission,
    table,
)
from drivestack.bev.evaluation.nuscenes_official import evaluate_official
from drivestack.bev.evaluation.nuscenes_submission import NuScenesSubmission
from drivestack.core.errors import ConfigError, DataError, SubmissionError
from drivestack.core.frames import Frame
from drivestack.data_tools.readers.nuscenes.reader import read_nuscenes
from support import tiny_nuscenes as tiny
from support.scored_scenes import CLASSES, devkit_scores, largest_difference, random_scenes

NO_DEVKIT = "nuscenes-devkit, the oracle, is not installed"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny.write_tiny_nuscenes(folder)
    return folder


@pytest.fixture(scope="module")
def frames(root: Path) -> list[Frame]:
    return read_nuscenes(root, tiny.VERSION, "val")


def write(root: Path, out: Path, detections=None) -> Path:
    places, perfect = tiny.perfect_detections(root)
    path = out / "submission.json"
    NuScenesSubmission.from_detections(detections or perfect, places, tiny.CLASSES).write(path)
    return path


def changed(root: Path, change) -> list:
    return [change(found) for found in tiny.perfect_detections(root)[1]]


def moved(root: Path) -> list:
    step = np.array([0.7, 0, 0, 0, 0, 0, 0.2, 0, 0])
    return changed(root, lambda found: replace(found, boxes=found.boxes + step))


def empty(root: Path) -> list:
    return changed(root, lambda d: replace(d, boxes=d.boxes[:0], scores=d.scores[:0], labels=d.labels[:0]))


def test_perfect_predictions_score_one(root: Path, frames: list[Frame], tmp_path: Path) -> None:
    scores = evaluate_submission(write(root, tmp_path), frames, out_dir=tmp_path / "scores")
    assert scores["map"] == pytest.approx(1.0, abs=1e-6)
    assert scores["nds"] == pytest.approx(1.0, abs=1e-4)
    assert set(scores["ap"]) == set(tiny.CLASSES)
    assert scores["ap_per_distance"]["car"].keys() == {"0.5", "1.0", "2.0", "4.0"}
    assert scores["tp_errors"].keys() == {"mATE", "mASE", "mAOE", "mAVE", "mAAE"}
    assert max(scores["tp_errors"].values()) < 1e-4
    assert scores["tp_errors_per_class"]["traffic_cone"]["mAOE"] is None
    assert scores["num_samples"] == 2
    assert scores["num_ground_truths"] == scores["num_predictions"] == dict.fromkeys(tiny.CLASSES, 2)
    assert json.loads((tmp_path / "scores" / "metrics_summary.json").read_text()) == scores
    assert len(table(scores)) == 3 + len(tiny.CLASSES)


def test_errors_move_the_right_scores(root: Path, frames: list[Frame], tmp_path: Path) -> None:
    scores = evaluate_submission(write(root, tmp_path, moved(root)), frames)
    assert scores["ap_per_distance"]["car"]["0.5"] == 0
    assert scores["ap_per_distance"]["car"]["1.0"] == pytest.approx(1)
    assert scores["tp_errors"]["mATE"] == pytest.approx(0.7, abs=1e-3)
    assert scores["tp_errors"]["mAOE"] == pytest.approx(0.2, abs=1e-3)


def test_other_class_ranges_drop_what_lies_beyond(root: Path, frames: list[Frame], tmp_path: Path) -> None:
    near = replace(DETECTION_CVPR_2019, class_range_m={**DETECTION_CVPR_2019.class_range_m, "car": 1.0})
    scores = evaluate_submission(write(root, tmp_path), frames, near)
    assert scores["ap"]["car"] == 0
    assert scores["ap"]["truck"] == pytest.approx(1)


def test_no_predictions_at_all_score_zero(root: Path, frames: list[Frame], tmp_path: Path) -> None:
    scores = evaluate_submission(write(root, tmp_path, empty(root)), frames)
    assert scores["map"] == scores["nds"] == 0
    assert scores["num_predictions"] == {}


@pytest.mark.parametrize("make", [None, moved, empty])
def test_files_score_as_the_devkit_scores_them(root: Path, frames: list[Frame], tmp_path: Path, make) -> None:
    pytest.importorskip("nuscenes", reason=NO_DEVKIT)
    path = write(root, tmp_path, make and make(root))
    theirs = evaluate_official(path, root, tiny.VERSION, "val", [frame.token for frame in frames])
    assert largest_difference(official(evaluate_submission(path, frames)), theirs) < 1e-9


@pytest.mark.parametrize("first_seed", range(0, 200, 20))
def test_random_results_score_as_the_devkit_scores_them(first_seed: int) -> None:
    pytest.importorskip("nuscenes", reason=NO_DEVKIT)
    for seed in range(first_seed, first_seed + 20):
        frames, found = random_scenes(seed)
        assert largest_difference(official(evaluate(frames, found)), devkit_scores(frames, found)) < 1e-9, seed


def test_own_classes_and_ranges_score_by_the_same_rules() -> None:
    pytest.importorskip("nuscenes", reason=NO_DEVKIT)
    own = {name: f"own {name}" for name in CLASSES} | {"": ""}
    ranges = {name: 12.5 + 3 * i for i, name in enumerate(CLASSES)}
    benchmark = DETECTION_CVPR_2019
    settings = DetectionSettings(
        class_range_m={own[name]: radius for name, radius in ranges.items()},
        undefined_errors={own[name]: errors for name, errors in benchmark.undefined_errors.items()},
        half_turn_classes=tuple(own[name] for name in benchmark.half_turn_classes),
        excluded_in={zone: tuple(own[name] for name in held) for zone, held in benchmark.excluded_in.items()},
    )
    for seed in range(20):
        frames, found = random_scenes(seed)
        theirs = devkit_scores(frames, found, ranges)
        renamed = [
            replace(f, annotations=replace(f.annotations, names=[own[name] for name in f.annotations.names]))
            for f in frames
        ]
        ours = evaluate(
            renamed,
            {t: replace(boxes, names=[own[name] for name in boxes.names]) for t, boxes in found.items()},
            settings,
        )
        for key, value in official(ours).items():
            expected = theirs[key]
            if key not in ("nds", "map", "tp_errors", "num_samples"):
                expected = {own[name]: inner for name, inner in expected.items()}
            assert largest_difference({key: value}, {key: expected}) < 1e-9, (seed, key)


def official(scores: dict) -> dict:
    """Without what the devkit does not say."""
    return {key: value for key, value in scores.items() if key not in ("nds_occurring", "map_occurring")}


def test_classes_without_labels_count_in_the_official_sums_alone() -> None:
    frames, found = random_scenes(3, num_samples=3)
    cars = DetectionSettings(class_range_m={"car": 50.0})
    alone = evaluate(frames, found, cars)
    assert alone["nds_occurring"] == alone["nds"] > 0 and alone["map_occurring"] == alone["map"] > 0
    assert "over the classes" not in "".join(table(alone))
    both = evaluate(frames, found, DetectionSettings(class_range_m={"car": 50.0, "tram": 50.0}))
    assert (both["nds_occurring"], both["map_occurring"]) == (alone["nds"], alone["map"])
    assert both["map"] == alone["map"] / 2 and both["nds"] < alone["nds"]
    assert "over the classes that labels have (not official; they lack tram)" in table(both)[1]
    none = evaluate(frames, found, DetectionSettings(class_range_m={"tram": 50.0}))
    assert none["nds_occurring"] is none["map_occurring"] is None and none["map"] == 0


def test_what_is_not_asked_for_does_not_count() -> None:
    frames, found = random_scenes(3, num_samples=3)
    cars = DetectionSettings(class_range_m={"car": 50.0})
    scores = evaluate(frames, found, cars)
    assert scores["ap"].keys() == {"car"} and scores["num_samples"] == 3
    blind = [*frames, replace(frames[0], token="not labelled", annotations=None)]
    assert evaluate(blind, found, cars) == scores  # and needs no prediction there


def test_an_error_that_no_class_has_leaves_nds() -> None:
    frames, found = random_scenes(5, num_samples=3)
    name = frames[0].annotations.names[0] or frames[0].annotations.names[1]
    settings = DetectionSettings({name: 50.0}, undefined_errors={name: ("mAVE", "mAAE")})
    scores = evaluate(frames, found, settings)
    assert scores["tp_errors"]["mAVE"] is None
    parts = [max(0, 1 - value) for value in scores["tp_errors"].values() if value is not None]
    assert len(parts) == 3 and scores["nds"] == pytest.approx((5 * scores["map"] + sum(parts)) / 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": np.array([-0.1])}, "sample a: a predicted box has a score that is negative"),
        ({"scores": np.array([np.nan])}, "sample a: a predicted box has a score"),
        ({"centre_global_m": np.full((1, 3), np.inf)}, "sample a: .* a centre or heading that is not finite"),
        ({"size_lwh_m": np.zeros((1, 3))}, "sample a: .* a size that is not positive"),
    ],
)
def test_boxes_that_cannot_be_scored_are_named(change: dict, message: str) -> None:
    frames, found = random_scenes(0, num_samples=1)
    boxes = next(iter(found.values()))
    columns = {key: value[:1] for key, value in vars(boxes).items()} | {"names": ["car"]}
    with pytest.raises(SubmissionError, match=message):
        evaluate([replace(frames[0], token="a")], {"a": type(boxes)(**columns | change)})


def test_samples_missing_or_too_full_are_named() -> None:
    frames, found = random_scenes(0, num_samples=2)
    with pytest.raises(SubmissionError, match="sample sample1: no prediction"):
        evaluate(frames, {"sample0": found["sample0"]})
    few = replace(DETECTION_CVPR_2019, max_boxes_per_sample=1)
    with pytest.raises(SubmissionError, match=r"sample sample0: has \d+ boxes, at most 1"):
        evaluate(frames, found, few)


@pytest.mark.parametrize(
    "wrong",
    [
        {"class_range_m": {}},
        {"class_range_m": {"car": 0.0}},
        {"tp_distance_m": 3.0},
        {"min_precision": 1.0},
        {"undefined_errors": {"car": ("ATE",)}},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        DetectionSettings(**{"class_range_m": {"car": 50.0}} | wrong)


def test_a_missing_sample_is_named(root: Path, frames: list[Frame], tmp_path: Path) -> None:
    places, detections = tiny.perfect_detections(root)
    path = tmp_path / "submission.json"
    NuScenesSubmission.from_detections(detections[:1], places[:1], tiny.CLASSES).write(path)
    with pytest.raises(SubmissionError, match="sample sample1: is missing from the results"):
        evaluate_submission(path, frames)


def test_an_unlabelled_split_is_named(root: Path, frames: list[Frame], tmp_path: Path) -> None:
    path = write(root, tmp_path)
    with pytest.raises(DataError, match="has no annotations"):
        evaluate_submission(path, [replace(frame, annotations=None) for frame in frames])


def test_a_missing_devkit_is_named_with_its_install_line(
    root: Path, frames: list[Frame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nuscenes.eval.detection.evaluate", None)
    with pytest.raises(ConfigError, match=r"nuscenes-devkit .* pip install --no-deps nuscenes-devkit==1\.2\.0"):
        evaluate_official(write(root, tmp_path), root, tiny.VERSION, "val", [frame.token for frame in frames])
