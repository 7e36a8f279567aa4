"""Reference cases of the BEV room: arrays and weights of tests/reference/bev as torch tensors, and how to compare."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from drivestack.core.weights.published_keys import published_name


class Case:
    """One entry of tests/reference/bev: ``in.*``, ``out.*`` and ``grad.*`` arrays by key."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        with np.load(folder / f"{name}.npz") as arrays:
            self.arrays = {key: torch.from_numpy(arrays[key]) for key in arrays.files}

    def __getitem__(self, key: str) -> Tensor:
        return self.arrays[key]

    def weights(self, name: str, prefix: str = "") -> dict[str, Tensor]:
        """State dict of ``name``.safetensors, those keys that start with ``prefix``, without it."""
        state = load_file(self.folder / f"{name}.safetensors")
        return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}

    def check_gradients(
        self, output: Tensor, inputs: dict[str, Tensor], module: nn.Module, prefix: str = "", below: str = ""
    ) -> None:
        """Back-propagates the fixed cotangent; every recorded gradient agrees within 1e-4 of its largest entry.

        ``inputs``: recorded name to leaf tensor in the recorded layout. Parameters go by their published names; what
        is recorded is ``prefix`` and what follows ``below`` in them.
        """
        output.backward(self["grad.cotangent"])
        actual = {f"grad.in.{name}": leaf.grad for name, leaf in inputs.items()}
        named = {published_name(module, name): p.grad for name, p in module.named_parameters()}
        actual |= {f"grad.param.{prefix}{k.removeprefix(below)}": v for k, v in named.items() if k.startswith(below)}
        expected = {k: v for k, v in self.arrays.items() if k.startswith(("grad.in.", "grad.param."))}
        assert expected and set(expected) <= set(actual), sorted(set(expected) - set(actual))
        for key, value in expected.items():
            bound = 1e-4 * value.abs().max().item() + 1e-6
            error = (actual[key] - value).abs().max().item()
            assert error <= bound, f"{key}: {error} > {bound}"


@pytest.fixture
def case(reference_dir: Path) -> Callable[[str], Case]:
    return lambda name: Case(reference_dir / "bev", name)
