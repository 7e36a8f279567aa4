"""Boxes scored across data sets: identity changes nothing, merged classes by hand, what is left out is counted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drivestack.bev.evaluation.class_mapping import ClassMapping, evaluate_mapped, in_view, read_mapping
from drivestack.bev.evaluation.nuscenes_boxes import ScoredBoxes
from drivestack.bev.evaluation.nuscenes_metrics import DETECTION_CVPR_2019, evaluate
from drivestack.bev.evaluation.nuscenes_rules import CLASS_ATTRIBUTES
from drivestack.core.errors import ConfigError, NoLabelsError
from drivestack.core.frames import Annotations, CameraView, Frame
from drivestack.geometry import CameraModel, kannala_brandt
from support.scored_scenes import random_scenes

IDENTITY = {name: name for name in CLASS_ATTRIBUTES}
AHEAD = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]])  # EGO from a camera that looks ahead


def view(name: str, ego_from_camera: np.ndarray = AHEAD) -> CameraView:
    """90 degrees wide."""
    camera = CameraModel(np.array([[50.0, 0, 50], [0, 50.0, 50], [0, 0, 1]]), 100, 100)
    return CameraView(name, camera, ego_from_camera, np.eye(4), 0)


def scene(
    labels: list[tuple[str, float, float]], found: list[tuple[str, float, float, float]], **notes
) -> tuple[list[Frame], dict[str, ScoredBoxes]]:
    """One sample with labels (class, x, y) and predictions (class, score, x, y), all boxes of one size."""
    annotations = Annotations.of_boxes(
        [name for name, *_ in labels],
        [[x, y, 1.0] for _, x, y in labels],
        np.full((len(labels), 3), 2.0),
        np.zeros(len(labels)),
    )
    frame = Frame("t", "s", "s", 0, (view("front"),), np.eye(4), annotations=replace(annotations, **notes))
    boxes = ScoredBoxes(
        names=[name for name, *_ in found],
        scores=np.array([score for _, score, *_ in found]),
        centre_global_m=np.array([[x, y, 1.0] for *_, x, y in found]).reshape(-1, 3),
        size_lwh_m=np.full((len(found), 3), 2.0),
        yaw_rad=np.zeros(len(found)),
        velocity_global_mps=np.full((len(found), 2), np.nan),
        attributes=[""] * len(found),
    )
    return [frame], {"t": boxes}


def without_report(scores: dict) -> dict:
    return {key: value for key, value in scores.items() if key != "across_sets"}


@pytest.mark.parametrize("seed", range(12))
def test_identity_gives_the_ordinary_scores_to_the_last_bit(seed: int) -> None:
    frames, found = random_scenes(seed)
    backwards = ClassMapping(dict(reversed(IDENTITY.items())), IDENTITY)
    scores = evaluate_mapped(frames, found, backwards)
    unknown = scores["across_sets"]["without_errors"]["unknown_in_labels"]
    settings = backwards.settings({}, unknown) if unknown else DETECTION_CVPR_2019
    assert without_report(scores) == evaluate(frames, found, settings)
    assert backwards.settings({}).class_range_m == DETECTION_CVPR_2019.class_range_m


def test_merged_classes_as_computed_by_hand() -> None:
    labels = [("pkw", 10, 0), ("lkw", 20, 0), ("person", 5, 5)]
    found = [("car", 0.9, 10, 0), ("car", 0.8, 20, 0.3), ("bus", 0.7, 0, -10)]
    mapping = ClassMapping(
        {"car": "vehicle", "bus": "vehicle", "pedestrian": "person"},
        {"pkw": "vehicle", "lkw": "vehicle", "person": "person"},
    )
    scores = evaluate_mapped(*scene(labels, found), mapping)
    # precision 1 at recalls 0.11 to 0.99; at 1 the third box, which finds nothing, makes it 2 / 3
    assert scores["ap"] == {"vehicle": pytest.approx((89 + (2 / 3 - 0.1) / 0.9) / 90), "person": 0.0}
    # running mean of the distances 0 and 0.3 m: 0 up to recall 0.5, then in a line to 0.15
    assert scores["tp_errors_per_class"]["vehicle"]["mATE"] == pytest.approx((0.3 * 12.25 + 0.15) / 90)
    assert scores["num_ground_truths"] == {"vehicle": 2, "person": 1}
    assert scores["tp_errors"]["mAVE"] is None and scores["tp_errors"]["mAAE"] is None
    errors = [scores["tp_errors"][name] for name in ("mATE", "mASE", "mAOE")]
    assert scores["nds"] == pytest.approx((5 * scores["map"] + sum(1 - min(1, error) for error in errors)) / 8)
    about = scores["across_sets"]
    assert about["classes"]["vehicle"] == {"predictions": ["car", "bus"], "labels": ["pkw", "lkw"]}
    assert about["ranges_m"] == {"person": 40.0, "vehicle": 50.0}
    assert about["without_errors"] == {"stated": [], "unknown_in_labels": ["mAVE", "mAAE"]}


def test_what_is_left_out_is_counted_by_its_reason() -> None:
    labels = [("pkw", 10, 0), ("pkw", 30, 0), ("tram", 12, 0), ("tram", 14, 0), ("", 9, 0), ("pkw", 8, 1)]
    found = [("car", 0.9, 10, 0), ("barrier", 0.9, 10, 0), ("car", 0.5, 45, 0)]
    mapping = ClassMapping({"car": "v", "barrier": ""}, {"pkw": "v", "tram": ""}, range_m={"v": 20.0})
    points = np.array([1, 1, 1, 1, 1, 0])
    scores = evaluate_mapped(*scene(labels, found, num_lidar_points=points), mapping)
    about = scores["across_sets"]
    assert about["left_out"] == {"predictions": {"barrier": 1}, "labels": {"": 1, "tram": 2}}
    assert about["uncounted"] == {"predictions": 1, "labels": 2}  # at 45 m; at 30 m, and the one without points
    assert scores["num_ground_truths"] == {"v": 1} and scores["ap"]["v"] == pytest.approx(1)
    every = evaluate_mapped(*scene(labels, found, num_lidar_points=points), replace(mapping, min_points=0))
    assert every["num_ground_truths"] == {"v": 2}


def test_only_what_a_camera_sees_counts_where_that_is_asked() -> None:
    labels = [("pkw", 10, 0), ("pkw", -10, 0), ("pkw", 10, 20)]
    found = [("car", 0.5, 10, 0), ("car", 0.9, -20, 0)]
    mapping = ClassMapping({"car": "v"}, {"pkw": "v"})
    frames, boxes = scene(labels, found)
    assert evaluate_mapped(frames, boxes, mapping)["num_ground_truths"] == {"v": 3}
    scores = evaluate_mapped(frames, boxes, replace(mapping, in_view=True))
    assert scores["num_ground_truths"] == scores["num_predictions"] == {"v": 1} and scores["ap"]["v"] == pytest.approx(
        1
    )
    assert scores["across_sets"]["out_of_view"] == {"predictions": 1, "labels": 2}

    back = AHEAD.copy()
    back[:3, 0], back[:3, 2] = -AHEAD[:3, 0], -AHEAD[:3, 2]
    both = [replace(frames[0], cameras=(view("front"), view("rear", back)))]
    centres = frames[0].annotations.centre_global_m
    assert in_view(both[0], centres, None).tolist() == [True, True, False]
    assert in_view(both[0], centres, ["rear"]).tolist() == [False, True, False]
    hidden = replace(mapping, in_view=True, cameras={"front": "CAM_FRONT", "rear": ""})  # not shown to the model
    assert evaluate_mapped(both, boxes, hidden)["num_ground_truths"] == {"v": 1}


def test_a_fisheye_sees_what_lies_beside_it() -> None:
    frames, _ = scene([("pkw", 1, 5), ("pkw", -1, 5), ("pkw", -5, 1)], [])  # at 79, 101 and 169 degrees
    fisheye = kannala_brandt(np.array([[28.0, 0, 50], [0, 28.0, 50], [0, 0, 1]]), 100, 100, [0.0] * 4)
    centres = frames[0].annotations.centre_global_m
    assert in_view(frames[0], centres, None).tolist() == [False, False, False]
    wide = replace(frames[0], cameras=(replace(frames[0].cameras[0], camera=fisheye),))
    assert in_view(wide, centres, None).tolist() == [True, True, False]


def test_cameras_are_shown_by_the_names_that_they_stand_for() -> None:
    frames = [replace(scene([("pkw", 1, 1)], [])[0][0], cameras=(view("front"), view("roof")))]
    mapping = ClassMapping({"car": "v"}, {"pkw": "v"}, cameras={"front": "CAM_FRONT", "roof": ""})
    assert [v.name for v in mapping.renamed(frames)[0].cameras] == ["CAM_FRONT"]
    with pytest.raises(ConfigError, match="camera 'roof' of the set is not in cameras"):
        replace(mapping, cameras={"front": "CAM_FRONT"}).renamed(frames)
    with pytest.raises(ConfigError, match="the set has no camera 'rear'; there are front, roof"):
        replace(mapping, cameras={"front": "a", "roof": "b", "rear": "c"}).renamed(frames)


def test_a_common_class_keeps_what_all_of_its_parts_have() -> None:
    both = ClassMapping(
        {"car": "car", "traffic_cone": "thing", "barrier": "thing", "bicycle": "cycle", "motorcycle": "cycle"},
        {"car": "car", "barrier": "thing", "bicycle": "cycle"},
    ).settings({})
    assert both.undefined_errors["thing"] == ("mAOE", "mAVE", "mAAE") and both.undefined_errors["cycle"] == ()
    assert both.half_turn_classes == ("thing",)
    assert both.excluded_in == {"static_object.bicycle_rack": ("cycle",)}
    assert both.class_range_m == {"car": 50.0, "thing": 30.0, "cycle": 40.0}
    own = ClassMapping({"car": "v"}, {"pkw": "v"}, without_errors=("mAVE",))
    assert own.settings({"pkw": 35.0}).class_range_m == {"v": 35.0}
    assert own.settings({}).undefined_errors["v"] == ("mAVE", "mAAE")  # a pkw has no attributes
    assert ClassMapping({"car": "v", "bus": ""}, {"pkw": "v"}, range_m={"v": 75.0}).writing_ranges_m({}) == {
        "car": 75.0,
        "bus": 50.0,
    }


def test_a_class_that_is_not_mapped_is_an_error() -> None:
    mapping = ClassMapping({"car": "v"}, {"pkw": "v"})
    frames, boxes = scene([("pkw", 1, 1), ("tram", 5, 5), ("bus", 6, 5)], [("truck", 0.5, 1, 1)])
    with pytest.raises(ConfigError, match=r"labels have no entry for 'bus' \(nor tram\)"):
        evaluate_mapped(frames, {"t": boxes["t"]}, replace(mapping, predictions={"car": "v", "truck": ""}))
    with pytest.raises(ConfigError, match="predictions have no entry for 'truck'"):
        evaluate_mapped(frames, boxes, replace(mapping, labels={"pkw": "v", "tram": "", "bus": ""}))
    with pytest.raises(NoLabelsError, match=r"no label is of the common classes \(v\); it has tram"):
        mapping_of_tram = ClassMapping({"car": "v"}, {"pkw": "v", "tram": ""})
        mapping_of_tram.demand(scene([("tram", 1, 1)], [])[0])


GOOD = {"predictions": {"car": "v"}, "labels": {"pkw": "v"}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "holds no JSON object"),
        ({"predictions": {"car": "v"}}, "labels are missing"),
        (GOOD | {"range": {}}, "unknown key 'range'"),
        (GOOD | {"labels": {"pkw": 3}}, "Expected `str`, got `int`"),
        (GOOD | {"in_view": "yes"}, "Expected `bool`"),
        (GOOD | {"labels": {"pkw": ""}}, "no common class has both"),
        (GOOD | {"labels": {"pkw": "v", "person": "p"}}, "'p' has labels, but no predictions"),
        (GOOD | {"predictions": {"car": "v", "bus": "b"}}, "'b' has predictions, but no labels"),
        (GOOD | {"range_m": {"w": 30}}, "range_m of 'w', which is no common class; there are v"),
        (GOOD | {"range_m": {"v": 0}}, "give a radius in metres above 0"),
        (GOOD | {"without_errors": ["AVE"]}, "use names of mATE"),
        (GOOD | {"min_points": -1}, "min_points is -1"),
        (GOOD | {"cameras": {"a": "X", "b": "X"}}, "two cameras stand for 'X'"),
        (GOOD | {"cameras": {"a": ""}}, "no camera is shown"),
    ],
)
def test_files_that_are_wrong_are_refused_by_name(tmp_path: Path, content: object, message: str) -> None:
    file = tmp_path / "m.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=rf"m\.json.*{message}") as error:
        read_mapping(file)
    assert "\n" not in str(error.value)


def test_a_file_is_read_and_what_is_no_json_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "m.json"
    file.write_text(json.dumps(GOOD | {"range_m": {"v": 30}, "without_errors": ["mAVE"]}))
    assert read_mapping(file) == ClassMapping({"car": "v"}, {"pkw": "v"}, {"v": 30.0}, without_errors=("mAVE",))
    assert read_mapping(str(file)) == read_mapping(json.loads(file.read_text()))
    for text, message in (("{", "not valid JSON"), ('{"predictions": {"a": "v", "a": "w"}}', "'a' is mapped twice")):
        file.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_mapping(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_mapping(tmp_path / "none.json")
