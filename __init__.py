"""drivestack: surround-view camera images to 3D boxes, voxels and lanes, one encoder for every task.

    import drivestack

    model = drivestack.load("perception_tiny_synthetic")
    answer = model(images, rig)

Importing this package is light: api.py and what it imports load when a name is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import (
        Annotations,
        Answer,
        Camera,
        Conventions,
        DataSource,
        DrivestackError,
        Frame,
        ImagePerception,
        ImageResult,
        Perception,
        Rig,
        Session,
        evaluate,
        hand_over,
        list_models,
        load,
        read,
        register_reader,
        train,
    )

__version__ = "0.1.0"

__all__ = [
    "Annotations",
    "Answer",
    "Camera",
    "Conventions",
    "DataSource",
    "DrivestackError",
    "Frame",
    "ImagePerception",
    "ImageResult",
    "Perception",
    "Rig",
    "Session",
    "evaluate",
    "hand_over",
    "list_models",
    "load",
    "read",
    "register_reader",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'drivestack' has no attribute {name!r}")
    from . import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
