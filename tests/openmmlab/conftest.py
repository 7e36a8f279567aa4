"""These tests need mmdet, mmseg and mmcv-lite: skipped without, failed where $DRIVESTACK_REQUIRE_OPENMMLAB is set."""

from __future__ import annotations

import importlib.util
import os

import pytest

NEEDED = ("mmcv", "mmdet", "mmseg")


@pytest.fixture(autouse=True, scope="session")
def openmmlab() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if not missing:
        return
    text = f"{', '.join(missing)} not installed: make openmmlab"
    if os.environ.get("DRIVESTACK_REQUIRE_OPENMMLAB"):
        pytest.fail(text)
    pytest.skip(text)
