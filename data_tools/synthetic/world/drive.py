"""Speeds along a path: slow in bends, braking and going on at stops, and the position at any time.

Shapes: n points of a path, T moments. Metres and seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

LATERAL_MPS2 = 2.2
"""Highest lateral acceleration in a bend; a driver at ease."""
_SPEED_UP_MPS2, _BRAKE_MPS2 = 1.6, 2.2
_STEP_M = 0.05
_SLOWEST_MPS = 0.6  # of a car in the tightest bend

Stop = tuple[float, float]
"""Metres along the path, and seconds of standing there."""


@dataclass(frozen=True)
class Timetable:
    """When which point of a path is reached."""

    times_s: np.ndarray  # [m] not falling
    s_m: np.ndarray  # [m] not falling

    def at(self, times_s: ArrayLike) -> np.ndarray:
        """Metres along the path [...]; before the first and after the last moment the ends."""
        return np.interp(np.asarray(times_s, float), self.times_s, self.s_m)

    def passing(self, s_m: float, time_s: float) -> Timetable:
        """The same drive at such a time that it passes s_m at time_s."""
        return Timetable(self.times_s + (time_s - np.interp(s_m, self.s_m, self.times_s)), self.s_m)

    def speed_mps(self, times_s: ArrayLike) -> np.ndarray:
        """Mean over a tenth of a second around each moment."""
        t = np.asarray(times_s, float)
        return (self.at(t + 0.05) - self.at(t - 0.05)) / 0.1


def arc_lengths(path_xy: np.ndarray) -> np.ndarray:
    """[n] metres along a path [n, 2]."""
    return np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(path_xy, axis=0), axis=1))])


def headings(path_xy: np.ndarray, s_m: np.ndarray) -> np.ndarray:
    """[m] of a car whose axles are at s - 1.5 and s + 1.5, at places of a path; without jumps."""
    table = arc_lengths(path_xy)
    ahead, behind = (np.stack([np.interp(s_m + d, table, path_xy[:, k]) for k in (0, 1)], -1) for d in (1.5, -1.5))
    forward = ahead - behind
    return np.unwrap(np.arctan2(forward[:, 1], forward[:, 0]))


def plan_timetable(
    path_xy: np.ndarray,
    wanted_mps: float,
    start_s: float = 0.0,
    stops: Sequence[Stop] = (),
    lateral_mps2: float = LATERAL_MPS2,
) -> Timetable:
    """A drive from start_s to the end of the path that begins at time 0 with the speed that the place allows."""
    s = np.arange(start_s, arc_lengths(path_xy)[-1], _STEP_M)
    bends = np.abs(np.gradient(headings(path_xy, s), _STEP_M)) if len(s) > 1 else np.zeros(len(s))
    limit = np.clip(np.sqrt(lateral_mps2 / np.maximum(bends, 1e-6)), min(_SLOWEST_MPS, wanted_mps), wanted_mps)
    standing = np.zeros(len(s))
    for place, seconds in stops:
        k = int(np.searchsorted(s, place))
        if 0 < k < len(s) - 1:
            limit[k], standing[k] = 0.0, seconds
    squared = limit**2  # v^2 may change by 2 a ds a step, first looking ahead, then back
    faster, slower = (2 * a * _STEP_M * np.arange(len(s)) for a in (_SPEED_UP_MPS2, _BRAKE_MPS2))
    squared = np.minimum.accumulate((squared + slower)[::-1])[::-1] - slower
    speed = np.sqrt(np.maximum(np.minimum.accumulate(squared - faster) + faster, 0.0))
    needed = 2 * _STEP_M / np.maximum(speed[1:] + speed[:-1], 1e-2)
    arrival = np.concatenate([[0.0], np.cumsum(needed + standing[:-1])])
    waits = np.flatnonzero(standing)
    times = np.concatenate([arrival, arrival[waits] + standing[waits]])
    order = np.argsort(times, kind="stable")
    table = Timetable(times[order], np.concatenate([s, s[waits]])[order])
    return Timetable(np.r_[-2.0, table.times_s], np.r_[start_s - 2.0 * speed[0], table.s_m]) if start_s else table
