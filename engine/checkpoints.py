"""Checkpoint files: written whole or not at all, read without running anything that is inside them.

A training checkpoint is a dict of tensors and plain values: ``meta``, ``state_dict`` (the averaged weights where EMA
is on), ``ema_state_dict`` (then: the raw weights), ``optimizer``, ``param_schedulers``. `export_weights` publishes
its ``state_dict`` as safetensors.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.runner.checkpoint import CheckpointLoader
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import CheckpointError
from ..files import atomic_path

POINTER = "last_checkpoint"


def save_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write ``checkpoint`` atomically, then let ``last_checkpoint`` beside it name it."""
    with atomic_path(path) as temporary:
        torch.save(checkpoint, temporary)
    with atomic_path(path.parent / POINTER) as temporary:
        temporary.write_text(path.name + "\n", encoding="utf-8")


def latest_checkpoint(work_dir: Path) -> Path | None:
    """The file that ``last_checkpoint`` names, None where training has not saved yet."""
    pointer = work_dir / POINTER
    return work_dir / pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else None


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A training checkpoint on the CPU. Raises CheckpointError if it is missing, broken or holds more than data."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused, because it holds Python objects beside tensors, and reading those could run code "
            f"({str(error).splitlines()[0][:200]}). Re-save its state dict as safetensors where you trust it."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: broken or cut short ({str(error).splitlines()[0][:200]}). Copy it again or take an older one."
        ) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{path}: holds a {type(checkpoint).__name__}, not a dict of weights.")
    return checkpoint


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a training checkpoint (EMA weights where it has them) or a safetensors file."""
    path = Path(path)
    if path.suffix != ".safetensors":
        checkpoint = read_checkpoint(path)
        return checkpoint.get("state_dict", checkpoint)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weights file.")
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises its own type, not exported under a stable name
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}). Copy it again.") from error


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Put the weights at ``path`` into ``model``. Raises CheckpointError unless names and shapes fit exactly."""
    load_state(model, read_weights(path), str(path))


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Strict load_state_dict that says how many names differ and which come first; ``source`` is for the message."""
    own = model.state_dict()
    differences = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "of another shape": [
            f"{name} {list(state[name].shape)} instead of {list(own[name].shape)}"
            for name in own
            if name in state and state[name].shape != own[name].shape
        ],
    }
    found = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in differences.items()
        if names
    ]
    if found:
        raise CheckpointError(
            f"{source}: weights of another model than the config describes: {'; '.join(found)}. "
            "Use the config that this checkpoint was trained with."
        )
    model.load_state_dict(state)


def export_weights(
    checkpoint: str | Path,
    out: str | Path,
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Publish the (EMA) weights of a training checkpoint as safetensors, floating-point tensors as ``dtype``.

    ``metadata`` (command, commit, data recipe, ...) is written into the file's header beside the iteration, the seed
    and the precision.
    """
    content = read_checkpoint(checkpoint)
    meta = content["meta"]
    header = {"iteration": str(meta["iter"]), "seed": str(meta["seed"]), "dtype": str(dtype).removeprefix("torch.")}
    tensors = {
        name: (value.to(dtype) if value.is_floating_point() else value).contiguous().clone()
        for name, value in content["state_dict"].items()
    }
    with atomic_path(out) as temporary:
        save_file(tensors, temporary, metadata=header | dict(metadata or {}))
    return Path(out)


def close_unsafe_loaders() -> None:
    """Replace MMEngine's checkpoint loaders in this process: its own repeat a refused load with code execution on.

    ``init_cfg=dict(type="Pretrained", checkpoint=...)`` goes through them.
    """

    def local(path: str, map_location: Any) -> dict[str, Any]:
        return read_checkpoint(path)

    def remote(path: str, map_location: Any) -> dict[str, Any]:
        raise CheckpointError(f"{path}: download the file, check where it comes from, and name the local copy.")

    CheckpointLoader.register_scheme("", local, force=True)
    for scheme in [prefix for prefix in CheckpointLoader._schemes if prefix]:
        CheckpointLoader.register_scheme(scheme, remote, force=True)
