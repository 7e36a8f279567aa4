"""Training with memory that goes from iteration to iteration: stopping anywhere, on any number of ranks, changes no
bit.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from drivestack.core.errors import CheckpointError
from drivestack.core.signals import Terminated, terminate_as_exception
from drivestack.data_tools.clips.sampler import ResumableSampler, StreamingSampler
from drivestack.engine.checkpoints import read_checkpoint
from drivestack.engine.train import train
from support import toy_memory


def same(a: Path, b: Path) -> None:
    one, two = read_checkpoint(a), read_checkpoint(b)
    for part in ("state_dict", "ema_state_dict"):
        for name, value in one[part].items():
            assert torch.equal(value, two[part][name]), (part, name)
    assert one["memory"].keys() == two["memory"].keys() and one["memory"]
    for key, state in one["memory"].items():
        assert torch.equal(state["value"], two["memory"][key]["value"]), key


@pytest.mark.parametrize("stop", [1, 5, 9, 14])
def test_a_resumed_run_is_the_run_that_was_not_stopped(tmp_path, stop):
    whole = train(toy_memory.config(20), tmp_path / "whole")
    train(toy_memory.config(stop), tmp_path / "parts")
    same(train(toy_memory.config(20), tmp_path / "parts", resume=True), whole)


def test_a_run_that_forgets_its_memory_is_another(tmp_path):
    whole = train(toy_memory.config(20), tmp_path / "whole")
    path = train(toy_memory.config(10), tmp_path / "parts")  # in the middle of two scenes
    content = read_checkpoint(path)
    content["memory"] = {}
    torch.save(content, path)
    other = train(toy_memory.config(20), tmp_path / "parts", resume=True)
    one, two = (read_checkpoint(found)["state_dict"] for found in (whole, other))
    assert [name for name, value in one.items() if not value.equal(two[name])]


def run(folder: Path, ranks: int, batch_size: int, *more: str) -> Path:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += [toy_memory.__file__, str(folder), "--batch-size", str(batch_size), *more]
    path = os.pathsep.join(filter(None, sys.path))
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path}, timeout=250, capture_output=True)
    return folder / "iter_20.pth"


def test_two_ranks_resume_to_the_bit_and_hold_all_streams(tmp_path):
    whole = run(tmp_path / "whole", 2, 2, "--iters", "20")
    run(tmp_path / "parts", 2, 2, "--iters", "9")
    same(run(tmp_path / "parts", 2, 2, "--iters", "20", "--resume"), whole)
    assert len(read_checkpoint(whole)["memory"]) == 4
    # one process with as many slots goes on with all states
    config = toy_memory.config(21, batch_size=4)
    train(config, tmp_path / "one", resume=whole)


def test_another_number_of_slots_is_refused(tmp_path):
    path = train(toy_memory.config(6, batch_size=2), tmp_path)
    config = toy_memory.config(12, batch_size=1)
    config.optim_wrapper.accumulative_counts = 2
    with pytest.raises(CheckpointError, match=r"so many sequences at a time \(processes x batch size\): 2, .* 1"):
        train(config, tmp_path, resume=path)


def test_damaged_memory_is_a_damaged_checkpoint(tmp_path):
    path = train(toy_memory.config(6), tmp_path)
    content = read_checkpoint(path)
    content["memory"] = {"scene0 1": {"nothing": 1}}
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="training state"):
        train(toy_memory.config(12), tmp_path, resume=path)


def test_frames_that_do_not_follow_each_other_are_warned_of(tmp_path, caplog):
    config = toy_memory.config(4)
    config.train_dataloader.sampler = dict(type=ResumableSampler)
    train(config, tmp_path / "a")
    assert "use StreamingSampler" in caplog.text
    caplog.clear()
    train(toy_memory.config(4), tmp_path / "b")
    assert "StreamingSampler" not in caplog.text


def test_validation_leaves_the_memory_of_training_alone(tmp_path):
    plain = train(toy_memory.config(20), tmp_path / "plain")
    config = toy_memory.config(20)
    config.validation = dict(interval=3, metric="score")

    def evaluate(model, iteration):
        _, memory = model.stream_loss(toy_memory.test_batch(), None)
        return {"score": float(model.stream_loss(toy_memory.test_batch(1), memory)[0]["loss"])}

    same(train(config, tmp_path / "validated", evaluate=evaluate), plain)


def test_the_signal_that_ends_a_run_loses_nothing(tmp_path):
    whole = train(toy_memory.config(20), tmp_path / "whole")
    config = toy_memory.config(20)
    config.custom_hooks = [dict(type=toy_memory.StopAt, iteration=7, number=int(signal.SIGTERM))]
    with pytest.raises(Terminated), terminate_as_exception():
        train(config, tmp_path / "parts")
    assert (tmp_path / "parts" / "iter_7.pth").is_file()
    same(train(toy_memory.config(20), tmp_path / "parts", resume=True), whole)


def test_the_sampler_has_the_slots_of_the_batch(tmp_path):
    config = toy_memory.config(4, batch_size=3)
    assert dict(config.train_dataloader.sampler) == dict(type=StreamingSampler)
    assert len(read_checkpoint(train(config, tmp_path))["memory"]) == 3
