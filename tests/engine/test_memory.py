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
from drivestack.data_tools.clips.sampler import ResumableSampler
from drivestack.engine.checkpoints import read_checkpoint
from drivestack.engine.train import train
from drivestack.engine.training_memory import TrainingMemory, joined
from support import toy_memory


def same(a: Path, b: Path) -> None:
    one, two = read_checkpoint(a), read_checkpoint(b)
    for part in ("state_dict", "ema_state_dict"):
        for name, value in one[part].items():
            assert torch.equal(value, two[part][name]), (part, name)
    assert one["memory"]["made_at"] == two["memory"]["made_at"] and one["memory"]["states"]
    for key, state in one["memory"]["states"].items():
        assert torch.equal(state["value"], two["memory"]["states"][key]["value"]), key


@pytest.mark.parametrize("stop", [1, 5, 9, 14])
def test_a_resumed_run_is_the_run_that_was_not_stopped(tmp_path, stop):
    whole = train(toy_memory.config(20), tmp_path / "whole")
    train(toy_memory.config(stop), tmp_path / "parts")
    same(train(toy_memory.config(20), tmp_path / "parts", resume=True), whole)


def test_a_run_that_forgets_its_memory_is_another(tmp_path):
    whole = train(toy_memory.config(20), tmp_path / "whole")
    path = train(toy_memory.config(10), tmp_path / "parts")  # in the middle of two scenes
    content = read_checkpoint(path)
    content["memory"] = {"states": {}, "made_at": {}}
    torch.save(content, path)
    other = train(toy_memory.config(20), tmp_path / "parts", resume=True)
    one, two = (read_checkpoint(found)["state_dict"] for found in (whole, other))
    assert [name for name, value in one.items() if not value.equal(two[name])]


def test_two_ranks_resume_to_the_bit_and_hold_all_streams(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([*command, toy_memory.__file__, tmp_path], check=True, env=environment, capture_output=True)
    whole = tmp_path / "whole" / "iter_20.pth"
    same(tmp_path / "parts" / "iter_20.pth", whole)
    assert len(read_checkpoint(whole)["memory"]["states"]) == 2 * 2 * 2
    # one process with as many slots goes on with all of them, and soon holds its own alone
    path = train(toy_memory.config(28, batch_size=4), tmp_path / "one", resume=whole)
    memory = read_checkpoint(path)["memory"]
    assert sorted(memory["made_at"].values()) == [26] * 4 + [27] * 4


def test_the_newest_state_of_a_stream_is_kept():
    old = {"states": {"a": 1, "b": 1}, "made_at": {"a": 3, "b": 7}}
    new = {"states": {"a": 2, "c": 2}, "made_at": {"a": 5, "c": 5}}
    expected = {"states": {"a": 2, "b": 1, "c": 2}, "made_at": {"a": 5, "b": 7, "c": 5}}
    assert joined([old, new]) == joined([new, old]) == expected


def test_states_live_until_their_next_turn():
    memory = TrainingMemory(turns=2)
    for iteration, key in enumerate("abab"):
        memory.update({key: iteration}, iteration)
    assert memory.states == {"a": 2, "b": 3}
    memory.update({"c": 4}, 4)  # the sequence of a has ended
    assert memory.states == {"b": 3, "c": 4}


def test_another_number_of_slots_is_refused(tmp_path):
    path = train(toy_memory.config(6, batch_size=2), tmp_path)
    config = toy_memory.config(12, batch_size=1)
    config.optim_wrapper.accumulative_counts = 2
    with pytest.raises(
        CheckpointError, match=r"so many sequences at a time \(processes x batch size x interleave\): 4, .* 2"
    ):
        train(config, tmp_path, resume=path)


def test_damaged_memory_is_a_damaged_checkpoint(tmp_path):
    path = train(toy_memory.config(6), tmp_path)
    content = read_checkpoint(path)
    content["memory"] = {"states": {"scene0 1": {"nothing": 1}}, "made_at": {"scene0 1": 5}}
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
    assert "batch_size" not in config.train_dataloader.sampler
    assert len(read_checkpoint(train(config, tmp_path))["memory"]["states"]) == 6
