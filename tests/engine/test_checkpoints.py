"""Checkpoint files: safe to read, whole when written, published as safetensors."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.runner.checkpoint import CheckpointLoader

from drivestack.core.errors import CheckpointError
from drivestack.core.weights.files import read_metadata, read_state_dict
from drivestack.engine import checkpoints
from drivestack.engine.train import train


class Trap:
    """Unpickling this makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_checkpoints_with_code_inside_are_refused_everywhere(toy: Any, tmp_path: Path) -> None:
    sprung, path = tmp_path / "sprung", tmp_path / "trap.pth"
    torch.save({"meta": Trap(sprung), "state_dict": {}, "optimizer": {}}, path)
    for attempt in (
        lambda: checkpoints.read_checkpoint(path),
        lambda: train(toy.toy_config(2), tmp_path / "a", resume=path),
        lambda: train(toy.toy_config(2), tmp_path / "b", load_from=path),
        lambda: train(toy.toy_config(2), tmp_path / "c", fine_tune=path),
    ):
        with pytest.raises(CheckpointError, match=r"trap\.pth"):
            attempt()
    before = dict(CheckpointLoader._schemes)
    with checkpoints.safe_loaders():
        with pytest.raises(CheckpointError, match=r"trap\.pth"):
            CheckpointLoader.load_checkpoint(str(path))
        with pytest.raises(CheckpointError, match="download the file"):
            CheckpointLoader.load_checkpoint("https://example.org/weights.pth")
    assert dict(CheckpointLoader._schemes) == before  # MMEngine's own again, for whoever uses it beside us
    assert not sprung.exists()


def test_training_leaves_no_unpickling_to_torch(toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("torch.load takes memory by what a damaged file states")

    monkeypatch.setattr(torch, "load", refuse)
    train(toy.toy_config(2), tmp_path)
    train(toy.toy_config(4), tmp_path, resume=True)


def test_cut_short_checkpoint_is_named(toy: Any, tmp_path: Path) -> None:
    path = train(toy.toy_config(2), tmp_path)
    whole = path.read_bytes()
    for size in (0, 100, len(whole) - 200):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"iter_2\.pth"):
            checkpoints.read_checkpoint(path)


def test_a_failed_write_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.save_checkpoint({"a": torch.ones(3)}, tmp_path / "iter_1.pth")

    def fail(content: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoints.save_checkpoint({"a": torch.zeros(3)}, tmp_path / "iter_2.pth")
    assert checkpoints.latest_checkpoint(tmp_path) == tmp_path / "iter_1.pth"
    assert {path.name for path in tmp_path.iterdir()} == {"iter_1.pth", "last_checkpoint"}


def test_weights_are_published_with_their_story(toy: Any, tmp_path: Path) -> None:
    config = toy.toy_config(5)
    config.test_dataset = dict(classes=("car", "pallet"), camera_names=["front", "rear"])
    path = train(config, tmp_path)
    averaged = checkpoints.read_checkpoint(path)["state_dict"]
    out = checkpoints.export_weights(path, tmp_path / "w.safetensors", {"command": "make demo"}, torch.float16)
    published = read_state_dict(out)
    assert published.keys() == averaged.keys()
    for name, value in averaged.items():
        assert torch.equal(published[name], value.half())
    story = read_metadata(out)
    assert story["iter"] == "5" and story["seed"] == "3"
    assert json.loads(story["classes"]) == ["car", "pallet"] and json.loads(story["cameras"]) == ["front", "rear"]
    assert story["dtype"] == "float16" and story["command"] == "make demo"
    train(toy.toy_config(1), tmp_path / "from", load_from=out)
