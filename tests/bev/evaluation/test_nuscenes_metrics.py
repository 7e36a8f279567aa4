"""Scores by the official evaluation on a tiny set."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drivestack.bev.evaluation.nuscenes_metrics import evaluate_nuscenes
from drivestack.bev.evaluation.nuscenes_submission import NuScenesSubmission
from drivestack.core.errors import DataError, SubmissionError
from support import tiny_nuscenes as tiny

# tests are no package (pytest --import-mode=importlib), so the helper beside this file is loaded by path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny.write_tiny_nuscenes(folder)
    return folder


def score(root: Path, out: Path, detections, frames, **options) -> dict:
    path = out / "submission.json"
    NuScenesSubmission.from_detections(detections, frames, tiny.CLASSES).write(path)
    return evaluate_nuscenes(path, root, tiny.VERSION, "val", **options)


def test_perfect_predictions_score_one(root: Path, tmp_path: Path) -> None:
    frames, detections = tiny.perfect_detections(root)
    scores = score(root, tmp_path, detections, frames, out_dir=tmp_path / "scores")
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


def test_errors_move_the_right_scores(root: Path, tmp_path: Path) -> None:
    frames, detections = tiny.perfect_detections(root)
    moved = [replace(d, boxes=d.boxes + np.array([0.7, 0, 0, 0, 0, 0, 0.2, 0, 0])) for d in detections]
    scores = score(root, tmp_path, moved, frames)
    assert scores["ap_per_distance"]["car"]["0.5"] == 0
    assert scores["ap_per_distance"]["car"]["1.0"] == pytest.approx(1)
    assert scores["tp_errors"]["mATE"] == pytest.approx(0.7, abs=1e-3)
    assert scores["tp_errors"]["mAOE"] == pytest.approx(0.2, abs=1e-3)


def test_other_class_ranges_drop_what_lies_beyond(root: Path, tmp_path: Path) -> None:
    frames, detections = tiny.perfect_detections(root)
    scores = score(root, tmp_path, detections, frames, class_range_m={"car": 1.0})
    assert scores["ap"]["car"] == 0
    assert scores["ap"]["truck"] == pytest.approx(1)


def test_no_predictions_at_all_score_zero(root: Path, tmp_path: Path) -> None:
    frames, detections = tiny.perfect_detections(root)
    empty = [replace(d, boxes=d.boxes[:0], scores=d.scores[:0], labels=d.labels[:0]) for d in detections]
    scores = score(root, tmp_path, empty, frames)
    assert scores["map"] == scores["nds"] == 0
    assert scores["num_predictions"] == {}


def test_a_missing_sample_is_named(root: Path, tmp_path: Path) -> None:
    frames, detections = tiny.perfect_detections(root)
    with pytest.raises(SubmissionError, match="sample sample1: is missing from the results"):
        score(root, tmp_path, detections[:1], frames[:1])


def test_an_unlabelled_split_is_named(tmp_path: Path) -> None:
    root = tmp_path / "set"
    tiny.write_tiny_nuscenes(root)
    frames, detections = tiny.perfect_detections(root)
    (root / tiny.VERSION / "sample_annotation.json").write_text("[]")
    (root / tiny.VERSION / "instance.json").write_text("[]")
    with pytest.raises(DataError, match="has no annotations"):
        score(root, tmp_path, detections, frames)


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    root = tmp_path / "set"
    tiny.write_tiny_nuscenes(root)
    frames, detections = tiny.perfect_detections(root)
    (root / tiny.VERSION / "attribute.json").unlink()
    with pytest.raises(DataError, match=r"attribute\.json"):
        score(root, tmp_path, detections, frames)
