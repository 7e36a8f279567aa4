"""Weights that ship with the package, by the name of their model."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import CheckpointError

FOLDER = Path(__file__).resolve().parents[2] / "weights"


def shipped_weights() -> dict[str, Path]:
    """Files by model name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.safetensors"))}


def weights_file(name_or_path: str | os.PathLike[str]) -> Path:
    """A checkpoint by its path or folder, or shipped weights by name. Raises CheckpointError where there is neither."""
    path = Path(name_or_path)
    shipped = shipped_weights()
    if not path.is_file() and str(name_or_path) in shipped:
        return shipped[str(name_or_path)]
    if path.is_dir():
        from .files import find_weights_file  # PyTorch: names alone need none

        return find_weights_file(path)
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such checkpoint; give a file (.pth, .safetensors), or a shipped model: {', '.join(shipped)}"
        )
    return path
