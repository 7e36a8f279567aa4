"""The verb `train`: its examples run as written, its options are checked before anything is imported or read."""

from __future__ import annotations

from pathlib import Path

import pytest

from drivestack.cli.main import main
from drivestack.cli.outputs import run_folder
from drivestack.engine.config import load_config


def test_the_first_examples_write_what_the_config_reads(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    lines = [line.strip() for line in capsys.readouterr().out.split("examples:")[1].splitlines() if line.strip()]
    config = load_config("bevformerv2_tiny_synthetic")
    assert lines[:2] == [config.data_command, "drivestack train bevformerv2_tiny_synthetic"]
    numbers = config.data_command.partition(";")[0].removeprefix("for n in ").split()
    assert "synthesize data/train$n " in config.data_command
    assert [f"data/train{n}" for n in numbers] == config.train_dataloader.dataset.source.root


def test_a_missing_data_root_is_answered_with_the_command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "bevformerv2_tiny_synthetic"]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: data/train100: no such folder; write it with `for n in 100 101 102; do drivestack")
    assert "--set train_dataloader.dataset.source.root" in error and "\n" not in error


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--seed", "-3"], "--seed: must be from 0"),
        (["--max-minutes", "-1"], "--max-minutes: must be a number above 0"),
        (["--max-minutes", "nan"], "--max-minutes: must be a number above 0"),
        (["--load-from", "a", "--fine-tune", "b"], "not allowed with"),
    ],
)
def test_nonsense_options_are_refused_by_the_parser(
    capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["train", "bevformerv2_tiny_synthetic", *options])
    assert left.value.code == 2 and words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("max_iters=0", "train_cfg.max_iters: must be a whole number from 1 on, got 0"),
        ("test_batch_size=2", "test_batch_size: the config has no test_batch_size"),
    ],
)
def test_settings_that_do_nothing_or_nonsense_are_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, change: str, words: str
) -> None:
    assert main(["train", "bevformerv2_tiny_synthetic", "--work-dir", str(tmp_path), "--set", change]) == 2
    assert words in capsys.readouterr().err


def test_runs_of_two_work_folders_do_not_share_a_folder() -> None:
    assert run_folder("perception_tiny_drive") == run_folder("mine/perception_tiny_drive.py")
    assert run_folder("perception_tiny_drive") == Path("runs/perception_tiny_drive")
    assert run_folder("runs/mine/config.py") == Path("runs/mine") != run_folder("runs/yours/config.py")
