"""Argoverse 2's detection score: the official package's numbers, and cases that can be reckoned by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drivestack.bev.evaluation.argoverse2_metrics import (
    NUMBERS,
    SweepBoxes,
    argoverse2_scores,
    detection_scores,
    summary,
    sweep_boxes,
    table,
)
from drivestack.bev.evaluation.argoverse2_region import RegionOfInterest
from drivestack.core.answers import Detections
from drivestack.core.argoverse2 import EVALUATED_CLASSES, sweep_token
from drivestack.core.errors import DataError, NoLabelsError
from drivestack.core.frames import Annotations, Frame
from drivestack.geometry import pose, rotation_z
from support.argoverse2_boxes import Boxes, category_of, invented_areas, invented_boxes, invented_poses

AVERAGE = "AVERAGE_METRICS"


@pytest.fixture(scope="module")
def official(reference_dir: Path) -> dict:
    return json.loads((reference_dir / "bev" / "argoverse2_cds.json").read_text())


def assert_equal(scores: dict, official: dict[str, dict[str, float]]) -> None:
    for name, wanted in official.items():
        own = scores if name == AVERAGE else scores["classes"][name]
        np.testing.assert_allclose([own[key] for key in NUMBERS], [wanted[key] for key in NUMBERS], rtol=0, atol=1e-12)


def tokens(boxes: Boxes) -> list[str]:
    return [sweep_token(log, time) for log, time in zip(boxes.log, boxes.time_ns)]


def flat(boxes: Boxes) -> SweepBoxes:
    names, sweeps = np.unique(tokens(boxes), return_inverse=True)
    return SweepBoxes(sweeps, boxes.label, boxes.boxes, boxes.counts, names.tolist())


def frames_of(truths: Boxes) -> list[Frame]:
    frames = []
    for (log, time), city_from_ego in invented_poses().items():
        rows = np.flatnonzero((truths.log == log) & (truths.time_ns == time))
        own = truths.boxes[rows]
        notes = Annotations.of_boxes(
            [category_of(label) for label in truths.label[rows]], own[:, :3], own[:, 3:6], own[:, 6],
            global_from_frame=city_from_ego,
        )  # fmt: skip
        notes = replace(notes, num_lidar_points=truths.counts[rows])
        frames.append(Frame(sweep_token(log, time), log, log, time // 1000, (), city_from_ego, annotations=notes))
    return frames


def test_equals_the_official_package_everywhere_and_in_the_region(official: dict) -> None:
    truths, predictions = invented_boxes()
    scores = detection_scores(flat(predictions), flat(truths))
    assert_equal(scores, official["everywhere"])
    assert sum(own["num_truths"] for own in scores["classes"].values()) == official["everywhere_truths"]
    frames = frames_of(truths)
    assert_equal(argoverse2_scores(flat(predictions), frames), official["everywhere"])
    region_of = lambda log: RegionOfInterest.of_areas(invented_areas(log))
    scores = argoverse2_scores(flat(predictions), frames, region_of=region_of)
    assert_equal(scores, official["with_region"])
    assert sum(own["num_truths"] for own in scores["classes"].values()) == official["with_region_truths"]


def test_the_order_of_boxes_and_classes_changes_nothing(official: dict) -> None:
    truths, predictions = invented_boxes()
    order = np.random.default_rng(0).permutation(len(predictions.label))
    mixed = Boxes(*(column[order] for column in predictions))
    assert_equal(detection_scores(flat(mixed), flat(truths)), official["everywhere"])
    names = EVALUATED_CLASSES[::-1]
    turned = [own._replace(label=len(names) - 1 - own.label) for own in (mixed, truths)]
    assert_equal(detection_scores(flat(turned[0]), flat(turned[1]), names), official["everywhere"])


def test_equals_the_official_numbers_of_a_real_log(official: dict, shared_real: Path) -> None:
    pytest.importorskip("pyarrow", reason="reading Feather files needs pyarrow (extra argoverse)")
    from drivestack.bev.evaluation.argoverse2_submission import read_rows

    folder = shared_real / "argoverse2_cds"
    truths = read_rows(folder / "annotations.feather", count="num_interior_pts", log="a log")
    predictions = replace(read_rows(folder / "made_detections.feather"), log_names=["a log"])
    times = np.unique(truths.time_ns)[::10]
    scores = detection_scores(
        predictions.sweep_boxes(EVALUATED_CLASSES),
        truths.where(np.isin(truths.time_ns, times)).sweep_boxes(EVALUATED_CLASSES),
    )
    assert_equal(scores, official["shared_real_log"])
    rounded = json.loads((folder / "official_cds.json").read_text())["results_rounded_3"]
    for name, wanted in rounded["no_roi"].items():
        own = scores if name == AVERAGE else scores["classes"][name]
        assert {key: round(own[key], 3) for key in NUMBERS} == {key: wanted[key] for key in NUMBERS}, name
    assert sum(own["num_truths"] for own in scores["classes"].values()) == rounded["no_roi_evaluated_gts"]


def one_sweep(n: int = 8) -> SweepBoxes:
    boxes = np.array([[10.0 * k, 5.0, 0.5, 4.0, 2.0, 1.5, 0.3 * k] for k in range(n)])
    return SweepBoxes(["a"] * n, [15] * n, boxes, np.arange(n, 0, -1) / n)


def test_perfect_predictions_score_1_and_none_score_0() -> None:
    truths = one_sweep()
    scores = detection_scores(truths, truths)
    assert scores["classes"]["REGULAR_VEHICLE"] == {
        "ATE": 0.0, "ASE": 0.0, "AOE": 0.0, "CDS": 1.0, "AP": 1.0, "num_truths": 8, "num_predictions": 8
    }  # fmt: skip
    assert scores["classes_with_truth"]["CDS"] == 1.0
    assert scores["CDS"] == pytest.approx(1 / 26)  # the others have no ground truth, and count
    assert detection_scores(truths, truths, ["", *EVALUATED_CLASSES[1:16]])["CDS"] == pytest.approx(1 / 16)
    nothing = SweepBoxes([], [], np.zeros((0, 7)), [])
    scores = detection_scores(nothing, truths)
    assert scores["CDS"] == scores["AP"] == 0.0
    assert [scores["classes"]["REGULAR_VEHICLE"][key] for key in NUMBERS] == [2.0, 1.0, np.pi, 0.0, 0.0]
    for none in (nothing, replace(truths, counts=[0] * 8)):
        with pytest.raises(NoLabelsError, match="no label of the 26 classes counts"):
            detection_scores(truths, none)


def test_a_shift_by_a_metre_costs_what_it_should() -> None:
    truths = one_sweep()
    boxes = np.array(truths.boxes)
    boxes[:, 1] += 1.0
    own = detection_scores(replace(truths, boxes=boxes), truths)["classes"]["REGULAR_VEHICLE"]
    # right at 2 and 4 m, not at 0.5 and, as the distance must be below it, not at 1 m
    assert own["ATE"] == pytest.approx(1.0) and own["AP"] == pytest.approx(0.5)
    assert own["CDS"] == pytest.approx(0.5 * (0.5 + 1 + 1) / 3)
    upwards = np.array(truths.boxes) + [0, 0, 1.0, 0, 0, 0, np.pi / 2]
    own = detection_scores(replace(truths, boxes=upwards), truths)["classes"]["REGULAR_VEHICLE"]
    assert own["ATE"] == pytest.approx(1.0) and own["AOE"] == pytest.approx(np.pi / 2)  # distances are 3D
    longer = np.array(truths.boxes) * [1, 1, 1, 2, 1, 1, 1]
    assert detection_scores(replace(truths, boxes=longer), truths)["classes"]["REGULAR_VEHICLE"]["ASE"] == 0.5


def test_a_better_scored_prediction_takes_its_nearest_truth_wherever_that_is() -> None:
    truths = one_sweep(1)
    boxes = np.array([[30.0, 5, 0.5, 4, 2, 1.5, 0], [0.0, 5, 0.5, 4, 2, 1.5, 0]])
    two = SweepBoxes(["a", "a"], [15, 15], boxes, [0.9, 0.8])
    assert detection_scores(two, truths)["AP"] == 0.0  # the exact one comes second
    own = detection_scores(replace(two, counts=[0.8, 0.9]), truths)["classes"]["REGULAR_VEHICLE"]
    assert own["AP"] == pytest.approx(100.5 / 101)  # at recall 1 the precision is that of both


def test_far_and_empty_truths_do_not_count_and_a_hundred_predictions_do() -> None:
    truths = one_sweep()
    far = np.array(truths.boxes)
    far[0, :2] = 120.0
    own = detection_scores(truths, replace(truths, boxes=far))["classes"]["REGULAR_VEHICLE"]
    assert own["num_truths"] == 7
    own = detection_scores(truths, replace(truths, counts=[0, *[3] * 7]))["classes"]["REGULAR_VEHICLE"]
    assert own["num_truths"] == 7
    many = SweepBoxes(["a"] * 108, [15] * 108, np.repeat(truths.boxes[:1], 108, 0), np.linspace(1, 0.1, 108))
    assert detection_scores(many, truths)["classes"]["REGULAR_VEHICLE"]["num_predictions"] == 100


def test_answers_of_a_model_are_scored_by_frames() -> None:
    city_from_ego = pose(rotation_z(0.4), [500.0, 20, 3])
    boxes = np.concatenate([one_sweep().boxes, np.zeros((8, 2))], 1)
    names = ["PEDESTRIAN"] * 4 + ["REGULAR_VEHICLE"] * 4
    notes = Annotations.of_boxes(names, boxes[:, :3], boxes[:, 3:6], boxes[:, 6], global_from_frame=city_from_ego)
    own = pose(rotation_z(-0.2), [1.0, 0, 0])  # a BEV frame that is not the EGO frame
    frame = Frame("log-1", "log", "log", 0, (), city_from_ego, annotations=notes, ego_from_bev=own)
    classes = ("REGULAR_VEHICLE", "PEDESTRIAN")
    answer = Detections("log-1", frame.bev_boxes(), np.linspace(0.9, 0.2, 8), np.array([1] * 4 + [0] * 4))
    scores = argoverse2_scores(sweep_boxes({"log-1": answer}, [frame]), [frame], classes)
    assert scores["CDS"] == pytest.approx(1.0) and scores["classes"]["PEDESTRIAN"]["num_truths"] == 4
    assert summary(scores)["CDS"] == scores["CDS"]
    assert any(line.split() == ["PEDESTRIAN", "0.000", "0.000", "0.000", "1.000", "1.000"] for line in table(scores))
    assert argoverse2_scores(sweep_boxes({}, [frame]), [frame], classes)["CDS"] == 0.0
    with pytest.raises(DataError, match=r"none of its 1 sweeps is one of the 1 of the split"):
        argoverse2_scores(replace(sweep_boxes({"log-1": answer}, [frame]), names=["x"]), [frame])
    with pytest.raises(DataError, match=r"sample log-1: has no labels"):
        argoverse2_scores(sweep_boxes({}, [frame]), [replace(frame, annotations=None)])


def test_bad_arrays_are_refused() -> None:
    good = one_sweep()
    for change, says in (
        ({"boxes": np.zeros((8, 5))}, r"boxes of predictions: have shape \(8, 5\)"),
        ({"labels": [1, 2]}, r"labels of predictions: have shape \(2,\)"),
        ({"counts": [np.nan] * 8}, "counts of predictions: hold NaN"),
        ({"boxes": np.zeros((8, 7))}, "a size is not above 0"),
    ):
        with pytest.raises(DataError, match=says):
            detection_scores(replace(good, **change), good)
    with pytest.raises(DataError, match="no drivable area"):
        RegionOfInterest.of_areas([])
    with pytest.raises(DataError, match="give metres"):
        RegionOfInterest.of_areas([np.array([[0.0, 0], [1e6, 0], [1e6, 1e6]])])


def test_the_region_is_the_area_and_five_metres_around_it() -> None:
    region = RegionOfInterest.of_areas([np.array([[0.0, 0, 9], [20, 0, 9], [20, 10, 9], [0, 10, 9]])])
    points = np.array([[10.0, 5], [0.02, 0.02], [20.9, 5], [25.2, 5], [10, 10.9], [-3.0, 5]])
    assert region.contains(points).tolist() == [True, True, True, False, True, False]  # the grid ends where areas do
    # officially coordinates are cut, not floored, so that the first cells are twice as wide
    assert region.contains(np.array([[-0.05, 5.0], [-0.15, 5]])).tolist() == [True, False]
