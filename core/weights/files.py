"""Files of weights: .pth, safetensors, shards with an index, folders of these; other files named for what they are.

Nothing in a file is run, and its sizes are compared with the file before memory is taken.
"""

from __future__ import annotations

import json
import logging
import os
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError, DataError
from ..files import file_name
from .names import StateDict, plain_keys, some
from .torch_files import READ_ERRORS, QuantisedError, UnreadObjectError, read_torch_file

logger = logging.getLogger("drivestack")

PLACES = ("state_dict", "model", "module", "model_state_dict", "net", "network", "weights", "params")
"""Where checkpoints keep their weights, beside the top level: MMEngine, InternImage, DeepSpeed, tutorials, ..."""
EMA_PLACES = ("model_ema", "state_dict_ema", "ema", "ema_model", "model_ema_state_dict", "params_ema")
"""Averaged weights: InternImage, timm, ..."""
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WHOLE = ("model.safetensors", "pytorch_model.bin")
SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")
MOST_INDEX_BYTES = 1 << 26

STARTS = (
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself: run `git lfs pull`"),
    (b"\x89HDF", "an HDF5 file (Keras), not PyTorch weights: export the weights as safetensors there"),
    (b"GGUF", "a GGUF file, quantised for llama.cpp: load the original PyTorch weights"),
    (b"ftrt", "a TensorRT engine, which holds no weights to load: give the checkpoint it was built from"),
    (b"ptrt", "a TensorRT engine, which holds no weights to load: give the checkpoint it was built from"),
    (b"\x1f\x8b", "gzip-compressed: unpack it first"),
    (b"BZh", "bzip2-compressed: unpack it first"),
    (b"\xfd7zXZ", "xz-compressed: unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it first"),
    (b"\x93NUMPY", "a NumPy array, not a checkpoint: save a state dict with torch.save or save_safetensors"),
)
SUFFIX_NOTES = {
    ".onnx": "an ONNX model, not PyTorch weights: give the checkpoint it was exported from",
    ".engine": "a TensorRT engine, which holds no weights to load: give the checkpoint it was built from",
    ".plan": "a TensorRT engine, which holds no weights to load: give the checkpoint it was built from",
    ".trt": "a TensorRT engine, which holds no weights to load: give the checkpoint it was built from",
    ".npz": "NumPy arrays, not a checkpoint: save a state dict with torch.save or save_safetensors",
}


def read_state_dict(path: str | os.PathLike[str], *, use_ema: bool = False) -> StateDict:
    """Read weights as name -> tensor on the CPU, from a file, the index of a sharded checkpoint, or a folder of either.

    Keys are as stored but for what wrappers add (weights.names.plain_keys).

    Raises:
        CheckpointError: naming the file and what is wrong with it.
    """
    path = find_weights_file(Path(path))
    if path.name.endswith(".index.json"):
        state = _read_shards(path, use_ema)
    elif is_safetensors(path):
        if use_ema:
            raise CheckpointError(f"{path}: a safetensors file holds one set of weights, use_ema does not apply")
        state = read_safetensors(path)
    else:
        state = find_weights(read_pth(path), path, use_ema)
    return plain_keys(state, str(path))


def find_weights_file(path: Path) -> Path:
    """The file itself, or the one that holds the weights of a folder. Raises CheckpointError."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such checkpoint file")
    for name in (*INDEXES, *WHOLE):
        if (path / name).is_file():
            return path / name
    if (path / ".metadata").is_file():
        raise CheckpointError(
            f"{path}: a distributed checkpoint; convert it with "
            f"`python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} weights.pth`"
        )
    found = sorted(p.name for p in path.iterdir() if p.suffix in SUFFIXES and not p.name.startswith("."))
    if len(found) == 1:
        return path / found[0]
    if not found:
        raise CheckpointError(f"{path}: a folder without weights; name a file ({', '.join(SUFFIXES)})")
    raise CheckpointError(f"{path}: a folder with {len(found)} files of weights; name one of {some(found)}")


def _read_shards(index: Path, use_ema: bool) -> StateDict:
    """Weights in several files, of which the index says who holds which (Hugging Face's layout)."""
    try:
        if index.stat().st_size > MOST_INDEX_BYTES:
            raise ValueError("far larger than an index")
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards: dict[str, list[str]] = {}
        for key, shard in weight_map.items():
            shards.setdefault(file_name(shard, "a shard in weight_map"), []).append(key)
    except DataError as error:
        raise CheckpointError(f"{index}: {error}") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{index}: not the index of a sharded checkpoint ({_first_line(error)}): it must map keys to files under "
            "weight_map; copy it again"
        ) from error
    if absent := [shard for shard in shards if not (index.parent / shard).is_file()]:
        raise CheckpointError(f"{index}: {len(absent)} of its {len(shards)} files are missing: {some(absent)}")
    state: StateDict = {}
    for shard, keys in shards.items():
        path = index.parent / shard
        part = read_safetensors(path) if is_safetensors(path) else find_weights(read_pth(path), path, use_ema)
        if lost := [key for key in keys if key not in part]:
            raise CheckpointError(f"{path}: lacks {len(lost)} tensors that {index.name} names: {some(lost)}")
        state |= {key: part[key] for key in keys}
    if not state:
        raise CheckpointError(f"{index}: its weight_map is empty: copy it again")
    return state


# ---- safetensors -----------------------------------------------------------------------------------------------------


def is_safetensors(path: Path) -> bool:
    """By its name, or by a header of JSON behind its length."""
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def read_safetensors(path: Path) -> StateDict:
    """All tensors of the file. Raises CheckpointError."""
    name_kind(path)
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, *READ_ERRORS) as error:
        raise CheckpointError(f"{path}: broken or not safetensors ({_first_line(error)}): copy it again") from error


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The notes stored in a safetensors file by `save_safetensors`."""
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, *READ_ERRORS) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {_first_line(error)}") from error


# ---- .pth ------------------------------------------------------------------------------------------------------------


def read_pth(path: Path) -> Any:
    """What a .pth file holds, on the CPU. Raises CheckpointError if it is broken or holds more than data."""
    name_kind(path)
    try:
        return read_torch_file(path)
    except UnreadObjectError as error:
        raise CheckpointError(
            f"{path}: holds Python objects that are not read for safety ({error}): where you trust "
            "the file, save its weights alone with torch.save or save_safetensors"
        ) from error
    except QuantisedError as error:
        raise CheckpointError(
            f"{path}: quantised weights: load the floating-point checkpoint, then quantise"
        ) from error
    except READ_ERRORS as error:
        raise CheckpointError(f"{path}: broken or not a checkpoint ({_first_line(error)}): copy it again") from error


def name_kind(path: Path) -> None:
    """Raises CheckpointError for a file of another kind than weights, naming it."""
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); give a checkpoint file") from error
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<head")):
        raise CheckpointError(f"{path}: a web page, not a checkpoint: download the file itself")
    if text.startswith(b"<?xml"):
        raise CheckpointError(f"{path}: XML, such as a server's refusal, not a checkpoint: download the file itself")
    notes = [note for magic, note in STARTS if start.startswith(magic)]
    if start[257:262] == b"ustar":
        notes.append("a tar archive (PyTorch before 0.2, or a packed folder): unpack it, or save the weights anew")
    if path.suffix in SUFFIX_NOTES:
        notes.append(SUFFIX_NOTES[path.suffix])
    if start.startswith(b"PK\x03\x04"):
        notes += _archive_kind(path)
    if notes:
        raise CheckpointError(f"{path}: {notes[0]}")


def _archive_kind(path: Path) -> Iterable[str]:
    """What a zip file is that torch.save did not write."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except READ_ERRORS:
        return  # the reader says what is broken
    parts = {part for name in names for part in name.split("/")[:-1]} | {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in parts and "code" in parts:
        yield "a TorchScript program: save its weights with torch.save(torch.jit.load(FILE).state_dict(), ...)"
    elif "archive_format" in parts or "serialized_exported_program.json" in parts:
        yield "a program of torch.export: save its weights with torch.save(torch.export.load(FILE).state_dict, ...)"
    elif names and all(name.endswith(".npy") for name in names):
        yield SUFFIX_NOTES[".npz"]
    elif any(name.endswith(SUFFIXES) for name in names):
        yield f"a zip archive of files: unpack it, it holds {some([n for n in names if n.endswith(SUFFIXES)])}"


def find_weights(content: Any, path: Path, use_ema: bool = False) -> StateDict:
    """The name -> tensor mapping inside what a .pth file holds. Raises CheckpointError where there is none, or two."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds no weights but {_describe(content)}; {_PLACES_NOTE}")
    averaged = _sets_of_weights(content, EMA_PLACES)
    if use_ema:
        if not averaged:
            raise CheckpointError(f"{path}: holds no averaged weights ({', '.join(EMA_PLACES[:3])})")
        return _only_one(averaged, path)
    found = _sets_of_weights(content, PLACES)
    if found:
        return _only_one(found, path)
    own = _tensors(content, path)
    if own:
        return own
    if averaged:
        logger.info("%s: holds averaged weights only (%s): they are used", path, ", ".join(averaged))
        return _only_one(averaged, path)
    raise CheckpointError(f"{path}: holds no weights {_what_instead(content)}; {_PLACES_NOTE}")


_PLACES_NOTE = f"they must be under {', '.join(PLACES[:3])}, ..., or at top level"


def _sets_of_weights(content: Mapping[Any, Any], places: Iterable[str], depth: int = 0) -> dict[str, StateDict]:
    """Mappings with tensors under these names, at most three levels deep: ``model`` may hold a ``state_dict``."""
    found: dict[str, StateDict] = {}
    for place in places:
        inner = content.get(place)
        if not isinstance(inner, Mapping):
            continue
        below = _sets_of_weights(inner, PLACES, depth + 1) if depth < 2 else {}
        if below:
            found |= {f"{place}.{name}": state for name, state in below.items()}
        elif any(isinstance(value, Tensor) for value in inner.values()):
            found[place] = {key: value for key, value in inner.items()}
    return found


def _only_one(found: Mapping[str, StateDict], path: Path) -> StateDict:
    """The one set of weights, or one of several equal ones."""
    (first, state), *others = found.items()
    for name, other in others:
        same = state.keys() == other.keys() and all(_same(state[key], other[key]) for key in state)
        if not same:
            raise CheckpointError(
                f"{path}: holds weights under both {first} and {name}: save the ones that you mean alone, "
                "with torch.save or save_safetensors"
            )
    return _tensors(state, path)


def _same(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return a is b
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


def _tensors(state: Mapping[Any, Any], path: Path) -> StateDict:
    """The tensors of a mapping, by names. Raises CheckpointError for tensors whose names are no text."""
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if strange := [key for key in tensors if not isinstance(key, str)]:
        raise CheckpointError(f"{path}: the names of its weights must be text, not {strange[0]!r}: save a state dict")
    if sparse := [key for key, value in tensors.items() if value.layout != torch.strided]:
        raise CheckpointError(f"{path}: {sparse[0]} is sparse: save dense weights")
    return tensors


def _what_instead(content: Mapping[Any, Any]) -> str:
    names = [str(key) for key in content]
    if {"state", "param_groups"} <= set(names) or set(names) & {"optimizer", "optimizer_state_dict"}:
        return "but an optimiser's state; give the file that holds the model"
    if unknown := [str(key) for key in content if _sets_of_weights(content, [key], 2)]:
        return f"under a name that is known: there are tensors under {some(unknown)}; save those that you mean alone"
    return f"but {some(names) or 'nothing at all'}"


def _describe(content: Any) -> str:
    if isinstance(content, Tensor):
        return f"one tensor of shape {list(content.shape)}"
    return f"a {type(content).__name__}"


def _first_line(error: BaseException) -> str:
    return " ".join((str(error).strip().splitlines() or [""])[0].split())[:200] or type(error).__name__
