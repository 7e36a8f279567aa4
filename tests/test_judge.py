"""The judge's program and the table of towns, on answers of the shipped model for two keyframes."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest

import drivestack
from drivestack.core.errors import ConfigError, SubmissionError
from drivestack.data_tools.synthetic import synthesize

TINY = "perception_tiny_synthetic"


@pytest.fixture(scope="module")
def programs(repository_root: Path) -> dict[str, ModuleType]:
    sys.path.insert(0, str(repository_root / "benchmarks"))
    try:
        return {name: importlib.import_module(name) for name in ("judge", "object_memory", "summaries", "towns")}
    finally:
        sys.path.remove(str(repository_root / "benchmarks"))


@pytest.fixture(scope="module")
def val(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("judge") / "val"
    sizes = {"keyframes_per_scene": 2, "image_width_px": 384, "workers": 1, "progress": False}
    synthesize(root, split="val", num_scenes=1, seed=7, **sizes)
    return root


@pytest.fixture(scope="module")
def answers(val: Path) -> Path:
    model = drivestack.load(TINY)
    source = drivestack.DataSource("nuscenes", val, {"version": "v1.0-trainval", "split": "val"})
    drivestack.evaluate(model, source, out=val.parent / "answers", progress=False)
    return val.parent / "answers"


def test_the_judge_prints_scores_and_measures(
    programs: dict[str, ModuleType], val: Path, answers: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    judge, summaries = programs["judge"], programs["summaries"]
    found = judge.main([str(answers), "--dataroot", str(val), "--json", str(tmp_path / "judge.json")])
    text = capsys.readouterr().out
    for part in (
        "NDS 0.",
        "RayIoU",
        "OLS 0.",
        "network if slow, else line",
        "out of sight now",
        "thickness",
        "DET_p@1",
    ):
        assert part in text, part
    assert json.loads((tmp_path / "judge.json").read_text())["velocity"] == found["velocity"]
    assert found["velocity"]["boxes"] > 5 and found["occluded"]["others"] > 10
    flat = summaries.flat(found["scores"]) | summaries.flat_details(found)
    assert set(summaries.MAIN) <= set(flat) and flat["AVE pedestrian"] > 0 and math.isfinite(flat["thickness"])
    assert flat["mIoU unmasked"] < flat["mIoU"] and flat["velocity tracker"] == found["velocity"][
        "network if slow, else line"
    ]["all"]  # fmt: skip
    assert not [name for name in flat if name.startswith("mAVE") and not summaries.is_error(name)]


def test_measures_of_one_task_and_of_none(
    programs: dict[str, ModuleType], val: Path, answers: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options = ["--dataroot", str(val), "--details-only"]
    found = programs["judge"].main([str(answers), *options, "--tasks", "boxes"])
    assert set(found) == {"velocity", "occluded", "rays"} and "NDS" not in capsys.readouterr().out
    with pytest.raises(SubmissionError, match="holds no"):
        programs["judge"].main([str(tmp_path), *options])


def test_the_controls_of_remembered_objects_with_weights_that_lack_teachers(
    programs: dict[str, ModuleType], val: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    drive, rows = "perception_tiny_drive", ["none", "memory", "oracle"]
    names = ["--config", drive, "--weights", drive, "--rows", *rows, "--out", str(tmp_path / "rows.json")]
    programs["object_memory"].main([str(val), *names])
    found = json.loads((tmp_path / "rows.json").read_text())
    text = capsys.readouterr().out
    assert list(found) == rows and all(f"{name} " in text for name in rows)
    none, memory, oracle = (found[name][1] for name in rows)  # mAP
    assert 0 < memory != none and oracle > max(memory, none) and None in found["none"]
    for text, problem in (("same=1", "'same' is no number"), ("decay=much", "'much' is no float")):
        with pytest.raises(ConfigError, match=problem):
            programs["object_memory"].main([str(val), *names, "--set", text])


def test_towns_side_by_side(
    programs: dict[str, ModuleType], val: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    towns, made = programs["towns"], []
    monkeypatch.setattr(towns, "synthesize", lambda root, **recipe: made.append((root.name, recipe)))
    monkeypatch.setattr(towns.Runs, "score", lambda self, e, weights, root, keep: score(root))
    options = options_of_sets = ["--out", str(tmp_path), "--recipes", "unseen=val:8:towns", "--sets", f"seen={val}"]
    sizes = ["--scenes", "3", "--keyframes", "4", "--threads", "1"]
    found = towns.main([*options, *sizes, "--metrics", "NDS", "mAVE", "OLS"])
    recipe = {"num_scenes": 3, "keyframes_per_scene": 4, "workers": 1, "split": "val", "seed": 8, "streets": "towns"}
    assert made == [("unseen_val_8_towns", recipe)]
    assert found[TINY] == {"seen": score("x"), "unseen": score("towns")}
    table = (tmp_path / "towns.md").read_text()
    assert f"| {TINY} | seen | unseen (difference) |" in table and "| NDS | 0.5000 | 0.4000 (-0.1000) |" in table
    assert "OLS" not in table and "Less is better of: mAVE." in table
    monkeypatch.setattr(towns.Runs, "score", None)  # all is there
    assert towns.main([*options, *sizes]) == found
    with pytest.raises(SystemExit):
        towns.main(["--out", str(tmp_path), "--sets", f"seen={val}"])
    for name, options in (("seen", ["--sets", "seen=a", "seen=b"]), ("x", ["--weights", "1/x.pth", "2/x.pth"])):
        with pytest.raises(ConfigError, match=f"{name} is .* already; give it another name"):
            towns.main(["--out", str(tmp_path), *options])
    weights = tmp_path / "w.pth"
    monkeypatch.setattr(towns.Runs, "score", lambda *_: calls.append(1) or score("x"))
    calls: list[int] = []
    for content in ("a", "a", "other"):  # a file that has changed is scored anew
        if not weights.is_file() or weights.read_text() != content:
            weights.write_text(content)
        towns.main([*options_of_sets, *sizes, "--weights", str(weights)])
    assert len(calls) == 4


def score(root: str) -> dict[str, float | None]:
    return {"NDS": 0.4 if "towns" in root else 0.5, "mAVE": 0.6, "OLS": None}
