"""The toy training problem, as a module for tests in this process and as a program for others."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from support import toy_training
from support.backbone_reference import assert_near, reference, reference_index  # noqa: F401


@pytest.fixture(scope="session")
def toy_program() -> Path:
    return Path(toy_training.__file__)


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    return toy_training
