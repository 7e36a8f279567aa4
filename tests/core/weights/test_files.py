"""Files of weights: every layout that people have is read, or named for what it is; damaged ones are one line."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from drivestack.core.checkpoint import load_checkpoint, save_safetensors
from drivestack.core.errors import CheckpointError, DrivestackError
from drivestack.core.weights.files import read_pth, read_state_dict
from drivestack.core.weights.shipped import weights_file


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@pytest.fixture
def state() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return network().state_dict()


def agrees(found: dict[str, Tensor], state: dict[str, Tensor]) -> bool:
    return found.keys() == state.keys() and all(torch.equal(found[key], state[key]) for key in state)


def other(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value + 1 for key, value in state.items()}


PLACES = [
    "state_dict",
    "model",
    "module",
    "model_state_dict",
    "net",
    "weights",
    "state_dict_ema",
    "model_ema",
    "ema",
    "model.state_dict",
]


@pytest.mark.parametrize("place", PLACES)
def test_places(state, tmp_path, place: str) -> None:
    content: object = state
    for name in reversed(place.split(".")):
        content = {name: content, "epoch": 3}
    torch.save(content, tmp_path / "w.pth")
    assert agrees(read_state_dict(tmp_path / "w.pth"), state)


def test_raw_weights_come_before_averaged_ones_and_two_raw_sets_are_refused(state, tmp_path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"state_dict": state, "state_dict_ema": other(state)}, path)
    assert agrees(read_state_dict(path), state)
    assert agrees(read_state_dict(path, use_ema=True), other(state))
    torch.save({"state_dict": state, "model": dict(state)}, path)
    assert agrees(read_state_dict(path), state)  # twice the same
    torch.save({"state_dict": state, "model": other(state)}, path)
    with pytest.raises(CheckpointError, match=r"w\.pth: holds weights under both state_dict and model"):
        read_state_dict(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"optimizer": {"state": {}, "param_groups": []}, "epoch": 1}, "an optimiser's state"),
        ({"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1.0}]}, "an optimiser's state"),
        ({"generator": {"a": torch.ones(1)}, "discriminator": {"a": torch.ones(1)}}, "tensors under generator"),
        ({}, "nothing at all"),
        (torch.ones(2), "one tensor of shape"),
        ([1, 2], "a list"),
        ({1: torch.ones(2)}, "names of its weights must be text"),
        ({"state_dict": {("a",): torch.ones(2)}}, "names of its weights must be text"),
    ],
)
def test_what_holds_no_weights_is_named(tmp_path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=rf"w\.pth: .*{message}"):
        read_state_dict(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("name", "start", "message"),
    [
        ("w.pth", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("w.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("w.safetensors", b"<!DOCTYPE html>", "a web page"),
        ("w.pth", b"<?xml version='1.0'?><Error>AccessDenied</Error>", "a server's refusal"),
        ("model.onnx", b"\x08\x07\x12\x07pytorch", "an ONNX model"),
        ("model.engine", b"\x00" * 64, "a TensorRT engine"),
        ("model.pth", b"ftrt" + b"\x00" * 64, "a TensorRT engine"),
        ("w.pth", b"\x89HDF\r\n\x1a\n", "HDF5"),
        ("w.pth", b"GGUF\x03", "GGUF"),
        ("w.pth", b"\x1f\x8b\x08", "gzip"),
        ("w.pth", b"w/".ljust(257, b"\x00") + b"ustar\x0000", "tar archive"),
    ],
)
def test_files_of_other_kinds_are_named(tmp_path, name: str, start: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(start)
    with pytest.raises(CheckpointError, match=message) as refused:
        read_state_dict(tmp_path / name)
    assert name in str(refused.value) and "\n" not in str(refused.value)


def test_archives_of_other_kinds_are_named(tmp_path) -> None:
    torch.jit.save(torch.jit.trace(network().eval(), torch.ones(2, 3)), tmp_path / "traced.pt")
    with pytest.raises(CheckpointError, match="a TorchScript program"):
        read_state_dict(tmp_path / "traced.pt")
    with zipfile.ZipFile(tmp_path / "packed.pth", "w") as archive:
        archive.writestr("run/epoch_1.pth", b"x")
    with pytest.raises(CheckpointError, match=r"unpack it, it holds run/epoch_1\.pth"):
        read_state_dict(tmp_path / "packed.pth")


def write_shards(folder: Path, state: dict[str, Tensor], safe: bool) -> Path:
    shards: dict[str, dict[str, Tensor]] = {}
    weight_map = {}
    for i, (key, value) in enumerate(state.items()):
        name = f"model-{i % 2 + 1:05d}-of-00002.safetensors" if safe else f"pytorch_model-{i % 2 + 1:05d}-of-00002.bin"
        shards.setdefault(name, {})[key] = value
        weight_map[key] = name
    for name, part in shards.items():
        if safe:
            save_safetensors(part, folder / name)
        else:
            torch.save(part, folder / name)
    index = folder / ("model.safetensors.index.json" if safe else "pytorch_model.bin.index.json")
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}), encoding="utf-8")
    return index


@pytest.mark.parametrize("safe", [True, False])
def test_sharded_weights_by_index_and_by_folder(state, tmp_path, safe: bool) -> None:
    index = write_shards(tmp_path, state, safe)
    assert agrees(read_state_dict(index), state)
    assert agrees(read_state_dict(tmp_path), state)
    assert load_checkpoint(network(), weights_file(tmp_path)).clean
    shard = sorted(tmp_path.glob("*00001*"))[0]
    with pytest.raises(CheckpointError, match="one file of a sharded checkpoint: give its index"):
        load_checkpoint(network(), shard)
    save_safetensors({"0.weight": state["0.weight"]}, shard) if safe else torch.save({"a": torch.ones(1)}, shard)
    with pytest.raises(CheckpointError, match=r"00001-of.*: lacks \d tensors that .*index\.json names"):
        read_state_dict(index)
    shard.unlink()
    with pytest.raises(CheckpointError, match="1 of its 2 files are missing"):
        read_state_dict(index)


@pytest.mark.parametrize(
    "index",
    [
        "{",
        "[]",
        '{"weight_map": {}}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": {"a": "../other/w.bin"}}',
        '{"weight_map": {"a": "/etc/passwd"}}',
        '{"weight_map": ["a"]}',
        '{"weight_map": ' + "[" * 100000,
    ],
)
def test_broken_indexes_are_named_and_lead_nowhere_else(tmp_path, index: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"index\.json"):
        read_state_dict(tmp_path)


def test_folders(state, tmp_path) -> None:
    with pytest.raises(CheckpointError, match="a folder without weights"):
        read_state_dict(tmp_path)
    torch.save(state, tmp_path / "a.pth")
    assert agrees(read_state_dict(tmp_path), state)
    torch.save(state, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match=r"2 files of weights; name one of a\.pth, b\.pth"):
        read_state_dict(tmp_path)
    save_safetensors(state, tmp_path / "model.safetensors")
    assert agrees(read_state_dict(tmp_path), state)
    (tmp_path / "fsdp").mkdir()
    (tmp_path / "fsdp" / ".metadata").touch()
    with pytest.raises(CheckpointError, match="a distributed checkpoint; convert it with"):
        read_state_dict(tmp_path / "fsdp")


def test_safetensors_are_known_by_content(state, tmp_path) -> None:
    save_safetensors(state, tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").rename(tmp_path / "w.pth")
    assert agrees(read_state_dict(tmp_path / "w.pth"), state)
    torch.save(state, tmp_path / "v.safetensors")
    with pytest.raises(CheckpointError, match=r"v\.safetensors: broken or not safetensors"):
        read_state_dict(tmp_path / "v.safetensors")


@pytest.mark.parametrize("header", [b"", b"{}", b"x" * 20, b"\xff" * 8 + b"{}", b"\x03" + b"\x00" * 7 + b"{}"])
def test_headers_of_safetensors(tmp_path, header: bytes) -> None:
    (tmp_path / "w.safetensors").write_bytes(header)
    with pytest.raises(CheckpointError, match=r"w\.safetensors: broken or not safetensors"):
        read_state_dict(tmp_path / "w.safetensors")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_damaged_files_are_refused_in_one_line(state, tmp_path, suffix: str) -> None:
    """A few hundred seeded mutations; whatever still loads is a state dict."""
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": state, "meta": {"epoch": 1}}, path)
    else:
        save_safetensors(state, path, {"seed": 1})
    whole = path.read_bytes()
    for seed in range(300):
        rng = random.Random(seed)
        damaged, at = bytearray(whole), rng.randrange(len(whole))
        way = seed % 5
        if way == 0:
            damaged[at] ^= 1 << rng.randrange(8)
        elif way == 1:
            del damaged[at:]
        elif way == 2:
            damaged[at:at] = damaged[at : at + rng.randrange(1, 200)]
        elif way == 3:
            damaged[at : at + 8] = struct.pack("<Q", rng.choice([0, 2**31, 2**40, 2**63 - 1]))
        else:
            del damaged[at : at + rng.randrange(1, 30)]
        path.write_bytes(damaged)
        try:
            found = read_state_dict(path)
        except DrivestackError as error:
            assert path.name in str(error) and "\n" not in str(error)
        else:
            assert all(isinstance(value, Tensor) for value in found.values())


def test_a_changed_byte_of_a_weight_is_noticed_by_the_archives_checksum(state, tmp_path) -> None:
    torch.save(state, path := tmp_path / "w.pth")
    whole = bytearray(path.read_bytes())
    at = whole.find(state["0.weight"].numpy().tobytes())
    whole[at + 3] ^= 1
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match="CRC"):
        read_pth(path)


def test_archives_that_somebody_compressed_are_read_and_bombs_are_not(state, tmp_path) -> None:
    torch.save(state, tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as source:
        parts = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(tmp_path / "v.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    assert agrees(read_state_dict(tmp_path / "v.pth"), state)
    bomb = io.BytesIO()
    torch.save({"a": torch.zeros(5_000_000)}, bomb)
    with zipfile.ZipFile(bomb) as source, zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in source.namelist():
            archive.writestr(name, source.read(name))
    assert (tmp_path / "b.pth").stat().st_size < 50_000
    with pytest.raises(CheckpointError, match="claim more than the file holds"):
        read_state_dict(tmp_path / "b.pth")
