"""Reference numbers of the released InternImage code, measured on CPU (float32 runs of exactly these weights)."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor


class Reference:
    """Reads tests/reference/backbone."""

    def __init__(self, folder: Path):
        self.folder = folder

    def json(self, name: str) -> Any:
        with gzip.open(self.folder / f"{name}.json.gz", "rt", encoding="utf-8") as file:
            return json.load(file)

    def weights(self, *names: str) -> dict[str, Tensor]:
        """State dict of one or more files; floats are stored in short formats that hold them exactly."""
        state: dict[str, Tensor] = {}
        for name in names:
            with gzip.open(self.folder / f"{name}.safetensors.gz") as file:
                state.update(safetensors.torch.load(file.read()))
        return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}

    def arrays(self, name: str) -> dict[str, Tensor]:
        with np.load(self.folder / f"{name}.npz") as file:
            return {key: torch.from_numpy(file[key]) for key in file.files}


@pytest.fixture(scope="session")
def reference(reference_dir: Path) -> Reference:
    return Reference(reference_dir / "backbone")


@pytest.fixture(scope="session")
def reference_index(reference: Reference) -> dict[str, Any]:
    return reference.json("index")


@pytest.fixture
def assert_near() -> Callable[..., None]:
    def check(actual: Tensor, expected: Tensor, name: str = "", atol: float = 1e-4, rtol: float = 1e-4) -> None:
        torch.testing.assert_close(actual.detach(), expected, atol=atol, rtol=rtol, msg=lambda text: f"{name}: {text}")

    return check
