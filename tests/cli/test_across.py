"""`score` and `evaluate` across data sets, and the same from Python: what is said; identity changes nothing."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest

import drivestack
from drivestack.api import Perception
from drivestack.bev.evaluation.class_mapping import read_mapping
from drivestack.cli.main import main
from drivestack.data_tools.readers.waymo.reader import CLASSES as WAYMO_CLASSES
from drivestack.engine.config import load_config
from drivestack.tasks.run import load_model

CLASSES = ["barrier", "bicycle", "bus", "car", "construction_vehicle", "motorcycle", "pedestrian"]
CLASSES += ["traffic_cone", "trailer", "truck"]
VEHICLES = ["car", "truck", "bus", "trailer", "construction_vehicle"]
COMMON = dict.fromkeys(VEHICLES, "vehicle") | {"pedestrian": "person"}
COMMON |= dict.fromkeys(["bicycle", "motorcycle", "barrier", "traffic_cone"], "")
SIX = {f"CAM_{name}": f"CAM_{name}" for name in ("FRONT", "FRONT_LEFT", "FRONT_RIGHT", "BACK", "BACK_LEFT")}
SIX |= {"CAM_BACK_RIGHT": ""}


def write(path: Path, **content: object) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def scores_of(folder: Path) -> dict:
    return json.loads((folder / "metrics_summary.json").read_text())


def failure(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    return line


def test_identity_gives_the_scores_of_the_verb_without_a_mapping(
    submission: Path, root: Path, source, tmp_path
) -> None:
    same = {name: name for name in CLASSES}
    mapping = write(tmp_path / "same.json", predictions=same, labels=same)
    assert main(["score", str(submission), *source(root), "--out", str(tmp_path / "a")]) == 0
    assert main(["score", str(submission), *source(root), "--out", str(tmp_path / "b"), "--mapping", mapping]) == 0
    plain, mapped = scores_of(tmp_path / "a"), scores_of(tmp_path / "b")
    assert mapped.pop("across_sets")["left_out"]["predictions"] == {}
    assert mapped == plain


def test_evaluate_says_first_what_is_compared_with_what(
    config: Path, weights: Path, root: Path, source, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mapping = write(tmp_path / "m.json", predictions=COMMON, labels=COMMON, range_m={"vehicle": 60.0}, cameras=SIX)
    run = ["evaluate", str(config), str(weights), *source(root), "--mapping", mapping, "--out", str(tmp_path)]
    assert main(run) == 0
    text = capsys.readouterr().out
    scores = scores_of(tmp_path)
    assert scores["ap"]["vehicle"] == pytest.approx(1.0) and set(scores["ap"]) == {"vehicle", "person"}
    about = scores["across_sets"]
    assert text.index("model     oracle") < text.index("NDS")
    for line in about["report"]:
        assert line in text
    report = "\n".join(about["report"])
    assert "vehicle within 60 m: predictions car, truck, bus" in report
    assert "oracle.safetensors" in report and "trained for barrier, bicycle" in report
    assert f"{about['left_out']['labels']['barrier']} barrier" in report
    assert "CAM_FRONT " in report and "no embedding" in report and "CAM_BACK_RIGHT" not in report

    # boxes are written as far as the common class is scored, whatever radius the model's own class has
    near = ["--set", "class_range_m={'car': 15.0}", "--out", str(tmp_path / "near")]
    assert main([*run[:-2], *near]) == 0
    assert scores_of(tmp_path / "near")["num_predictions"] == scores["num_predictions"]
    ordinary = write(tmp_path / "15.json", predictions=COMMON, labels=COMMON, cameras=SIX)
    assert main([*run[:-3], ordinary, *near]) == 0
    cut = scores_of(tmp_path / "near")
    assert cut["across_sets"]["ranges_m"]["vehicle"] == 15.0 and cut["ap"]["vehicle"] == pytest.approx(1.0)
    assert cut["num_predictions"]["vehicle"] < scores["num_predictions"]["vehicle"]


def test_a_submission_that_was_cut_at_a_smaller_radius_is_named(
    submission: Path, root: Path, source, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mapping = write(tmp_path / "m.json", predictions=COMMON, labels=COMMON, range_m={"person": 70.0})
    assert main(["score", str(submission), *source(root), "--mapping", mapping]) == 0
    text = capsys.readouterr().out
    assert "model     not known: a submission with" in text
    assert "cut       pedestrian ends at" in text and "written within 40 m, scored to 70" in text
    assert "cut       car" not in text


def test_python_takes_the_same_mapping(config: Path, weights: Path, root: Path) -> None:
    model = Perception(load_model(load_config(config), weights), load_config(config))
    frames = drivestack.read(root, version="v1.0-trainval", split="val")
    ahead = {name: name if name == "CAM_FRONT" else "" for name in SIX}
    mapping = {"predictions": COMMON, "labels": COMMON, "in_view": True, "cameras": ahead}
    scores = drivestack.evaluate(model, frames, mapping=mapping)
    assert list(scores) == ["boxes"] and scores["boxes"]["ap"]["vehicle"] == pytest.approx(1.0)
    about = scores["boxes"]["across_sets"]
    assert about["out_of_view"]["labels"] > 0 and about["classes"]["person"]["labels"] == ["pedestrian"]
    with pytest.raises(drivestack.DrivestackError, match="predictions have no entry for 'barrier'"):
        model.evaluate(frames, mapping={"predictions": {"car": "v"}, "labels": {"car": "v"}})
    with pytest.raises(drivestack.DrivestackError, match="answers boxes, not lanes"):
        model.evaluate(frames, tasks=["lanes"], mapping={"predictions": {"car": "v"}, "labels": {"car": "v"}})


def test_the_page_shows_the_mapping_of_the_example(repository_root: Path) -> None:
    page = (repository_root / "docs" / "across_sets.md").read_text(encoding="utf-8")
    shown, waymo = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    file = repository_root / "examples" / "own_rig" / "mapping.json"
    assert json.loads(shown) == json.loads(file.read_text(encoding="utf-8"))
    assert read_mapping(file).common == ("vehicle", "person", "two_wheeler", "obstacle")
    mapping = read_mapping(json.loads(waymo))
    assert set(mapping.predictions) == set(CLASSES) and set(mapping.labels) == set(WAYMO_CLASSES)


def test_the_shipped_model_on_the_example_of_another_rig(
    repository_root: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Five cameras of three sizes and five classes; cameras stand for the training's, and get their embeddings."""
    frames = drivestack.read(root, version="v1.0-trainval", split="val")
    runpy.run_path(str(repository_root / "examples" / "make_street.py"))["write_own_rig"](frames, tmp_path / "val")
    own_rig, tiny = repository_root / "examples" / "own_rig", "perception_tiny_synthetic"
    source = ["--reader", str(own_rig / "my_reader.py"), "--dataroot", str(tmp_path), "--split", "val"]
    evaluate = ["evaluate", tiny, tiny, *source, "--out", str(tmp_path / "out"), "--mapping"]
    assert main([*evaluate, str(own_rig / "mapping.json")]) == 0
    by_name = scores_of(tmp_path / "out")
    report = "\n".join(by_name["across_sets"]["report"])
    assert re.search(r"rear_left as CAM_BACK_LEFT +embedding 4, CAM_BACK_LEFT's", report)
    assert "no camera for CAM_BACK" in report and "vehicle within 40 m: predictions car, truck, bus; labels" in report
    assert by_name["tp_errors"]["mAVE"] is None and by_name["across_sets"]["out_of_view"]["labels"] > 0
    labels = by_name["num_ground_truths"]
    assert labels["vehicle"] > 3

    content = json.loads((own_rig / "mapping.json").read_text())
    del content["cameras"]
    assert main([*evaluate, write(tmp_path / "m.json", **content)]) == 0
    by_position = scores_of(tmp_path / "out")
    report = "\n".join(by_position["across_sets"]["report"])
    assert re.search(r"rear_left +embedding 3, CAM_BACK's", report)
    assert by_position["num_ground_truths"] == labels and by_position["nds"] != by_name["nds"]


def test_what_does_not_go_together_is_refused_before_the_work(
    config: Path, weights: Path, submission: Path, root: Path, source, tmp_path: Path, capsys
) -> None:
    mapping = ["--mapping", write(tmp_path / "m.json", predictions=COMMON, labels=COMMON)]
    score = ["score", str(submission), *source(root), *mapping]
    assert "range_m" in failure([*score, "--class-range", "car=30"], capsys)
    assert "leave --mapping or --official out" in failure([*score, "--official"], capsys)
    assert "--tasks leaves them out" in failure([*score, "--tasks", "lanes"], capsys)
    few = [
        "--mapping",
        write(tmp_path / "few.json", predictions=COMMON, labels={"car": "vehicle", "pedestrian": "person"}),
    ]
    evaluate = ["evaluate", str(config), str(weights), *source(root), "--out", str(tmp_path / "out"), *few]
    assert "labels have no entry for" in failure(evaluate, capsys)
    assert not (tmp_path / "out" / "submission.json").exists()
