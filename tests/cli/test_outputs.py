"""Where a verb writes is checked before it works, and held against a second run."""

from __future__ import annotations

from pathlib import Path

import pytest

from drivestack.cli.main import main
from drivestack.core.folders import file_lock, folder_lock

PLACES = {
    "predict a file": (["predict", "CONFIG", "WEIGHTS", "SOURCE", "--out", "file/x.json"], "file is a file"),
    "predict a folder": (["predict", "CONFIG", "WEIGHTS", "SOURCE", "--out", "file"], "file: is a file"),
    "predict no folder": (["predict", "CONFIG", "WEIGHTS", "SOURCE", "--out", "link/x"], "link is a link to nothing"),
    "predict a long name": (["predict", "CONFIG", "WEIGHTS", "SOURCE", "--out", "n" * 300 + ".json"], "longer than"),
    "predict two lines": (["predict", "CONFIG", "WEIGHTS", "SOURCE", "--out", "a\nb.json"], "control characters"),
    "predict over a folder": (["predict", "CONFIG", "WEIGHTS", "SOURCE", "--out", "taken"], "is a folder; name a file"),
    "evaluate": (["evaluate", "CONFIG", "WEIGHTS", "SOURCE", "--out", "file/scores"], "file is a file"),
    "evaluate over a folder": (["evaluate", "CONFIG", "WEIGHTS", "SOURCE", "--out", "taken"], "is a folder"),
    "score": (["score", "SUBMISSION", "SOURCE", "--out", "file"], "file: is a file; name a folder"),
    "visualize": (["visualize", "SOURCE", "--out", "file/pictures"], "file is a file"),
    "visualize a clip": (["visualize", "SOURCE", "--out", "p", "--clip", "file/c.gif"], "file is a file"),
    "visualize another clip": (["visualize", "SOURCE", "--out", "p", "--clip", "c.avi"], "name it .gif or .mp4"),
    "export": (["export-weights", "nowhere.pth", "file/x.safetensors"], "file is a file"),
    "synthesize": (["synthesize", "file"], "file: is a file; name a folder"),
    "synthesize below a file": (["synthesize", "file/set"], "file is a file"),
    "synthesize here": (["synthesize", ".."], "give the new folder a name of its own"),
    "demo": (["demo", "--out", "file/demo"], "file is a file"),
    "demo over a folder": (["demo", "--out", "taken"], "is a folder; name a file"),
    "demo with another device": (["demo", "--device", "tpu"], "unknown device 'tpu'"),
    "demo with another perturbation": (["demo", "--perturb-calibration", "foo"], "foo"),
    "demo with other weights": (["demo", "--weights", "nowhere.safetensors"], "nowhere.safetensors"),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a file, a link to nothing, and a folder with folders where files should go."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("kept")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("submission.json", "metrics.json", "boxes_scores.json"):
        (tmp_path / "taken" / name).mkdir(parents=True)
    return tmp_path


def never(*_: object, **__: object) -> None:
    raise AssertionError("the work has begun")


@pytest.mark.parametrize("name", PLACES)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    name: str, here: Path, config: Path, weights: Path, submission: Path, root: Path, source, capsys, monkeypatch
) -> None:
    for work in (
        "drivestack.engine.predict.predict",
        "drivestack.view.picture.render_answers",
        "drivestack.data_tools.synthetic.files.generate._run",
        "drivestack.tasks.boxes.Boxes.score",
    ):
        monkeypatch.setattr(work, never)
    before = sorted(here.rglob("*"))
    arguments, words = PLACES[name]
    names = {
        "CONFIG": [str(config)],
        "WEIGHTS": [str(weights)],
        "SOURCE": source(root),
        "SUBMISSION": [str(submission)],
    }
    assert main([part for argument in arguments for part in names.get(argument, [argument])]) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith("error: ")
    assert words in line
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("verb", ["predict a file", "predict a folder", "evaluate", "demo", "synthesize"])
def test_a_place_where_another_run_writes_is_refused(
    verb: str, config: Path, weights: Path, root: Path, source, capsys, tmp_path: Path
) -> None:
    model = [str(config), str(weights), *source(root)]
    out = tmp_path / ("x.json" if verb == "predict a file" else "x")
    arguments = {"demo": ["demo"], "synthesize": ["synthesize", str(out)], "evaluate": ["evaluate", *model]}
    lock = file_lock if verb in ("predict a file", "synthesize") else folder_lock
    command = arguments.get(verb, ["predict", *model]) + ["--out", str(out)] * (verb != "synthesize")
    with lock(out, "the other job"):
        assert main(command) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith(f"error: {out}: process ")
        assert "(the other job) is writing here; wait for it, or choose another place" in line
    assert list(tmp_path.iterdir()) == []


def test_nothing_hidden_is_left_beside_what_was_written(
    config: Path, weights: Path, root: Path, source, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".submission.drivestack-tmp.json").write_text("of a killed run")
    assert main(["evaluate", str(config), str(weights), *source(root), "--out", str(out)]) == 0
    assert not [path for path in tmp_path.rglob(".*")]
