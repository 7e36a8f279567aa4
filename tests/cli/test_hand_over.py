"""From mono-3D pretraining to a BEV model by the commands of the docs, on a set of two scenes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from drivestack.backbone import read_state_dict
from drivestack.cli.main import main
from drivestack.core.weights.lineage import lineage_of


def test_pretrain_hand_over_train(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def train(config: str, folder: str, *options: str) -> str:
        source = "train_dataloader.dataset.source"
        settings = [f"{source}.root={root}", f"{source}.split=val", f"test_dataset.source.root={root}"]
        settings += ["param_scheduler=None", "train_cfg.max_iters=2"]
        changes = [part for setting in settings for part in ("--set", setting)]
        assert main(["train", config, "--work-dir", str(tmp_path / folder), *changes, *options]) == 0
        return capsys.readouterr().err

    scored = train("mono3d_tiny_synthetic", "mono", "--set", "validation.interval=2")
    assert "validation at iter 2  mAP" in scored and "have seen" not in scored
    best, out = tmp_path / "mono" / "best.pth", tmp_path / "mono.safetensors"
    assert main(["hand-over", str(best), "perception_tiny_synthetic", "--out", str(out), "--note", "who=us"]) == 0
    report = capsys.readouterr().out
    assert "taken: img_backbone (225 tensors), img_neck (12 tensors)" in report
    assert "left over: fcos3d_bbox_head" in report and "new in the model: pts_bbox_head" in report
    assert "trained on (1): mono3d_tiny_synthetic; " in report and "split val; 2 scenes" in report
    assert f"--fine-tune {out}" in report

    messages = train("perception_tiny_synthetic", "bev", "--fine-tune", str(out))
    assert "mono3d_tiny_synthetic trained on 2 of the 2 scenes of split val" in messages
    assert "started anew" in messages
    stages = lineage_of(tmp_path / "bev" / "iter_2.pth")
    assert [stage.recipe for stage in stages] == ["mono3d_tiny_synthetic", "perception_tiny_synthetic"]
    assert stages[0].notes == {"who": "us"} and "drivestack" in stages[1].command
    handed, pretrained = read_state_dict(out), read_state_dict(best)
    assert all(torch.equal(value, pretrained[key]) for key, value in handed.items())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.pth", "perception_tiny_synthetic", "--out", "x.safetensors"], "nowhere.pth: no such checkpoint"),
        (["WEIGHTS", "perception_tiny_synthetic", "--out", "x.pth"], r"x.pth: the name must end in \.safetensors"),
        (["WEIGHTS", "nothing", "--out", "x.safetensors"], "nothing: no such config"),
        (["WEIGHTS", "perception_tiny_synthetic", "--out", "x.safetensors", "--note", "a"], "--note 'a'"),
        (["WEIGHTS", "bevformerv2_internimage_t_t1", "--out", "x.safetensors"], r"channels 32.*InternImage-T"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = "bevformerv2_tiny_synthetic"
    assert main(["hand-over", *(weights if part == "WEIGHTS" else part for part in arguments)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and re.search(words, error), error
    assert not list(tmp_path.iterdir())
