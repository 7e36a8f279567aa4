"""The command line: help, exit codes, one-line errors, and the verbs on a tiny synthetic set.

The model here is an oracle that repeats the labels, so the whole way from files to official scores must give 1. Verbs
for voxels and lanes: test_answers.py.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from drivestack.cli.main import build_parser, main
from drivestack.core.answers import Detections, SceneAnswer
from drivestack.core.registries import MODELS

VERBS = ["demo", "synthesize", "train", "evaluate", "predict", "score", "check-submission", "ensemble", "track"]
VERBS += ["check-data", "check-splits", "make-splits", "visualize"]
VERBS += ["features", "throughput", "export-weights", "hand-over", "doctor"]


# ------------------------------------------------------------------------------------------------------------ help


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_has_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([verb, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "examples:" in text
    assert f"drivestack {verb}" in text.split("examples:")[1]


def test_the_verbs_tested_are_all_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    (verbs,) = (action for action in build_parser()._actions if action.metavar == "VERB")
    assert list(verbs.choices) == VERBS


def test_no_verb_and_unknown_verb_stop_with_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["fly"]):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2


# ----------------------------------------------------------------------------------------------------------- verbs


def test_evaluate_scores_the_oracle_with_one(
    config: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(config), str(weights), "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "NDS" in text
    assert "mAVE" in text
    scores = json.loads((tmp_path / "metrics_summary.json").read_text())
    present = [name for name, count in scores["num_ground_truths"].items() if count]
    assert len(present) >= 3
    for name in present:
        assert scores["ap"][name] == pytest.approx(1, abs=1e-6), name
        errors = scores["tp_errors_per_class"][name]
        assert max(errors[key] for key in ("mATE", "mASE") if errors[key] is not None) < 0.01


def test_check_and_score_of_the_predicted_submission(
    submission: Path, root: Path, capsys: pytest.CaptureFixture[str], source
) -> None:
    assert main(["check-submission", str(submission), *source(root)]) == 0
    assert "is valid; all 4 samples are there" in capsys.readouterr().out
    assert main(["score", str(submission), *source(root)]) == 0
    assert "mAP" in capsys.readouterr().out


def test_the_official_score_is_ours(submission: Path, root: Path, capsys: pytest.CaptureFixture[str], source) -> None:
    pytest.importorskip("nuscenes", reason="nuscenes-devkit, the oracle, is not installed")
    printed = []
    for options in ([], ["--official"]):
        assert main(["score", str(submission), *source(root), *options]) == 0
        printed.append(capsys.readouterr().out)
    assert "NDS" in printed[0] and sorted(printed[0].splitlines()) == sorted(printed[1].splitlines())


def test_predict_works_without_labels(
    root: Path, config: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source
) -> None:
    unlabelled = tmp_path / "unlabelled"
    shutil.copytree(root, unlabelled)
    for table in ("sample_annotation", "instance"):
        (unlabelled / "v1.0-trainval" / f"{table}.json").write_text("[]")

    def nothing(self, batch, memory=None, tasks=None):
        empty = np.zeros((0, 9), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)
        return [SceneAnswer(token, Detections(token, *empty)) for token in batch.tokens], memory

    monkeypatch.setattr(MODELS.get("OracleForTests"), "predict", nothing)
    out = tmp_path / "submission.json"
    assert main(["predict", str(config), str(weights), *source(unlabelled), "--out", str(out)]) == 0
    assert main(["check-submission", str(out), *source(unlabelled)]) == 0


def test_visualize_draws_pictures_and_a_clip(submission: Path, root: Path, tmp_path: Path, source) -> None:
    arguments = [*source(root), "--submission", str(submission), "--out", str(tmp_path / "p")]
    assert main(["visualize", *arguments, "--max", "2", "--clip", str(tmp_path / "clip.gif")]) == 0
    assert len(list((tmp_path / "p").glob("*.png"))) == 2
    assert (tmp_path / "clip.gif").stat().st_size > 1000


def test_visualize_refuses_a_clip_of_another_kind_before_it_draws(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], source
) -> None:
    out = tmp_path / "p"
    line = fails(["visualize", *source(root), "--out", str(out), "--clip", str(tmp_path / "clip.avi")], capsys)
    assert "clip.avi: name it .gif or .mp4" in line
    assert not out.exists()


# ---------------------------------------------------------------------------------------------------------- errors


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    """The one line of error that the arguments give."""
    capsys.readouterr()
    assert main(arguments) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_wrong_root(tmp_path: Path, capsys: pytest.CaptureFixture[str], source) -> None:
    line = fails(["visualize", *source(tmp_path / "nowhere"), "--out", str(tmp_path / "p")], capsys)
    assert "nowhere" in line
    assert not (tmp_path / "p").exists()


def test_missing_table(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], source) -> None:
    shutil.copytree(root, tmp_path / "data")
    (tmp_path / "data" / "v1.0-trainval" / "ego_pose.json").unlink()
    assert "ego_pose.json" in fails(["visualize", *source(tmp_path / "data")], capsys)


def test_truncated_image(
    root: Path, config: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], source
) -> None:
    shutil.copytree(root, tmp_path / "data")
    image = sorted((tmp_path / "data" / "samples" / "CAM_BACK").iterdir())[1]
    image.write_bytes(image.read_bytes()[:-40])
    out = tmp_path / "submission.json"
    for arguments in (
        ["predict", str(config), str(weights), *source(tmp_path / "data"), "--out", str(out)],
        ["visualize", *source(tmp_path / "data"), "--out", str(tmp_path / "p")],
    ):
        line = fails(arguments, capsys)
        assert "camera CAM_BACK" in line
        assert image.name in line
    assert not out.exists()


def test_checkpoint_of_another_config(root: Path, config: Path, tmp_path: Path, capsys) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3), "head": torch.zeros(1)}, other)
    line = fails(["predict", str(config), str(other), "--out", str(tmp_path / "s.json")], capsys)
    assert "other.safetensors" in line
    assert "head" in line
    assert not (tmp_path / "s.json").exists()
    assert "no such checkpoint" in fails(["predict", str(config), str(tmp_path / "none.pth")], capsys)


def test_submission_with_a_missing_sample(
    submission: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], source
) -> None:
    content = json.loads(submission.read_text())
    token, _ = content["results"].popitem()
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps(content))
    fails(["check-submission", str(broken), *source(root)], capsys, code=1)
    line = fails(["score", str(broken), *source(root), "--out", str(tmp_path / "scores")], capsys)
    assert f"sample {token}: is missing from the results" in line
    assert not (tmp_path / "scores").exists()


def test_check_lists_the_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"meta": {}, "results": {"a": 1, "b": 2}}))
    assert main(["check-submission", str(path), "--limit", "3"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[-1] == "... and 4 more (--limit shows more)"


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["train", "no_such_config"], "no_such_config"),
        (["evaluate", "CONFIG", "WEIGHTS", "--set", "model.x.y=1"], "model.x.y"),
        (["evaluate", "CONFIG", "WEIGHTS", "--version", "v1.0-mini"], "--dataroot"),
        (["evaluate", "CONFIG", "WEIGHTS", "--split", "mini_val"], "'mini_val'"),
        (["predict", "CONFIG", "WEIGHTS", "--device", "abacus"], "'abacus'"),
        (["predict", "CONFIG", "WEIGHTS", "--device", "cuda:99"], "'cuda:99'"),
        (["predict", "CONFIG", "WEIGHTS", "--dataroot", "ROOT"], "--version"),
        (["predict", "CONFIG", "WEIGHTS", "--perturb-calibration", "mix"], "'mix'"),
        (["visualize", "--dataroot", "ROOT", "--version", "v1.0-trainval", "--split", "val", "--scene", "x"], "'x'"),
        (["visualize", "--dataroot", "ROOT", "--version", "v1.0-trainval", "--split", "val", "--sample", "y"], "'y'"),
        (["check-submission", "nowhere.json"], "nowhere.json"),
        (["predict", "CONFIG", "WEIGHTS", "--set", "model.type=Oracel"], "type='Oracel'"),
        (["predict", "CONFIG", "WEIGHTS", "--set", "model.wings=2"], "'wings'"),
        (["export-weights", "a.pth", "b.safetensors", "--note", "seed"], "'seed'"),
        (["export-weights", "a.pth", "b.pth"], "b.pth"),
        (["synthesize", "ROOT", "--seed", "99"], "another synthetic dataset"),
        (["demo", "--weights", "nowhere.safetensors", "--config", "CONFIG"], "nowhere.safetensors"),
    ],
)
def test_user_errors_take_one_line(
    arguments: list[str], fragment: str, root: Path, config: Path, weights: Path, capsys, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"CONFIG": str(config), "WEIGHTS": str(weights), "ROOT": str(root)}
    assert fragment in fails([names.get(a, a) for a in arguments], capsys)
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback_before_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-submission", str(tmp_path / "nowhere.json"), "--debug"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1].startswith(f"error: cannot read submission {tmp_path / 'nowhere.json'}")


def test_a_full_disk_is_an_error_not_a_traceback(submission: Path, root: Path, tmp_path: Path, capsys, source) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder must be")
    line = fails(["score", str(submission), *source(root), "--out", str(blocked / "scores")], capsys)
    assert "blocked" in line


def interrupt(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("arguments", "place", "advice"),
    [
        (["predict", "CONFIG", "WEIGHTS", "--out", "s.json"], "json.dump", "starts again"),
        (["train", "CONFIG"], "drivestack.engine.train.train", "--resume"),
        (["synthesize", "new"], "drivestack.data_tools.synthetic.synthesize", "goes on"),
    ],
)
def test_ctrl_c_says_how_to_go_on_and_leaves_nothing_half_written(
    arguments: list[str], place: str, advice: str, config: Path, weights: Path, capsys, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(place, interrupt)
    names = {"CONFIG": str(config), "WEIGHTS": str(weights)}
    assert main([names.get(a, a) for a in arguments]) == 130
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("interrupted; ")
    assert advice in line
    assert list(tmp_path.iterdir()) == []
