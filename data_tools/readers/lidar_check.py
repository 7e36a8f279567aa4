"""Labelled boxes against the LiDAR: objects that are said to have points must have them where their boxes are.

That shows what no number of a label shows by itself: boxes in another frame, turned or shifted ones, sweeps of another
time. A few keyframes of a set are enough, as conventions do not change within one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...core.errors import DataError
from ...core.frames import Frame
from ...core.once import warn_once
from .lidar import read_lidar
from .world import MIN_WITNESSES

MOST_FRAMES = 4
FEWEST_POINTS = 10
"""That an object must be said to have, to be a witness."""
FARTHEST_M = 40.0
MARGIN_M = 0.2
"""Added to each side of a box."""
ENOUGH = 0.7
"""Share of the stated points that must lie in the box of a witness."""
TURNS_DEG = (0, 30, 60, 90, 120, 150)


def check_lidar(frames: Sequence[Frame]) -> None:
    """Hold the boxes of up to MOST_FRAMES keyframes, evenly over the set, against their LiDAR sweeps.

    Frames without sweep, labels or counts of points show nothing; a sweep that cannot be read is reported, and so are
    boxes that hold points, but far fewer than stated (counted over several sweeps or LiDARs). Raises DataError where
    most witnesses have their points elsewhere.
    """
    able = [frame for frame in frames if frame.annotations is not None and len(frame.annotations) and frame.lidar_path]
    places = np.unique(np.linspace(0, len(able) - 1, min(MOST_FRAMES, len(able))).round().astype(int))
    found: list[Witness] = []
    for frame in (able[i] for i in places):
        if not Path(frame.lidar_path).is_file():
            continue  # sets are often copied without it
        try:
            found += witnesses(frame, read_lidar(frame))
        except DataError as error:
            warn_once(f"{error}: its labels are not compared with it")
    right = sum(witness.has_its_points for witness in found)
    if len(found) < MIN_WITNESSES or right >= 0.5 * len(found):
        return
    objects = (
        f"sample {able[0].token} and others: of {len(found)} labelled objects with {FEWEST_POINTS} LiDAR points or "
        f"more within {FARTHEST_M:g} m, {len(found) - right}"
    )
    if sum(witness.is_placed_well for witness in found) >= 0.5 * len(found):
        warn_once(f"{objects} hold fewer in the sweep than stated: counted over several sweeps or LiDARs")
        return
    raise DataError(
        f"{objects} have them elsewhere: boxes are in another frame, turned, or of another time than the sweeps "
        f"({able[0].lidar_path}); give boxes in the global frame and the pose of the LiDAR, or leave lidar_path empty "
        "if the sweeps are not in the BEV frame"
    )


@dataclass(frozen=True)
class Witness:
    """Points of an object: those stated, those in its box, and the most in the box turned where it stands."""

    stated: int
    inside: int
    turned: int

    @property
    def has_its_points(self) -> bool:
        return self.inside >= ENOUGH * self.stated

    @property
    def is_placed_well(self) -> bool:
        return self.inside >= max(FEWEST_POINTS, 0.9 * self.turned)


def witnesses(frame: Frame, points_m: NDArray[np.float64]) -> list[Witness]:
    """The objects that are near and have points, see Witness. points_m [n, 3], BEV frame."""
    notes = frame.annotations
    if notes is None or not len(points_m):
        return []
    boxes = frame.bev_boxes()
    chosen = (notes.num_lidar_points >= FEWEST_POINTS) & (np.linalg.norm(boxes[:, :2], axis=1) < FARTHEST_M)
    found = []
    for box, stated in zip(boxes[chosen], notes.num_lidar_points[chosen]):
        offset = points_m - box[:3]
        offset = offset[(np.abs(offset) <= np.linalg.norm(box[3:6]) + MARGIN_M).all(1)]
        inside, *turned = (_num_inside(offset, box[3:6], box[6] + turn) for turn in np.radians(TURNS_DEG))
        found.append(Witness(int(stated), inside, max(turned)))
    return found


def _num_inside(offset_m: NDArray[np.float64], size_lwh_m: NDArray[np.float64], yaw_rad: float) -> int:
    """How many points lie in a box; offset_m [n, 3] from its centre."""
    cos, sin = np.cos(yaw_rad), np.sin(yaw_rad)
    along = np.stack([offset_m[:, :2] @ [cos, sin], offset_m[:, :2] @ [-sin, cos], offset_m[:, 2]], 1)
    return int((np.abs(along) <= size_lwh_m / 2 + MARGIN_M).all(1).sum())
