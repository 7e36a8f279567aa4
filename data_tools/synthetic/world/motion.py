"""Where things are at any time: objects along their paths, and the ego car along its lanes.

Shapes: n points of a path, T moments. World frame, metres, seconds from the first keyframe.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .drive import Timetable


@dataclass(frozen=True)
class Motion:
    """Along a polyline at constant speed; speed 0 stands at the start of a one-point path."""

    path_xy: np.ndarray  # [n, 2]
    heading_rad: float  # for objects that stand
    start_s: float  # metres along the path at time 0
    speed_mps: float

    def poses(self, times_s: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Centres [T, 2], yaws [T] and whether the object is on its path [T]."""
        times_s = np.atleast_1d(np.asarray(times_s, float))
        if len(self.path_xy) == 1:
            n = len(times_s)
            return np.repeat(self.path_xy, n, 0), np.full(n, self.heading_rad), np.ones(n, bool)
        steps = np.diff(self.path_xy, axis=0)
        s_table = np.concatenate([[0], np.cumsum(np.linalg.norm(steps, axis=1))])
        s, present = self._along(times_s, float(s_table[-1]))
        centre = np.stack([np.interp(s, s_table, self.path_xy[:, k]) for k in (0, 1)], -1)
        heading = np.unwrap(np.arctan2(steps[:, 1], steps[:, 0]))
        yaw = np.interp(s, (s_table[1:] + s_table[:-1]) / 2, heading)
        return centre, yaw, present

    def _along(self, times_s: np.ndarray, length_m: float) -> tuple[np.ndarray, np.ndarray]:
        s = self.start_s + self.speed_mps * times_s
        return s, (s >= 0) & (s <= length_m)

    def speed_at(self, time_s: float) -> float:
        """Metres per second."""
        return self.speed_mps


@dataclass(frozen=True)
class TimedMotion(Motion):
    """Along a polyline by a timetable; ``speed_mps`` is what it would drive or walk where nothing slows it."""

    timetable: Timetable

    def _along(self, times_s: np.ndarray, length_m: float) -> tuple[np.ndarray, np.ndarray]:
        table = self.timetable.times_s
        return self.timetable.at(times_s), (times_s >= table[0]) & (times_s <= table[-1])

    def speed_at(self, time_s: float) -> float:
        """Metres per second."""
        return float(self.timetable.speed_mps(time_s))


@dataclass(frozen=True)
class EgoDrive:
    """The ego car: rear axle positions along a lane."""

    path_xy: np.ndarray  # [n, 2]
    s_table: np.ndarray  # [n]
    start_s: float
    speed_mps: float
    swing_mps: float
    period_s: float

    def arc_length(self, times_s: ArrayLike) -> np.ndarray:
        """Metres along the path at the given times; the speed swings around its mean and is never negative."""
        t = np.asarray(times_s, float)
        w = 2 * np.pi / self.period_s
        return self.start_s + self.speed_mps * t + self.swing_mps / w * (1 - np.cos(w * t))

    def poses(self, times_s: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Rear axle [T, 2] and yaw [T]."""
        s = np.atleast_1d(self.arc_length(times_s))
        point = lambda q: np.stack([np.interp(q, self.s_table, self.path_xy[:, k]) for k in (0, 1)], -1)
        forward = point(s + 1.5) - point(s - 1.5)
        return point(s), np.arctan2(forward[:, 1], forward[:, 0])


@dataclass(frozen=True)
class TimedDrive(EgoDrive):
    """The ego car along its lanes by a timetable."""

    timetable: Timetable

    def arc_length(self, times_s: ArrayLike) -> np.ndarray:
        """Metres along the path at the given times."""
        return self.timetable.at(times_s)
