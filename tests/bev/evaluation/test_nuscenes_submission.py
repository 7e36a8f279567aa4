"""Submission files: agreement with mmdet3d's formatter, and one broken file per rule."""

from __future__ import annotations

import copy
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest

from drivestack.bev.evaluation.nuscenes_boxes import ScoredBoxes, read_submission
from drivestack.bev.evaluation.nuscenes_rules import check_submission
from drivestack.bev.evaluation.nuscenes_submission import (
    CAMERA_META,
    NuScenesSubmission,
    attribute_of,
    read_detections,
)
from drivestack.bev.evaluation.oddities import all_far_away, oddities
from drivestack.core.answers import Detections
from drivestack.core.errors import DataError, SubmissionError
from drivestack.core.frames import Frame
from drivestack.geometry import boxes_from_legacy, pose

CLASSES = ["barrier", "bicycle", "bus", "car", "construction_vehicle", "motorcycle", "pedestrian"]
CLASSES += ["traffic_cone", "trailer", "truck"]


def make_frame(token: str, ego_from_bev=None, global_from_ego=None) -> Frame:
    identity = np.eye(4)
    return Frame(
        token=token,
        scene_token="scene",
        scene_name="scene-0001",
        timestamp_us=0,
        cameras=(),
        ego_from_bev=identity if ego_from_bev is None else ego_from_bev,
        global_from_ego=identity if global_from_ego is None else global_from_ego,
    )


def make_detections(token: str, boxes, scores=None, labels=None) -> Detections:
    boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 9)
    scores = np.full(len(boxes), 0.5) if scores is None else scores
    labels = np.full(len(boxes), CLASSES.index("car")) if labels is None else labels
    return Detections(token, boxes, np.asarray(scores, dtype=np.float32), np.asarray(labels, dtype=np.int64))


CAR = [10.0, 5.0, 0.5, 4.0, 2.0, 1.5, 0.3, 1.0, 0.0]


def test_agrees_with_the_published_formatter(reference_dir: Path) -> None:
    case = np.load(reference_dir / "bev" / "nusc_format.npz")
    expected = json.loads((reference_dir / "bev" / "nusc_format_result.json").read_text())
    frame = make_frame(
        "tok1",
        pose(case["in.lidar2ego_rotation"], case["in.lidar2ego_translation"]),
        pose(case["in.ego2global_rotation"], case["in.ego2global_translation"]),
    )
    boxes = boxes_from_legacy(case["in.boxes"].astype(np.float64))
    found = Detections("tok1", boxes, case["in.scores"], case["in.labels"])
    ours = NuScenesSubmission.from_detections([found], [frame], CLASSES)
    assert ours.meta == expected["meta"]
    theirs = {box["detection_score"]: box for box in expected["results"]["tok1"]}
    assert len(ours.results["tok1"]) == len(theirs) == int(case["out.n_kept"])
    for box in ours.results["tok1"]:
        other = theirs[box["detection_score"]]
        for key in ("sample_token", "detection_name", "attribute_name"):
            assert box[key] == other[key]
        for key in ("translation", "size", "velocity"):
            np.testing.assert_allclose(box[key], other[key], atol=1e-4)
        assert abs(np.dot(box["rotation"], other["rotation"])) == pytest.approx(1, abs=1e-6)  # q and -q are one


@pytest.mark.parametrize(
    ("name", "moving", "still"),
    [
        ("car", "vehicle.moving", "vehicle.parked"),
        ("bus", "vehicle.moving", "vehicle.stopped"),
        ("trailer", "vehicle.moving", "vehicle.parked"),
        ("bicycle", "cycle.with_rider", "cycle.without_rider"),
        ("pedestrian", "pedestrian.moving", "pedestrian.standing"),
        ("barrier", "", ""),
    ],
)
def test_attributes_follow_the_speed(name: str, moving: str, still: str) -> None:
    assert attribute_of(name, 0.21) == moving
    assert attribute_of(name, 0.2) == still


def test_range_filter_is_a_radius_in_the_ego_frame() -> None:
    frame = make_frame("a", ego_from_bev=pose(np.eye(3), np.array([1.0, 0.0, 2.0])))
    inside, outside = [48.9, 0, 0, 4, 2, 1.5, 0, 0, 0], [49.1, 0, 0, 4, 2, 1.5, 0, 0, 0]
    kept = NuScenesSubmission.from_detections([make_detections("a", [outside, inside])], [frame], CLASSES)
    assert [round(box["translation"][0], 2) for box in kept.results["a"]] == [49.9]


def test_at_most_500_boxes_stay_and_they_are_the_best() -> None:
    scores = np.linspace(0.01, 0.99, 600)
    found = make_detections("a", [CAR] * 600, scores)
    boxes = NuScenesSubmission.from_detections([found], [make_frame("a")], CLASSES).results["a"]
    assert len(boxes) == 500
    assert min(box["detection_score"] for box in boxes) == pytest.approx(scores[100], abs=1e-6)


@pytest.mark.parametrize(
    ("detections", "message"),
    [
        ([], "sample a: no prediction"),
        ([make_detections("a", [CAR]), make_detections("a", [CAR])], "sample a: predicted twice"),
        ([make_detections("a", [CAR]), make_detections("b", [CAR])], "sample b: predicted, but not"),
        ([make_detections("a", [[np.nan] + CAR[1:]])], "sample a: predicted box 0 is not finite"),
    ],
)
def test_the_writer_refuses_what_cannot_be_scored(detections: list[Detections], message: str) -> None:
    with pytest.raises(SubmissionError, match=message):
        NuScenesSubmission.from_detections(detections, [make_frame("a")], CLASSES)


def test_the_writer_refuses_a_foreign_class() -> None:
    with pytest.raises(SubmissionError, match="class 'tram' is not a nuScenes detection class"):
        NuScenesSubmission.from_detections([], [], ["tram"])


def test_other_classes_are_written_and_read_where_the_caller_gives_their_radius(tmp_path: Path) -> None:
    near, far, person = CAR, [30.0, *CAR[1:]], [35.0, *CAR[1:]]
    found = make_detections("a", [near, far, person], labels=[0, 0, 1])
    names = ["tram", "pedestrian"]
    written = NuScenesSubmission.from_detections([found], [make_frame("a")], names, {"tram": 20.0})
    kept = [(box["detection_name"], box["attribute_name"]) for box in written.results["a"]]
    assert kept == [("tram", ""), ("pedestrian", "pedestrian.moving")]  # a pedestrian's 40 m need not be said
    path = tmp_path / "submission.json"
    written.write(path)
    assert check_submission(path, own_classes=names) == []
    (problem,) = check_submission(path)
    assert problem.field == "detection_name" and "'tram'" in problem.message
    assert read_detections(path, [make_frame("a")], names)["a"].labels.tolist() == [0, 1]
    with pytest.raises(SubmissionError, match="sample a: holds a 'pedestrian'"):
        read_detections(path, [make_frame("a")], ["tram"])


def test_a_label_without_a_class_is_named() -> None:
    found = make_detections("a", [CAR], labels=[10])
    with pytest.raises(SubmissionError, match="sample a: predicted label 10, but there are 10 class names"):
        NuScenesSubmission.from_detections([found], [make_frame("a")], CLASSES)


def valid_content() -> dict:
    frames = [make_frame("a"), make_frame("b")]
    found = [make_detections("a", [CAR, CAR], labels=[3, 6]), make_detections("b", [])]
    submission = NuScenesSubmission.from_detections(found, frames, CLASSES)
    return {"meta": submission.meta, "results": submission.results}


def test_round_trip_is_valid(tmp_path: Path) -> None:
    content = valid_content()
    path = tmp_path / "new" / "submission.json"
    NuScenesSubmission(content["results"], content["meta"]).write(path)
    assert json.loads(path.read_text()) == content
    assert check_submission(path, ["a", "b"]) == []
    assert [p.name for p in path.parent.iterdir()] == ["submission.json"]


def test_reading_gives_the_written_boxes(tmp_path: Path) -> None:
    turn = pose([0.9, 0.0, 0.0, np.sqrt(1 - 0.81)], [600.0, 1600.0, 0.5])
    frame = make_frame("a", pose(np.eye(3), np.array([0.9, 0, 1.8])), turn)
    written = make_detections("a", [CAR, CAR[:6] + [-2.0, 0.5, -0.3]], [0.9, 0.4], [3, 9])
    path = tmp_path / "submission.json"
    NuScenesSubmission.from_detections([written], [frame], CLASSES).write(path)
    read = read_detections(path, [frame, make_frame("elsewhere")], CLASSES)
    assert read.keys() == {"a"}
    np.testing.assert_allclose(read["a"].boxes, written.boxes, atol=1e-4)
    np.testing.assert_allclose(read["a"].scores, written.scores)
    np.testing.assert_array_equal(read["a"].labels, written.labels)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "submission.json"
    path.write_text("old")
    with pytest.raises(ValueError):
        NuScenesSubmission({"a": [{"detection_score": float("nan")}]}).write(path)
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def change(path: tuple, value):
    """A function that sets content[path] = value, or deletes the key for ``...``."""

    def apply(content: dict) -> None:
        for key in path[:-1]:
            content = content[key]
        if value is ...:
            del content[path[-1]]
        else:
            content[path[-1]] = value

    return apply


BOX = ("results", "a", 0)
BROKEN = {
    "missing sample": (change(("results", "b"), ...), ["sample b", "missing"]),
    "extra sample": (change(("results", "c"), []), ["sample c", "does not belong"]),
    "no results": (change(("results",), ...), ["results", "missing"]),
    "results is a list": (change(("results",), []), ["results", "not an object"]),
    "boxes not a list": (change(("results", "b"), {}), ["sample b", "not a list"]),
    "box not an object": (change(BOX, 3), ["sample a, box 0", "is int"]),
    "no meta": (change(("meta",), ...), ["meta", "missing"]),
    "meta flag missing": (change(("meta", "use_radar"), ...), ["meta.use_radar", "missing"]),
    "meta flag not bool": (change(("meta", "use_map"), 1), ["meta.use_map", "is 1"]),
    "meta without sensor": (change(("meta", "use_camera"), False), ["meta", "no sensor"]),
    "other token inside": (change((*BOX, "sample_token"), "z"), ["sample a, box 0, sample_token", "'z'"]),
    "token missing": (change((*BOX, "sample_token"), ...), ["sample a, box 0, sample_token"]),
    "short translation": (change((*BOX, "translation"), [1, 2]), ["translation", "[1, 2]", "3 numbers"]),
    "text in size": (change((*BOX, "size"), [1, 2, "3"]), ["size", "'3'"]),
    "bool as number": (change((*BOX, "size"), [1, 2, True]), ["size", "True"]),
    "negative score": (change((*BOX, "detection_score"), -0.5), ["detection_score", "-0.5, negative"]),
    "negative size": (change((*BOX, "size"), [1, -2, 3]), ["size", "not positive"]),
    "zero size": (change((*BOX, "size"), [1, 0, 3]), ["size", "not positive"]),
    "quaternion of length 2": (change((*BOX, "rotation"), [2, 0, 0, 0]), ["rotation", "length 2", "normalise"]),
    "velocity missing": (change((*BOX, "velocity"), ...), ["velocity", "is missing"]),
    "NaN velocity": (change((*BOX, "velocity"), [float("nan"), 0]), ["velocity", "NaN"]),
    "infinite translation": (change((*BOX, "translation"), [float("inf"), 0, 0]), ["translation", "infinity"]),
    "score missing": (change((*BOX, "detection_score"), ...), ["detection_score", "is missing"]),
    "score is text": (change((*BOX, "detection_score"), "0.5"), ["detection_score", "'0.5'"]),
    "score is NaN": (change((*BOX, "detection_score"), float("nan")), ["detection_score", "nan"]),
    "unknown class": (change((*BOX, "detection_name"), "tram"), ["detection_name", "'tram'", "use one of car"]),
    "unhashable class": (change((*BOX, "detection_name"), []), ["detection_name", "[]"]),
    "unknown attribute": (change((*BOX, "attribute_name"), "vehicle.flying"), ["attribute_name", "flying"]),
    "attribute missing": (change((*BOX, "attribute_name"), ...), ["attribute_name", "is missing"]),
    "number of 400 digits": (change((*BOX, "translation"), [10**400, 0, 0]), ["translation", "NaN or infinity"]),
    "score of 400 digits": (change((*BOX, "detection_score"), 10**400), ["detection_score", "is 1000"]),
    "beyond any map": (change((*BOX, "velocity"), [1e300, 0]), ["velocity", "beyond any map"]),
    "attribute of another class": (
        change((*BOX, "attribute_name"), "cycle.with_rider"),
        ["attribute_name", "a car cannot have", "vehicle.moving"],
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_each_broken_rule_is_named_once(tmp_path: Path, case: str) -> None:
    apply, fragments = BROKEN[case]
    content = copy.deepcopy(valid_content())
    apply(content)
    path = tmp_path / "submission.json"
    path.write_text(json.dumps(content))
    problems = check_submission(path, ["a", "b"])
    assert len(problems) == 1, [str(p) for p in problems]
    for fragment in fragments:
        assert fragment in str(problems[0])
    with pytest.raises(SubmissionError) as caught:  # the reader's quick pass lets none through
        read_submission(path, ["a", "b"])
    assert str(caught.value) == f"{path}: {problems[0]}"


def test_all_problems_are_stated_together(tmp_path: Path) -> None:
    content = valid_content()
    for case in ("missing sample", "meta flag missing", "negative size", "unknown class"):
        BROKEN[case][0](content)
    path = tmp_path / "submission.json"
    path.write_text(json.dumps(content))
    assert len(check_submission(path, ["a", "b"])) == 4


def test_too_many_boxes(tmp_path: Path) -> None:
    content = valid_content()
    content["results"]["a"] = content["results"]["a"][:1] * 501
    path = tmp_path / "submission.json"
    path.write_text(json.dumps(content))
    (problem,) = check_submission(path)
    assert "sample a: has 501 boxes, at most 500" in str(problem)
    with pytest.raises(SubmissionError, match="has 501 boxes"):
        read_submission(path)


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        (json.dumps(valid_content())[:-30], "truncated"),
        ('{"meta": {}, "results": {"a": [{"sample_tok', "truncated"),
        ("hello", "not JSON"),
        ("", "not JSON"),
        ("[1, 2]", "no JSON object"),
        (f'{{"meta": {json.dumps(dict(CAMERA_META))}, "results": {{"a": [], "b": [], "a": []}}}}', "'a' appears twice"),
    ],
)
def test_files_that_are_not_a_submission(tmp_path: Path, text: str, fragment: str) -> None:
    path = tmp_path / "submission.json"
    path.write_text(text)
    (problem,) = check_submission(path, ["a", "b"])
    assert fragment in str(problem)
    with pytest.raises(SubmissionError, match=re.escape(str(problem))):
        read_submission(path, ["a", "b"])


NESTED = "[" * 100_000
BIG = "1" * 5000
META = json.dumps(dict(CAMERA_META))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (NESTED.encode(), "nested too deeply"),
        (f'{{"meta": {META}, "results": {{"a": {NESTED}}}}}'.encode(), "nested too deeply"),
        (f'{{"meta": {META}, "results": {BIG}}}'.encode(), "not JSON that can be read"),
        (b"PK\x03\x04\xff\xfe", "the file is a zip archive"),
        (b"\x80\x04\x95\xff", "the file is a pickle"),
        (b"null", "holds no JSON object"),
        (b'{"images": [], "annotations": [], "categories": []}', "a COCO data set"),
    ],
)
def test_files_of_another_kind_or_of_absurd_depth(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "submission.json"
    path.write_bytes(content)
    problems = check_submission(path, ["a"])
    assert message in str(problems[0]) and max(len(str(problem)) for problem in problems) < 500
    with pytest.raises(SubmissionError, match=re.escape(message)):
        read_submission(path, ["a"])


def test_submissions_of_other_tasks_are_named_once(tmp_path: Path) -> None:
    path = tmp_path / "submission.json"
    tracking = [{"sample_token": "a", "tracking_id": "1", "tracking_name": "car", "tracking_score": 0.5}] * 9
    path.write_text(json.dumps({"meta": dict(CAMERA_META), "results": {"a": tracking}}))
    (problem,) = check_submission(path, ["a"])
    assert "nuScenes tracking results (tracking_name, tracking_id), not detections" in str(problem)
    path.write_text(json.dumps({"results": {"val/1/2": {"predictions": {}}}}))
    (problem,) = check_submission(path, ["a"])
    assert "a submission of OpenLane-V2" in str(problem)


def test_many_equal_keys_take_no_time(tmp_path: Path) -> None:
    path = tmp_path / "submission.json"
    keys = ", ".join(f'"{i % 20_000}": []' for i in range(40_000))
    path.write_text(f'{{"meta": {META}, "results": {{{keys}}}}}')
    start = time.process_time()
    assert "appears twice" in str(check_submission(path)[0])
    assert time.process_time() - start < 10


def test_ids_that_do_not_meet_are_one_statement(tmp_path: Path) -> None:
    path = tmp_path / "submission.json"
    path.write_text(json.dumps({"meta": dict(CAMERA_META), "results": {"mini1": [], "mini2": []}}))
    first, *others = check_submission(path, ["val1", "val2", "val3"])
    assert str(first).startswith(
        "none of its 2 samples is one of the 3 of the split: it has 'mini1', the split 'val1'; n"
    )
    assert len(others) == 5


def many_cars(**wrong: object) -> dict[str, ScoredBoxes]:
    n = 24
    columns = {
        "names": ["car"] * n,
        "scores": np.full(n, 0.5),
        "centre_global_m": np.tile([600.0, 1600.0, 1.0], (n, 1)),
        "size_lwh_m": np.tile([4.5, 1.9, 1.6], (n, 1)),
        "yaw_rad": np.zeros(n),
        "velocity_global_mps": np.zeros((n, 2)),
        "attributes": [""] * n,
    }
    return {"a": ScoredBoxes(**columns | wrong)}


def test_oddities_are_counted_and_harmless_things_are_not() -> None:
    frames = [make_frame("a", global_from_ego=pose(np.eye(3), [600.0, 1590.0, 0.0]))]
    assert oddities(many_cars(), frames) == [] == oddities(many_cars()) and all_far_away(many_cars(), frames) == ""
    fast = np.zeros((24, 2))
    fast[5] = 300, 400
    (line,) = oddities(many_cars(velocity_global_mps=fast), frames)
    assert line == "1 of 24 boxes are faster than 100 m/s (sample a, box 5: car, 500 m/s); velocity is in m/s"
    wide = np.tile([1.9, 4.5, 1.6], (24, 1))
    (line,) = oddities(many_cars(size_lwh_m=wide), frames)
    assert line.startswith("24 of 24 vehicles are wider than long; size is width, length, height")
    assert oddities(many_cars(size_lwh_m=wide, names=["pedestrian"] * 24), frames) == []
    local = many_cars(centre_global_m=np.tile([10.0, -5.0, 1.0], (24, 1)), scores=np.full(24, 1.5))
    far, score = oddities(local, frames)
    assert far.startswith("24 of 24 boxes are farther from their sample's car than 1000 m (sample a, box 0: car, 17")
    assert score.startswith("24 of 24 boxes are of a score above 1 (sample a, box 0: car, 1.5); scores are")
    assert all_far_away(local, frames).startswith(
        "all 24 boxes lie farther than 1000 m from their sample's car, the ne"
    )


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.json"):
        check_submission(tmp_path / "nowhere.json")
