"""What a set of frames shows, in numbers: times, cameras, boxes; and what of it looks wrong.

The border checks (readers/checks.py) refuse what cannot be right. Here is what may be right, but rarely is: a camera
called left that looks to the right, boxes that float, a car that never moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...core.frames import Frame
from .boxes import survey_boxes
from .cameras import survey_cameras
from .times import survey_times

__all__ = ["survey", "survey_boxes", "survey_cameras", "survey_times"]


def survey(frames: Sequence[Frame]) -> tuple[dict[str, Any], list[str]]:
    """Numbers by topic ("times", "cameras", "boxes"), plain enough for JSON, and what looks wrong, a line each."""
    numbers, problems = {}, []
    for name, part in (("times", survey_times), ("cameras", survey_cameras), ("boxes", survey_boxes)):
        numbers[name], found = part(frames)
        problems += found
    return numbers, problems
