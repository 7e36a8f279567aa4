"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository_root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """Numbers to agree with, measured on the published code."""
    return ROOT / "tests" / "reference"


@pytest.fixture(scope="session")
def shared_real() -> Path:
    """Folder of real data samples beside the checkout, or in $DRIVESTACK_SHARED_REAL; skips the test elsewhere."""
    named = os.environ.get("DRIVESTACK_SHARED_REAL")
    for folder in [Path(named)] if named else [ROOT.parent / "shared" / "real", ROOT / "shared" / "real"]:
        if folder.is_dir():
            return folder
    pytest.skip("no shared/real folder beside this checkout and none in $DRIVESTACK_SHARED_REAL")
