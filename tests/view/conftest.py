from __future__ import annotations

from pathlib import Path

import pytest

from drivestack.core.frames import Frame
from support.toy_pictures import toy_frame


@pytest.fixture
def frame(tmp_path: Path) -> Frame:
    """Six cameras, no labels."""
    return toy_frame(tmp_path)
