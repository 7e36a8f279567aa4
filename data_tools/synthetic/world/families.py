"""Street families: the ranges that the streets and the drive of a scene are drawn from.

A model that was trained on some families is tested on streets that it has never seen by a family whose ranges do not
meet theirs: that is what ``HELD_OUT`` is for (tests/data_tools/synthetic/test_families.py compares the ranges).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Range = tuple[float, float]
"""Lowest and highest value, drawn evenly."""


@dataclass(frozen=True)
class Family:
    """Ranges of a kind of streets. Lengths in metres, angles in degrees."""

    number: int
    """In the seed of a scene."""
    lane_width_m: Range
    parking_width_m: Range
    sidewalk_width_m: Range
    crossing_deg: Range
    """Smaller angle between two streets that cross."""
    curve_radius_m: Range
    """Of the middle line in a bend."""
    block_m: Range | None
    """Straight street between two junctions, from stop line to stop line; None: the scene has one junction at most."""
    bend_deg: Range = (35.0, 100.0)
    """By how much a bend turns."""
    bend_share: float = 0.4
    """Of the blocks: one bend."""
    s_share: float = 0.2
    """Of the blocks: a bend and one back."""
    turn_share: float = 0.75
    """Of the junctions that the car passes: where it turns."""
    two_lane_share: float = 0.25
    """Of the scenes: two lanes each way along the drive."""
    speed_mps: Range = (3.5, 9.0)
    """Of the car where nothing slows it."""
    parked_share: float = 0.06
    """Of the scenes: the car stands."""
    stop_share: float = 0.25
    """Of the scenes: the car stops on its way and goes on."""


FAMILIES = {
    # world/layout.py draws it; its ranges are said here to be compared
    "plain": Family(0, (3.5, 3.5), (3.2, 3.2), (4.0, 4.0), (90.0, 90.0), (44.0, np.inf), None),
    "turning": Family(1, (3.2, 3.7), (2.95, 3.4), (2.8, 4.2), (78.0, 90.0), (13.0, 33.0), (14.0, 34.0)),
    "narrow_town": Family(
        2, (2.8, 3.0), (2.45, 2.75), (1.7, 2.4), (58.0, 70.0), (9.0, 11.5), (38.0, 50.0),
        speed_mps=(2.5, 6.0), two_lane_share=0.0,
    ),
    "wide_town": Family(
        3, (3.9, 4.3), (3.6, 4.2), (4.6, 6.0), (58.0, 72.0), (35.0, 42.0), (55.0, 75.0),
        bend_deg=(30.0, 70.0), speed_mps=(4.5, 10.0), two_lane_share=0.4,
    ),
}  # fmt: skip
STREETS = {
    "plain": ("plain",),
    "turning": ("turning",),
    "mixed": ("plain", "turning", "turning"),
    "towns": ("narrow_town", "wide_town"),
}
"""What ``synthesize --streets`` takes: each scene has one of these families."""
HELD_OUT = "towns"


def family_of(streets: str, seed: int, split_number: int, index: int) -> str:
    """The family of one scene. A scene of "mixed" is the scene of that number of its family."""
    names = STREETS[streets]
    if len(names) == 1:
        return names[0]
    return names[np.random.default_rng([seed, split_number, index, 77]).integers(len(names))]


def check_streets(streets: str, split: str) -> None:
    """Raises ValueError for an unknown name, and for a training split of streets that are held out."""
    if streets not in STREETS:
        raise ValueError(f"streets must be one of {', '.join(STREETS)}, got {streets!r}")
    if streets == HELD_OUT and split != "val":
        raise ValueError(f"streets {HELD_OUT!r} are held out for tests: split must be 'val', got {split!r}")
