"""Shipped weights by name."""

from __future__ import annotations

import pytest

from drivestack.core.errors import CheckpointError
from drivestack.core.weights.shipped import shipped_weights, weights_file


def test_a_name_stands_for_shipped_weights_unless_a_file_has_it(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "bevformerv2_tiny_synthetic"
    assert weights_file(name) == shipped_weights()[name]
    (tmp_path / name).mkdir()
    assert weights_file(name) == shipped_weights()[name]
    (tmp_path / name).rmdir()
    (tmp_path / name).touch()
    assert str(weights_file(name)) == name
    with pytest.raises(CheckpointError, match=r"x\.pth: no such checkpoint; give .* a shipped model: bevformerv2_tiny"):
        weights_file("x.pth")
