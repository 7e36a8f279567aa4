"""What fails beside our own code (samples, workers, models, hooks, disks) is one line that says what to do."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook
from torch import Tensor

from drivestack.core.errors import ConfigError, DataError, ModelError, OutputError, TrainingError
from drivestack.core.folders import folder_lock
from drivestack.engine.checkpoints import latest_checkpoint, read_checkpoint
from drivestack.engine.failures import computing, reading
from drivestack.engine.train import train
from support.toy_training import ToyDataset, ToyModel


class Spoilt(ToyDataset):
    """Fails at the tenth draw, in the manner named by ``how``."""

    tokens = tuple(f"token{i}" for i in range(40))

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, Tensor, str]:
        if item[1] == 10:
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            missing = FileNotFoundError(2, "no such file", "a.jpg")
            raise {"key": KeyError("camera"), "file": missing, "torch": RuntimeError("x")}[self.how]
        return super().__getitem__(item)


class Failing(ToyModel):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, batch: Any, mode: str = "loss") -> dict[str, Tensor]:
        if self.kind == "shape":
            torch.zeros(2, 3) @ torch.zeros(2, 3)
        if self.kind == "memory":
            torch.zeros(2**50)
        if self.kind == "none":
            None + 1  # noqa: B018
        return super().forward(batch, mode)


class Masked(ToyModel):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.full((3, 3), float("-inf")).triu(1))


class Breaks(Hook):
    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        raise AttributeError("no such thing")


class Poison(Hook):
    """Weights become infinite although losses and gradients are finite."""

    priority = "HIGHEST"

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if runner.iter == 6:
            runner.bare_model.net[3].bias.data[0] = float("inf")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("how", "words"), [("key", "KeyError"), ("file", r"FileNotFoundError.*a\.jpg"), ("torch", "x")]
)
def test_a_sample_that_cannot_be_read_is_named(toy: Any, tmp_path: Path, how: str, words: str, workers: int) -> None:
    config = toy.toy_config(20)
    config.train_dataloader.dataset = dict(type=Spoilt, how=how)
    config.train_dataloader.num_workers = workers
    with pytest.raises(DataError, match=rf"iteration 2: samples token\d+, .*{words}.*--resume") as caught:
        train(config, tmp_path)
    assert "Traceback" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_killed_worker_is_named_with_what_to_lower(toy: Any, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    config = toy.toy_config(20)
    config.train_dataloader.dataset = dict(type=Spoilt, how="kill")
    config.train_dataloader.num_workers = 2
    with pytest.raises(DataError, match=r"worker was killed .*num_workers.*/dev/shm; --resume"):
        train(config, tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before
    deadline = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("shape", "mat1 and mat2.*fit one another"),
        ("memory", "lower train_dataloader.batch_size"),
        ("none", "TypeError"),
    ],
)
def test_a_model_that_fails_is_one_line_with_the_samples(toy: Any, tmp_path: Path, kind: str, words: str) -> None:
    config = toy.toy_config(20)
    config.model = dict(type=Failing, kind=kind)
    with pytest.raises(TrainingError, match=rf"iteration 0, on samples sample\d+.*{words}") as caught:
        train(config, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_hook_that_fails_is_named(toy: Any, tmp_path: Path) -> None:
    config = toy.toy_config(20)
    config.custom_hooks = [dict(type=Breaks)]
    with pytest.raises(TrainingError, match=r"hook Breaks\.after_train_iter: AttributeError: no such thing"):
        train(config, tmp_path)
    config = toy.toy_config(20)
    config.ema.momentum = 7
    with pytest.raises(ConfigError, match=r"hook AverageWeights\.before_run: .*momentum"):
        train(config, tmp_path / "other")


def test_weights_that_are_not_finite_are_never_saved(toy: Any, tmp_path: Path) -> None:
    config = toy.toy_config(20)
    config.custom_hooks = [dict(type=Poison)]
    with pytest.raises(TrainingError, match=r"weights are not finite since an earlier step \(net\.3\.bias\)"):
        train(config, tmp_path)
    config.checkpoint.interval = 7
    with pytest.raises(
        TrainingError, match=r"iteration 7: weights are not finite \(net\.3\.bias\), so they were not saved"
    ):
        train(config, tmp_path / "saving")
    last = latest_checkpoint(tmp_path)
    assert last is not None and last.name == "iter_5.pth" and latest_checkpoint(tmp_path / "saving") is None


def test_masks_of_infinity_are_no_broken_weights(toy: Any, tmp_path: Path) -> None:
    config = toy.toy_config(6)
    config.model = dict(type=Masked)
    mask = read_checkpoint(train(config, tmp_path))["state_dict"]["mask"]
    assert mask.isinf().sum() == 3


def test_averaging_that_cannot_be_built_is_named(toy: Any, tmp_path: Path) -> None:
    config = toy.toy_config(6)
    config.ema = dict(type="ExponentialMovingAverage", momentum=0.1)
    with pytest.raises(ConfigError, match=r"ema of the config cannot be built: .*type"):
        train(config, tmp_path)


def test_modules_of_the_config_that_are_not_there_are_named(toy: Any, tmp_path: Path) -> None:
    config = toy.toy_config(2)
    config.activation_checkpointing = ["backbone"]
    with pytest.raises(ConfigError, match=r"activation_checkpointing: .*no module 'backbone'; it has .*net"):
        train(config, tmp_path)


def test_settings_by_name_that_find_nothing_are_said(
    toy: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = toy.toy_config(2)
    config.optim_wrapper.paramwise_cfg = dict(custom_keys={"backbone": dict(lr_mult=0.1), "net.0": dict(lr_mult=0.5)})
    train(config, tmp_path)
    assert "'backbone' in its name: no effect" in caplog.text and "'net.0'" not in caplog.text


def test_a_second_training_in_one_folder_is_refused(toy: Any, tmp_path: Path) -> None:
    with folder_lock(tmp_path / "run", "train"):
        (tmp_path / "run" / "kept").write_text("")
        with pytest.raises(OutputError, match=rf"run: process {os.getpid()} on .* \(train\) is writing here"):
            train(toy.toy_config(2), tmp_path / "run")
    train(toy.toy_config(2), tmp_path / "run")


def test_errors_from_workers_lose_their_traceback() -> None:
    text = "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  f\n"
    with (
        pytest.raises(DataError, match=r"^samples a cannot be read: ValueError: bad; .*again$"),
        reading(lambda: "samples a", "--workers", "again"),
    ):
        raise ValueError(text + "ValueError: bad")
    with (
        pytest.raises(ModelError, match="another process of this run may have stopped"),
        computing(lambda: "here", "--batch-size", "again", ModelError),
    ):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer")
    with pytest.raises(ConfigError, match=r"^own$"), reading(lambda: "samples a", "--workers", "again"):
        raise ConfigError("own")


def test_compile_acts_on_what_the_loop_calls(toy: Any, tmp_path: Path) -> None:
    config = toy.toy_config(3)
    config.compile = dict(backend="eager")
    compiled = train(config, tmp_path / "compiled")
    for name, value in read_checkpoint(train(toy.toy_config(3), tmp_path / "plain"))["state_dict"].items():
        torch.testing.assert_close(read_checkpoint(compiled)["state_dict"][name], value)
    config.compile = dict(backend="nosuch")
    with pytest.raises((TrainingError, ConfigError), match="nosuch"):
        train(config, tmp_path / "wrong")
    config.compile = dict(fast=True)
    with pytest.raises(ConfigError, match=r"compile of the config cannot be built: .*'fast'"):
        train(config, tmp_path / "wrong")
