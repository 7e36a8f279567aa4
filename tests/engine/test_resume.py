"""A resumed run is the run that its config states, or says what differs; stopping anywhere changes no bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.optim import CosineAnnealingLR, LinearLR, MultiStepLR, PolyLR
from torch import nn

from drivestack.core.errors import CheckpointError, ConfigError
from drivestack.engine.checkpoints import last_good_checkpoint, latest_checkpoint, read_checkpoint
from drivestack.engine.config import load_config, override
from drivestack.engine.resume import other_changes, plain_settings
from drivestack.engine.train import train


def rates(work_dir: Path) -> dict[int, float]:
    records = [json.loads(line) for line in (work_dir / "log.jsonl").read_text().splitlines()]
    return {record["iter"]: record["lr"] for record in records if "lr" in record}


def changed(config: Any, **changes: Any) -> Any:
    for key, value in changes.items():
        override(config, key.replace("__", "."), value)
    config.log_interval = 1
    return config


def assert_same_weights(a: Path, b: Path) -> None:
    one, two = read_checkpoint(a), read_checkpoint(b)
    for part in ("state_dict", "ema_state_dict"):
        for name, value in one[part].items():
            assert torch.equal(value, two[part][name]), (part, name)


# ------------------------------------------------------------------------------------------------- rates and schedules

SCHEDULES = {
    "another rate": dict(optim_wrapper__optimizer__lr=1e-4),
    "a milestone moved": dict(param_scheduler=[dict(type=MultiStepLR, milestones=[9], gamma=0.1)]),
    "another end": dict(
        param_scheduler=[
            dict(type=LinearLR, start_factor=0.1, end=5),
            dict(type=CosineAnnealingLR, begin=5, T_max=7, end=12),
        ]
    ),
    "none at all": dict(param_scheduler=None, optim_wrapper__optimizer__lr=3e-3),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_new_rates_and_schedules_act_as_if_they_had_been_there_from_the_start(
    toy: Any, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    change = SCHEDULES[name]
    train(changed(toy.toy_config(12), **change), tmp_path / "whole")
    train(changed(toy.toy_config(6)), tmp_path / "parts")
    with caplog.at_level("INFO", logger="drivestack"):
        train(changed(toy.toy_config(12), **change), tmp_path / "parts", resume=True)
    whole, parts = rates(tmp_path / "whole"), rates(tmp_path / "parts")
    assert [parts[i] for i in range(7, 13)] == [whole[i] for i in range(7, 13)]
    assert "from iteration 6 on: the config's value is used" in caplog.text
    if "rate" in name:
        assert "learning rate 0.01 -> 0.0001 from iteration 6 on" in caplog.text
    # and once more, unchanged: the state goes on by itself
    train(changed(toy.toy_config(14), **change), tmp_path / "parts", resume=True)
    train(changed(toy.toy_config(14), **change), tmp_path / "whole", resume=True)
    assert rates(tmp_path / "parts")[14] == rates(tmp_path / "whole")[14]


def test_a_schedule_without_end_ends_with_the_longer_run(toy: Any, tmp_path: Path) -> None:
    schedule = dict(param_scheduler=[dict(type=PolyLR, power=1.0)])
    train(changed(toy.toy_config(12), **schedule), tmp_path / "whole")
    for iterations in (6, 12):
        train(changed(toy.toy_config(iterations), **schedule), tmp_path / "parts", resume=iterations > 6)
    whole, parts = rates(tmp_path / "whole"), rates(tmp_path / "parts")
    assert [parts[i] for i in range(7, 13)] == [whole[i] for i in range(7, 13)]


def test_an_unchanged_config_says_nothing_and_changes_nothing(
    toy: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = train(toy.toy_config(12), tmp_path / "whole")
    train(toy.toy_config(12), tmp_path / "parts", max_minutes=0)
    with caplog.at_level("INFO", logger="drivestack"):
        parts = train(toy.toy_config(12), tmp_path / "parts", resume=True)
    assert_same_weights(whole, parts)
    assert "->" not in caplog.text


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("train_cfg.max_iters", 8, "train_cfg.max_iters 4 -> 8"),
        ("log_interval", 2, "log_interval 5 -> 2"),
        ("model.dropout", 0.5, "model.dropout not set -> 0.5"),
        ("train_dataloader.num_workers", 1, "train_dataloader.num_workers 0 -> 1"),
        ("train_dataloader.dataset.noise", 0.3, "train_dataloader.dataset.noise 0.1 -> 0.3"),
        ("optim_wrapper.optimizer.weight_decay", 0.0, "optim_wrapper.optimizer.weight_decay 0.01 -> 0.0"),
        ("optim_wrapper.optimizer.betas", (0.8, 0.99), r"optim_wrapper.optimizer.betas not set -> [0.8, 0.99]"),
        ("optim_wrapper.precision", "bf16", "optim_wrapper.precision fp32 -> bf16"),
        ("optim_wrapper.precision", "fp16", "optim_wrapper.precision fp32 -> fp16"),
        ("ema.momentum", 0.3, "ema.momentum 0.1 -> 0.3"),
        ("ema", None, "ema.momentum 0.1 -> not set"),
    ],
)
def test_changes_that_make_sense_act_and_are_said(
    toy: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, key: str, value: Any, line: str
) -> None:
    train(toy.toy_config(4), tmp_path)
    config = toy.toy_config(8 if "max_iters" in key else 4)
    override(config, key, value)
    config.train_cfg.max_iters = 8
    with caplog.at_level("INFO", logger="drivestack"):
        path = train(config, tmp_path, resume=True)
    assert f"{line} from iteration 4 on: the config's value is used" in caplog.text
    group = read_checkpoint(path)["optimizer"]["param_groups"][0]
    if "optimizer" in key:
        assert group[key.split(".")[-1]] == value
    assert ("ema_state_dict" in read_checkpoint(path)) == (key != "ema")


def test_without_averaging_the_raw_weights_go_on(toy: Any, tmp_path: Path) -> None:
    averaged, plain = toy.toy_config(4), toy.toy_config(8)
    plain.ema = None
    train(averaged, tmp_path / "a")
    one = read_checkpoint(train(plain, tmp_path / "a", resume=True))
    two = read_checkpoint(train(plain, tmp_path / "b"))
    assert all(torch.equal(value, two["state_dict"][name]) for name, value in one["state_dict"].items())


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("seed", 4, "seed 3, this run has seed 4"),
        ("train_dataloader.batch_size", 8, r"1 processes x batch size 4 .* = 4 .*batch size 8 .* = 8"),
        ("optim_wrapper.accumulative_counts", 2, r"x 1 accumulated .*x 2 accumulated"),
        ("optim_wrapper.optimizer.type", torch.optim.SGD, "optimizer.type 'AdamW', this run has .* 'SGD'"),
        ("optim_wrapper.optimizer.amsgrad", True, "optimizer.amsgrad 'not set', this run has .*True"),
        ("train_dataloader.sampler.run_length", 2, "sampler.run_length"),
        (
            "optim_wrapper.paramwise_cfg",
            dict(norm_decay_mult=0.0),
            "4 parameters in 1 groups .* in 4 groups",
        ),
    ],
)
def test_changes_that_make_another_run_are_refused_with_both_values(
    toy: Any, tmp_path: Path, key: str, value: Any, words: str
) -> None:
    train(toy.toy_config(4), tmp_path)
    before = (tmp_path / "config.py").read_text()
    config = toy.toy_config(8)
    override(config, key, value)
    with pytest.raises(CheckpointError, match=rf"iter_4\.pth: trained with .*{words}.*--load-from"):
        train(config, tmp_path, resume=True)
    assert (tmp_path / "config.py").read_text() == before  # it still states the run that was


def test_another_data_set_is_refused(toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(toy.toy_config(4), tmp_path)
    scenes = toy.ToyDataset.scene_tokens
    monkeypatch.setattr(toy.ToyDataset, "scene_tokens", scenes[::-1])
    with pytest.raises(CheckpointError, match="other samples or scenes in the training set"):
        train(toy.toy_config(8), tmp_path, resume=True)
    monkeypatch.setattr(toy.ToyDataset, "scene_tokens", scenes[:30])
    monkeypatch.setattr(toy.ToyDataset, "__len__", lambda self: 30)
    with pytest.raises(CheckpointError, match=r"so many samples: 40, .* 30"):
        train(toy.toy_config(8), tmp_path, resume=True)


def test_checkpoints_without_settings_resume_with_a_line(
    toy: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = train(toy.toy_config(12), tmp_path / "whole")
    path = train(toy.toy_config(6), tmp_path / "parts")
    checkpoint = read_checkpoint(path)
    del checkpoint["meta"]["settings"]
    torch.save(checkpoint, path)
    with caplog.at_level("INFO", logger="drivestack"):
        parts = train(toy.toy_config(12), tmp_path / "parts", resume=True)
    assert_same_weights(whole, parts)
    assert "holds no settings to compare" in caplog.text


# -------------------------------------------------------------------------------------------------------- accumulation


@pytest.mark.parametrize("how", ["max_iters", "max_minutes", "checkpoint"])
def test_accumulated_gradients_survive_a_stop(toy: Any, tmp_path: Path, how: str) -> None:
    def config(max_iters: int) -> Any:
        found = toy.toy_config(max_iters)
        found.optim_wrapper.accumulative_counts = 4
        found.checkpoint.interval = 6
        return found

    whole = train(config(16), tmp_path / "whole")
    assert [path.name for path in sorted((tmp_path / "whole").glob("*.pth"))] == ["iter_12.pth", "iter_16.pth"]
    if how == "max_iters":
        assert train(config(6), tmp_path / "parts").name == "iter_4.pth"
    elif how == "max_minutes":
        assert train(config(16), tmp_path / "parts", max_minutes=0).name == "iter_4.pth"
    else:  # as a kill after the first checkpoint
        train(config(10), tmp_path / "parts")
    assert_same_weights(whole, train(config(16), tmp_path / "parts", resume=True))


def test_less_than_one_step_is_refused(toy: Any, tmp_path: Path) -> None:
    config = toy.toy_config(3)
    config.optim_wrapper.accumulative_counts = 4
    with pytest.raises(ConfigError, match=r"max_iters: 3 iterations .*accumulative_counts=4"):
        train(config, tmp_path)


# ------------------------------------------------------------------------------------------------ processes and signals


def run_program(program: Path, *arguments: object, processes: int = 1) -> None:
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*launch, str(program), *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def steps(work_dir: Path, per_step: int) -> list[set[str]]:
    """Samples of each step of the optimiser, over all ranks."""
    ranks = [path.read_text().split() for path in sorted(work_dir.glob("samples?.txt"))]
    first = ranks[0][: len(ranks[0]) - len(ranks[1])] if len(ranks) > 1 else ranks[0]  # of rank 0 alone
    groups = [set(first[i : i + per_step]) for i in range(0, len(first), per_step)]
    if len(ranks) > 1:
        mine, other, share = ranks[0][len(first) :], ranks[1], per_step // 2
        groups += [set(mine[i : i + share]) | set(other[i : i + share]) for i in range(0, len(mine), share)]
    return groups


def test_more_and_fewer_processes_go_on_over_the_same_samples(toy: Any, toy_program: Path, tmp_path: Path) -> None:
    def flat(max_iters: int, batch_size: int, window: int = 1) -> Any:
        config = toy.toy_config(max_iters, batch_size=batch_size, dropout=0.0)
        config.param_scheduler = None
        config.optim_wrapper.accumulative_counts = window
        config.custom_hooks.append(dict(type=toy.RecordSamples))
        return config

    one, two, back = tmp_path / "one", tmp_path / "two", tmp_path / "back"
    whole = train(flat(12, 4), one)
    train(flat(6, 4), two)
    options = ["--resume", "--flat", "--dropout", "0", "--batch-size", "2"]
    run_program(toy_program, two, 12, *options, "--also", back, 6, processes=2)
    assert steps(two, 4) == steps(one, 4)
    assert read_checkpoint(back / "iter_6.pth")["meta"]["settings"]["world_size"] == 2
    with pytest.raises(CheckpointError, match=r"2 processes x batch size 2 .* = 4 .*1 processes x batch size 2 .* = 2"):
        train(flat(12, 2), back, resume=True)
    alone = train(flat(24, 2, window=2), back, resume=True)  # twice the iterations, each half a step
    assert alone.name == "iter_24.pth"
    for path in (two / "iter_12.pth", alone):
        found = read_checkpoint(path)
        for name, value in read_checkpoint(whole)["state_dict"].items():
            torch.testing.assert_close(found["state_dict"][name], value, rtol=1e-4, atol=1e-6)


def test_sigterm_saves_ends_the_workers_and_loses_nothing(toy: Any, toy_program: Path, tmp_path: Path) -> None:
    whole = train(toy.toy_config(12), tmp_path / "whole")
    work_dir = tmp_path / "parts"
    command = [sys.executable, str(toy_program), str(work_dir), "12", "--sleep", "0.3", "--workers", "2"]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True)
    while not (work_dir / "iter_5.pth").exists() and process.poll() is None:
        time.sleep(0.02)
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    pids = [int(pid) for pid in children.stdout.split()]
    time.sleep(0.4)
    process.send_signal(signal.SIGTERM)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 143 and "Traceback" not in text, text
    assert len(pids) >= 2 and not any(Path(f"/proc/{pid}").exists() for pid in pids)
    last = latest_checkpoint(work_dir)
    assert last is not None and 5 < int(last.stem.removeprefix("iter_")) < 12
    assert_same_weights(whole, train(toy.toy_config(12), work_dir, resume=True))


# ---------------------------------------------------------------------------------------------------- damaged files


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    toy: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = train(toy.toy_config(12), tmp_path / "whole")
    path = train(toy.toy_config(10), tmp_path / "parts")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with caplog.at_level("INFO", logger="drivestack"):
        parts = train(toy.toy_config(12), tmp_path / "parts", resume=True)
    assert_same_weights(whole, parts)
    assert "iter_10.pth: broken" in caplog.text and "going on from iter_5.pth" in caplog.text
    for saved in (tmp_path / "parts").glob("iter_*.pth"):
        saved.write_bytes(b"")
    with pytest.raises(CheckpointError, match="no other checkpoint is left"):
        train(toy.toy_config(12), tmp_path / "parts", resume=True)


@pytest.mark.parametrize("text", ["../../elsewhere.pth", "", "iter_99.pth", "\x00"])
def test_last_checkpoint_may_name_nonsense(toy: Any, tmp_path: Path, text: str) -> None:
    train(toy.toy_config(4), tmp_path)
    (tmp_path / "last_checkpoint").write_text(text)
    found = last_good_checkpoint(tmp_path)
    assert found is not None and found[0] == tmp_path / "iter_4.pth"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("meta", 5),
        ("meta", {"iter": "many", "seed": 3, "world_size": 1}),
        ("optimizer", []),
        ("optimizer", {"state": {}, "param_groups": 7, "loss_scaler": {}}),
        ("param_schedulers", {"a": 1}),
        ("param_schedulers", []),
        ("ema_state_dict", 3),
    ],
)
def test_a_checkpoint_of_other_content_is_named(toy: Any, tmp_path: Path, key: str, value: Any) -> None:
    path = train(toy.toy_config(4), tmp_path / "first")
    checkpoint = read_checkpoint(path)
    checkpoint[key] = value
    torch.save(checkpoint, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth"):
        train(toy.toy_config(8), tmp_path / "second", resume=tmp_path / "other.pth")


def test_the_written_config_resumes(toy: Any, tmp_path: Path) -> None:
    train(toy.toy_config(4), tmp_path)
    config = load_config(tmp_path / "config.py", ["train_cfg.max_iters=6"])
    assert train(config, tmp_path, resume=True).name == "iter_6.pth"


def test_settings_of_any_kind_are_plain_values() -> None:
    values = dict(a=Path("/x/y"), b=np.float32(0.5), c=torch.tensor(3), d=np.arange(2), e=(1, None), f=nn.Linear)
    plain = dict(a="/x/y", b=0.5, c=3, d=[0, 1], e=[1, None])
    assert {k: v for k, v in plain_settings(values).items() if k != "f"} == plain


def test_a_config_of_something_else_in_the_folder_is_no_reason_to_fail() -> None:
    assert other_changes({"train_dataloader": 0.1, "log_interval": 5}, {"log_interval": 4}, 3)
