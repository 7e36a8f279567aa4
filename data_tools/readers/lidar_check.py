"""Labelled boxes against the LiDAR: objects that are said to have points must have them where their boxes are.

That shows what no number of a label shows by itself: boxes in another frame, turned or shifted ones, sweeps of another
time. A few keyframes of a set are enough, as conventions do not change within one.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def check_lidar(frames: Sequence[Frame]) -> None:
    """Hold the boxes of up to MOST_FRAMES keyframes, evenly over the set, against their LiDAR sweeps.

    Frames without sweep, labels or counts of points show nothing; a sweep that cannot be read is reported. Raises
    DataError where most witnesses have their points elsewhere.
    """
    able = [frame for frame in frames if frame.annotations is not None and len(frame.annotations) and frame.lidar_path]
    places = np.unique(np.linspace(0, len(able) - 1, min(MOST_FRAMES, len(able))).round().astype(int))
    right: list[bool] = []
    for frame in (able[i] for i in places):
        if not Path(frame.lidar_path).is_file():
            continue  # sets are often copied without it
        try:
            right += witnesses(frame, read_lidar(frame))
        except DataError as error:
            warn_once(f"{error}: its labels are not compared with it")
    if len(right) >= MIN_WITNESSES and np.mean(right) < 0.5:
        raise DataError(
            f"sample {able[0].token} and others: of {len(right)} labelled objects with {FEWEST_POINTS} LiDAR points or "
            f"more within {FARTHEST_M:g} m, {len(right) - sum(right)} have them elsewhere: boxes are in another frame, "
            f"turned, or of another time than the sweeps ({able[0].lidar_path}); give boxes in the global frame and "
            "the pose of the LiDAR, or leave lidar_path empty if the sweeps are not in the BEV frame"
        )


def witnesses(frame: Frame, points_m: NDArray[np.float64]) -> list[bool]:
    """Of each object that is near and has points, whether they lie in its box. points_m [n, 3], BEV frame."""
    notes = frame.annotations
    if notes is None or not len(points_m):
        return []
    boxes = frame.bev_boxes()
    chosen = (notes.num_lidar_points >= FEWEST_POINTS) & (np.linalg.norm(boxes[:, :2], axis=1) < FARTHEST_M)
    right = []
    for box, stated in zip(boxes[chosen], notes.num_lidar_points[chosen]):
        offset = points_m - box[:3]
        cos, sin = np.cos(box[6]), np.sin(box[6])
        along = np.stack([offset[:, :2] @ [cos, sin], offset[:, :2] @ [-sin, cos], offset[:, 2]], 1)
        inside = (np.abs(along) <= box[3:6] / 2 + MARGIN_M).all(1).sum()
        right.append(bool(inside >= ENOUGH * stated))
    return right
