"""Which of Waymo's labels count, and the scores of frames by way of files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drivestack.bev.evaluation.waymo_metrics import (
    RANGE_NAMES,
    WaymoGroundTruths,
    WaymoPredictions,
    evaluate_waymo,
)
from drivestack.bev.evaluation.waymo_scores import counted, evaluate, ground_truths, table
from drivestack.bev.evaluation.waymo_submission import objects_of
from drivestack.core.errors import ConfigError, DataError, NoLabelsError, SubmissionError
from drivestack.core.frames import Annotations
from drivestack.core.once import forget_warnings
from drivestack.data_tools.readers.registry import DataSource
from drivestack.engine.config import load_config
from drivestack.tasks.base import GroundTruth, Predictions
from drivestack.tasks.registry import benchmark_of, find, places
from drivestack.tasks.run import box_task
from drivestack.tasks.waymo_boxes import WaymoBoxes
from support.waymo_like import CLASSES, found_in, frames_of


@pytest.fixture(scope="module")
def frames() -> list:
    return frames_of()


def notes(**fields) -> Annotations:
    made = Annotations.of_boxes(["vehicle"] * 4, np.zeros((4, 3)), np.ones((4, 3)), np.zeros(4))
    return replace(made, **fields)


def test_labels_that_count_and_their_level(caplog: pytest.LogCaptureFixture) -> None:
    forget_warnings()
    points, seen = np.array([0, 5, 6, 3]), ["FRONT", "FRONT", "", "SIDE_LEFT"]
    whole = notes(num_top_lidar_points=points, most_visible_cameras=seen, difficulty=np.array([1, 0, 2, 1]))
    kept, level = counted(whole)
    assert kept.tolist() == [False, True, False, True] and level[kept].tolist() == [2, 1]
    assert counted(replace(whole, difficulty=None))[1].tolist() == [2, 2, 1, 2]
    assert counted(replace(whole, names=["vehicle", "sign", "", "car"]))[0].tolist() == [False, True, False, False]
    assert not caplog.records
    old = notes(num_lidar_points=np.array([0, 7, 7, 7]), num_top_lidar_points=np.array([-1, -1, 0, 9]))
    assert counted(old)[0].tolist() == [False, True, False, True]
    assert "without num_top_lidar_points" in caplog.text and "without most_visible_camera_name" in caplog.text


def test_labels_are_in_the_vehicle_frame(frames) -> None:
    truths = ground_truths(frames)
    assert len(truths) == 72 and len(truths.keys) == 6
    assert (truths.boxes[:, 0] >= 7.9).all() and np.allclose(truths.boxes[:, 2], 0.9)
    assert np.isnan(truths.scores).all() and set(truths.difficulties.tolist()) == {1, 2}


def test_scores_are_those_of_the_metric_on_arrays(frames) -> None:
    truths, found = ground_truths(frames), objects_of(found_in(frames, 0.3), frames, CLASSES)
    scores = evaluate(frames, found)
    direct = evaluate_waymo(
        WaymoPredictions(found.boxes, found.types, found.scores, np.array(found.tokens)[found.frame]),
        WaymoGroundTruths(truths.boxes, truths.types, truths.difficulties, np.array(truths.tokens)[truths.frame]),
    )
    for key, own in direct.items():
        assert scores["let"]["breakdowns"][key] == {"apl": own.apl, "ap": own.ap, "aph": own.aph}
    assert 0.1 < scores["let"]["mapl"] < scores["let"]["map"] < 1 and "mapl" not in scores["standard"]
    assert scores["standard"]["map"] < scores["let"]["map"]
    counts = [scores["labels"][f"OBJECT_TYPE_TYPE_{name}_LEVEL_2"] for name in ("VEHICLE", "SIGN")]
    assert counts == [24, 0] and scores["labels"]["OBJECT_TYPE_TYPE_VEHICLE_LEVEL_1"] == 18
    near, middle, far = (scores["labels"][f"RANGE_TYPE_VEHICLE_{r}_LEVEL_2"] for r in RANGE_NAMES)
    assert near + middle + far == 24 and min(near, middle, far) > 0
    perfect = evaluate(frames, objects_of(found_in(frames), frames, CLASSES))
    assert perfect["let"]["mapl"] == pytest.approx(1) and perfect["standard"]["maph"] == pytest.approx(1)
    lines = table(perfect)
    assert lines[0].startswith("LET-3D-mAPL 1.0000") and len(lines) == 4 + 4 * 4 * 2
    assert "72 labels, 72 boxes" in lines[1]
    (sign,) = (line for line in lines if line.startswith("sign       all         1"))
    assert sign.split()[3:] == ["0", "-", "-", "-", "-", "-"]


def test_a_class_without_labels_is_0_in_the_official_means_and_left_out_of_others(frames) -> None:
    classes = CLASSES[:2]
    fewer = [
        replace(f, annotations=replace(f.annotations, names=[n if n in classes else "" for n in f.annotations.names]))
        for f in frames
    ]
    scores = evaluate(fewer, objects_of(found_in(fewer), fewer, CLASSES))
    assert scores["let"]["mapl"] == pytest.approx(2 / 3) and scores["standard"]["map"] == pytest.approx(2 / 3)
    assert scores["let"]["with_labels"]["mapl"] == pytest.approx(1) and scores["classes_with_labels"] == classes
    assert set(scores["standard"]["with_labels"]) == {"map", "maph"}
    lines = table(scores)
    assert lines[2] == "(no label of cyclist counts: 0 in these means, as officially)"
    assert lines[3].startswith("LET-3D-mAPL 1.0000") and lines[4] == "(means over vehicle, pedestrian)"
    signs = [replace(f, annotations=replace(f.annotations, names=["sign"] * len(f.annotations))) for f in frames]
    alone = evaluate(signs, objects_of(found_in(frames), frames, CLASSES))
    assert alone["let"]["with_labels"] is None and "no label of vehicle, pedestrian, cyclist counts" in table(alone)[2]


def test_frames_that_are_not_scored_and_labels_that_lack(frames) -> None:
    found = objects_of(found_in(frames), frames, CLASSES)
    with pytest.raises(DataError, match="3 predicted frames are not among"):
        evaluate(frames[:3], found)
    with pytest.raises(DataError, match="has no annotations"):
        evaluate([replace(frames[0], annotations=None)], found)
    none = evaluate(frames, found.where(found.frame > 99))
    assert none["let"]["mapl"] == 0 and none["boxes"] == 0


def test_the_task_writes_checks_scores_and_reads(frames, tmp_path: Path, caplog) -> None:
    entry = {"account": "a@b.c", "method": "m", "authors": ["A"], "affiliation": "lab"}
    task, path = WaymoBoxes(CLASSES, entry), tmp_path / "s.tar.gz"
    truth = GroundTruth(DataSource("frames", "memory"), frames)
    task.demand(truth)
    detections = found_in(frames)

    class Answer:
        def __init__(self, boxes):
            self.boxes = boxes

    predictions = Predictions(frames, {d.token: Answer(d) for d in detections}, CLASSES, {})
    assert task.write(path, predictions, "val") == "72 boxes in 4 shards"
    assert task.check(path, truth) == [] and task.oddities(path, truth) == []
    assert task.compared(truth).startswith("no frame is foreign, and each of the 2 segments has boxes; which of the 6")
    summary = task.summary(task.score(path, truth))
    assert summary["LET-3D-mAPL"] == pytest.approx(1) and tuple(summary) == task.summary_names
    assert task.drawing_problems(path, truth, frames) == []
    assert len(task.reader(path, frames, CLASSES, "val")(frames[0]).boxes) == 12
    # a model that finds nothing in a segment scores less; a file that lacks the segment is refused
    nothing = [replace(d, scores=d.scores * 0) if i > 2 else d for i, d in enumerate(detections)]
    half = Predictions(frames, {d.token: Answer(d) for d in nothing}, CLASSES, {})
    task.write(path, half, "val")
    assert 0.3 < task.score(path, truth)["let"]["mapl"] < 0.7
    with pytest.raises(SubmissionError, match="has not one box; predict on every frame"):
        WaymoBoxes().score(path, truth)
    other = GroundTruth(DataSource("frames", "memory"), frames_of(seed=1, num_frames=2))
    with pytest.raises(SubmissionError, match=r"timestamp .* is none of segment"):
        task.score(path, other)


def test_what_a_benchmark_does_not_have_is_refused(frames, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="class 'car' is not one of Waymo's"):
        WaymoBoxes(["car"])
    with pytest.raises(ConfigError, match="more than 25 characters"):
        WaymoBoxes(CLASSES, {"method": "x" * 26})
    with pytest.raises(ConfigError, match="waymo entry: authors must be a list"):
        WaymoBoxes(CLASSES, {"authors": "me"})
    bare = [replace(frame, annotations=None) for frame in frames]
    source = DataSource("frames", "memory")
    with pytest.raises(NoLabelsError, match="has no annotations"):
        WaymoBoxes().demand(GroundTruth(source, bare))
    with pytest.raises(NoLabelsError, match="3 frames have no annotations"):
        WaymoBoxes().demand(GroundTruth(source, [*frames[:3], *bare[3:]]))
    cars = [replace(f, annotations=replace(f.annotations, names=["car"] * 12)) for f in frames]
    with pytest.raises(NoLabelsError, match="its labels are of car, none of Waymo's"):
        WaymoBoxes().demand(GroundTruth(source, cars))
    unseen = [replace(f, annotations=replace(f.annotations, most_visible_cameras=[""] * 12)) for f in frames]
    with pytest.raises(NoLabelsError, match="no label counts"):
        WaymoBoxes().demand(GroundTruth(source, unseen))
    config = load_config("bevformerv2_tiny_synthetic", {"benchmark": "waymo"})
    with pytest.raises(ConfigError, match="class 'barrier' is not one of Waymo's"):
        box_task(config)
    with pytest.raises(ConfigError, match="leave out class_range_m"):
        box_task(config, {"car": 5.0})
    with pytest.raises(ConfigError, match="benchmark"):
        load_config("bevformerv2_tiny_synthetic", {"benchmark": "kitti"})


def test_files_of_two_benchmarks(tmp_path: Path) -> None:
    assert benchmark_of(Path("a.tar.gz")) == "waymo" and benchmark_of(Path("a.json")) == "nuscenes"
    assert places("x.tar.gz", ["boxes"], {"boxes": WaymoBoxes()}) == {"boxes": Path("x.tar.gz")}
    assert places(tmp_path, ["boxes"], {"boxes": WaymoBoxes()})["boxes"].name == "waymo_submission.tar.gz"
    with pytest.raises(ConfigError, match=r"does not end like waymo_submission\.tar\.gz"):
        places("x.json", ["boxes"], {"boxes": WaymoBoxes()})
    with pytest.raises(ConfigError, match=r"does not end like submission\.json"):
        places("x.tar.gz", ["boxes"])
    (tmp_path / "waymo_submission.tar.gz").touch()
    assert find(tmp_path)["boxes"].name == "waymo_submission.tar.gz"
    (tmp_path / "submission.json").touch()
    with pytest.raises(SubmissionError, match="holds boxes for two benchmarks"):
        find(tmp_path)
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "part0").touch()
    assert find(shards, ["boxes"]) == {"boxes": shards}
    with pytest.raises(SubmissionError, match=r"holds no submission\.json"):
        find(shards)
