"""The boxes of Argoverse 2 as a task: written, checked, scored and read back."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config

from drivestack.cli.main import main
from drivestack.core.answers import Detections, SceneAnswer
from drivestack.core.errors import ConfigError, DataError, NoLabelsError, SubmissionError
from drivestack.core.files import write_json
from drivestack.core.once import forget_warnings
from drivestack.data_tools.readers.registry import DataSource
from drivestack.tasks.argoverse2_boxes import Argoverse2Boxes
from drivestack.tasks.base import GroundTruth, Predictions
from drivestack.tasks.run import box_task
from support.argoverse2_log import car_at, write_log

pytest.importorskip("pyarrow", reason="Feather files need pyarrow (extra argoverse)")

CLASSES = ["BOLLARD", "REGULAR_VEHICLE"]


@pytest.fixture
def truth(tmp_path: Path) -> GroundTruth:
    for log in ("log-a", "log-b"):
        write_log(tmp_path / "sensor" / "val" / log)
    return GroundTruth(DataSource("argoverse2_sensor", tmp_path / "sensor", {"split": "val"}))


def perfect(truth: GroundTruth) -> Predictions:
    answers = {}
    for frame in truth.frames:
        rows = [i for i, name in enumerate(frame.annotations.names) if name in CLASSES]
        labels = np.array([CLASSES.index(frame.annotations.names[i]) for i in rows])
        found = Detections(frame.token, np.nan_to_num(frame.bev_boxes()[rows]), np.full(len(rows), 0.5), labels)
        answers[frame.token] = SceneAnswer(frame.token, boxes=found)
    return Predictions(truth.frames, answers, CLASSES, {})


def write_map(log: Path, x_m: float) -> None:
    """A drivable area of 20 m around a place of the city."""
    corners = [{"x": x_m + dx, "y": dy, "z": 60.0} for dx, dy in ((-10, -10), (10, -10), (10, 10), (-10, 10))]
    (log / "map").mkdir(exist_ok=True)
    content = {"drivable_areas": {"1": {"id": 1, "area_boundary": corners}}, "lane_segments": {}}
    write_json(log / "map" / "log_map_archive_x.json", content)


def test_written_checked_scored_and_read(truth: GroundTruth, tmp_path: Path, caplog) -> None:
    forget_warnings()
    task, path = Argoverse2Boxes(CLASSES), tmp_path / Argoverse2Boxes.file
    task.demand(truth)
    assert task.write(path, perfect(truth), "val") == "12 boxes"
    assert task.check(path, truth) == [] and task.check(path, None) == []
    with caplog.at_level(logging.WARNING, "drivestack"):
        scores = task.score(path, truth)
    assert "log-a has no map" in caplog.text and scores["within_region_of_interest"] is False
    assert scores["classes_with_truth"]["CDS"] == pytest.approx(1, abs=1e-6)
    assert task.summary(scores)["CDS"] == pytest.approx(2 / 26, abs=1e-6)
    assert tuple(task.summary(scores)) == task.summary_names
    assert task.table(scores)[-1] == "(within 150 m, everywhere)"
    write_json(tmp_path / task.scores_file, scores)  # holds no NaN
    assert json.loads((tmp_path / task.scores_file).read_text())["CDS"] == scores["CDS"]
    read = task.reader(path, truth.frames, CLASSES, "val")
    again = read(truth.frames[1])
    (row,) = np.flatnonzero(again.labels == CLASSES.index("REGULAR_VEHICLE"))
    np.testing.assert_allclose(again.boxes[row, :7], [10, 3, 0.5, 4, 2, 1.5, 0.2], atol=1e-5)
    assert task.drawing_problems(path, truth, truth.frames) == []
    assert task.oddities(path, truth) == ["all scores are 0.5: boxes cannot be ranked"]


def test_the_region_of_interest_is_looked_up_in_the_maps(truth: GroundTruth, tmp_path: Path) -> None:
    path = tmp_path / "d.feather"
    Argoverse2Boxes(CLASSES).write(path, perfect(truth), "val")
    with pytest.raises(DataError, match="log-a: no map/log_map_archive"):
        Argoverse2Boxes(region=True).score(path, truth)
    last = car_at(np.array([truth.frames[4].timestamp_us * 1000]))[1][0, 0]
    for log in ("log-a", "log-b"):
        write_map(
            tmp_path / "sensor" / "val" / log, float(last) + 21.5
        )  # the car reaches it at last, the post is on it
    own = Argoverse2Boxes().score(path, truth)
    assert own["within_region_of_interest"] is True
    counts = {name: own["classes"][name]["num_truths"] for name in CLASSES}
    assert counts["BOLLARD"] == 2 and 0 < counts["REGULAR_VEHICLE"] < 10
    assert Argoverse2Boxes().table(own)[-1] == "(within 150 m, on or near drivable areas)"
    everywhere = Argoverse2Boxes(region=False).score(path, truth)
    assert everywhere["classes"]["REGULAR_VEHICLE"]["num_truths"] == 10


def test_what_cannot_be_scored_is_said_before_the_work(truth: GroundTruth, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="benchmark argoverse2: class 'car' is not one of its 26"):
        Argoverse2Boxes(["car"])
    frames = truth.frames
    for changed, says in (
        ([replace(frame, annotations=None) for frame in frames], "has no annotations"),
        ([replace(frames[0], annotations=None), *frames[1:]], "1 frames have no annotations"),
        (
            [replace(f, annotations=replace(f.annotations, names=["car"] * len(f.annotations))) for f in frames],
            "its labels are of car, none of the 26",
        ),
    ):
        with pytest.raises(NoLabelsError, match=says):
            Argoverse2Boxes().demand(GroundTruth(truth.source, changed))
    with pytest.raises(DataError, match="is no sweep of an Argoverse 2 log"):
        Argoverse2Boxes().demand_names(GroundTruth(truth.source, [replace(frames[0], token="x")]))
    path = tmp_path / "d.feather"
    Argoverse2Boxes(CLASSES).write(path, perfect(GroundTruth(truth.source, frames[:5])), "val")
    assert [problem.partition(":")[0] for problem in Argoverse2Boxes().check(path, truth)] == ["sample log-b"]
    with pytest.raises(SubmissionError, match=r"log-b: this log has no box"):
        Argoverse2Boxes().score(path, truth)
    path.write_bytes(b"no feather")
    with pytest.raises(SubmissionError, match="is no Feather file"):
        Argoverse2Boxes().reader(path, frames, CLASSES, "val")


def test_labels_that_do_not_count_are_said_before_the_work(truth: GroundTruth, tmp_path: Path) -> None:
    task, path = Argoverse2Boxes(CLASSES), tmp_path / "d.feather"
    task.write(path, perfect(truth), "val")
    unseen = [replace(f, annotations=replace(f.annotations, num_lidar_points=f.annotations.num_lidar_points * 0))
              for f in truth.frames]  # fmt: skip
    for call in (task.demand, lambda truth: task.score(path, truth)):
        with pytest.raises(NoLabelsError, match="no label of the 26 classes counts"):
            call(GroundTruth(truth.source, unseen))
    for log in ("log-a", "log-b"):
        write_map(tmp_path / "sensor" / "val" / log, -300.0)  # nothing lies there
    for call in (task.demand, lambda truth: task.score(path, truth)):
        with pytest.raises(NoLabelsError, match="outside the region of interest"):
            call(truth)
    Argoverse2Boxes(CLASSES, region=False).demand(truth)


@pytest.mark.parametrize(
    ("areas", "message"),
    [
        ({}, r"log_map_archive_x\.json: the map has no drivable area; score without .* --everywhere"),
        ({"1": {"area_boundary": []}}, r"x\.json: a drivable area has 0 corners"),
        (
            {"1": {"area_boundary": [{"x": x, "y": x, "z": 0.0} for x in (0.0, 1e6, 2e6)]}},
            r"x\.json: the map is .* large",
        ),
    ],
)
def test_maps_are_read_before_the_work(truth: GroundTruth, tmp_path: Path, areas, message: str, capsys) -> None:
    path = tmp_path / "d.feather"
    Argoverse2Boxes(CLASSES).write(path, perfect(truth), "val")
    for log in ("log-a", "log-b"):
        write_map(tmp_path / "sensor" / "val" / log, 5000.0)
    write_json(tmp_path / "sensor/val/log-b/map/log_map_archive_x.json", {"drivable_areas": areas})
    with pytest.raises(DataError, match=message):
        Argoverse2Boxes().demand(truth)
    data = ["--reader", "argoverse2_sensor", "--dataroot", str(tmp_path / "sensor"), "--split", "val"]
    assert main(["score", str(path), *data, "--everywhere"]) == 0
    assert "(within 150 m, everywhere)" in capsys.readouterr().out


def test_the_region_is_an_option_of_configs_and_verbs(tmp_path: Path, capsys) -> None:
    config = Config({"benchmark": "argoverse2", "model": {}, "test_dataset": {"classes": CLASSES}})
    assert box_task(config).region is None and box_task(config, everywhere=True).region is False
    assert box_task(Config({**config, "region_of_interest": False})).region is False
    with pytest.raises(ConfigError, match="region_of_interest is of Argoverse 2's score"):
        box_task(Config({**config, "benchmark": "nuscenes", "region_of_interest": False}))
    for name in ("a.json", "a.tar.gz"):
        (tmp_path / name).write_text("{}")
        assert main(["score", str(tmp_path / name), "--dataroot", str(tmp_path), "--everywhere"]) == 2
        assert "--everywhere" in capsys.readouterr().err


@pytest.mark.parametrize("found", ["nothing", "nothing in log-a"])
def test_a_model_that_finds_nothing_is_scored(truth: GroundTruth, tmp_path: Path, found: str) -> None:
    task, path = Argoverse2Boxes(CLASSES), tmp_path / "d.feather"
    every = perfect(truth)
    nothing = Detections("", np.zeros((0, 9)), np.zeros(0), np.zeros(0, np.int64))
    answers = {
        token: SceneAnswer(token, boxes=replace(nothing, token=token))
        if found == "nothing" or token.startswith("log-a")
        else answer
        for token, answer in every.answers.items()
    }
    task.write(path, replace(every, answers=answers), "val")
    scores = task.score(path, truth)
    assert scores["classes_with_truth"]["CDS"] == pytest.approx(0.0 if found == "nothing" else 0.5, abs=0.02)
    write_json(tmp_path / task.scores_file, scores)
    with pytest.raises(SubmissionError, match="has no rows" if found == "nothing" else "log-a: this log has no box"):
        Argoverse2Boxes(CLASSES).score(path, truth)  # of the file alone it is not known
    assert task.check(path, truth)  # a submission needs them


def test_the_verbs_and_configs_take_its_files(truth: GroundTruth, tmp_path: Path, capsys) -> None:
    path = tmp_path / "detections.feather"
    task = box_task(Config({"benchmark": "argoverse2", "model": {}, "test_dataset": {"classes": CLASSES}}))
    assert isinstance(task, Argoverse2Boxes) and list(task.class_names) == CLASSES
    task.write(path, perfect(truth), "val")
    data = ["--reader", "argoverse2_sensor", "--dataroot", str(tmp_path / "sensor"), "--split", "val"]
    assert main(["check-submission", str(tmp_path), *data, "--tasks", "boxes"]) == 0
    assert "is valid" in capsys.readouterr().out
    assert main(["score", str(path), *data]) == 0
    assert Argoverse2Boxes.title in capsys.readouterr().out
    mapping = tmp_path / "mapping.json"
    write_json(mapping, {"predictions": {"REGULAR_VEHICLE": "car"}, "labels": {"REGULAR_VEHICLE": "car"}})
    (tmp_path / "a.txt").touch()
    (tmp_path / "nothing").mkdir()
    for arguments, message in (
        (["score", str(path), *data, "--official"], "scored by the metric of argoverse2"),
        (["score", str(path), *data, "--mapping", str(mapping)], "--mapping scores nuScenes' files (.json)"),
        (
            ["score", str(tmp_path / "a.txt"), *data],
            "submission.json or waymo_submission.tar.gz or detections.feather, occupancy.zip, lanes.pkl",
        ),
        (["score", str(tmp_path / "nothing"), *data], "or detections.feather"),
        (["ensemble", str(path), str(path), "--out", str(tmp_path / "f.feather")], "of Argoverse 2 are not fused"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
