"""Do rectangles on the ground touch? Separating axes, vectorised, also over time.

Shapes: N rectangles, T moments. A rectangle is a centre [2], a yaw and half extents [2] (along, across), in metres.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .mesh import Vector


def rectangles_overlap(
    centre_a: ArrayLike, yaw_a: ArrayLike, half_a: ArrayLike, centre_b: ArrayLike, yaw_b: ArrayLike, half_b: ArrayLike
) -> np.ndarray:
    """Whether rectangles a and b overlap; all arguments broadcast over leading dimensions."""
    from_a, reach_a, from_b, reach_b = (np.asarray(v, float) for v in (centre_a, half_a, centre_b, half_b))
    gap = from_b - from_a  # [..., 2]
    turn = np.asarray(yaw_b, float) - np.asarray(yaw_a, float)
    cos, sin = np.abs(np.cos(turn)), np.abs(np.sin(turn))

    def apart(yaw: np.ndarray, own: np.ndarray, other: np.ndarray) -> np.ndarray:
        along = gap[..., 0] * np.cos(yaw) + gap[..., 1] * np.sin(yaw)
        across = gap[..., 1] * np.cos(yaw) - gap[..., 0] * np.sin(yaw)
        reach_along = own[..., 0] + other[..., 0] * cos + other[..., 1] * sin
        reach_across = own[..., 1] + other[..., 0] * sin + other[..., 1] * cos
        return (np.abs(along) > reach_along) | (np.abs(across) > reach_across)

    return ~(apart(np.asarray(yaw_a, float), reach_a, reach_b) | apart(np.asarray(yaw_b, float), reach_b, reach_a))


class Footprints:
    """A growing set of rectangles that stand still."""

    def __init__(self) -> None:
        self._rows: list[tuple[float, float, float, float, float]] = []
        self._array = np.zeros((0, 5))

    def add(self, centre: Vector, yaw_rad: float, half: Vector) -> None:
        """Occupy one more rectangle."""
        self._rows.append((float(centre[0]), float(centre[1]), float(yaw_rad), float(half[0]), float(half[1])))
        self._array = np.asarray(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def copy(self) -> Footprints:
        """Another set with the same rectangles."""
        other = Footprints()
        other.extend(self, 0)
        return other

    def extend(self, other: Footprints, first: int) -> None:
        """Occupy the rectangles of another set as well, from its number ``first`` on."""
        self._rows += other._rows[first:]
        self._array = np.asarray(self._rows) if self._rows else np.zeros((0, 5))

    def hits(self, centre: ArrayLike, yaw_rad: ArrayLike, half: Vector) -> bool:
        """Whether a rectangle, or any of T placements (centre [T, 2], yaw [T]) of it, overlaps one of the set."""
        if not self._rows:
            return False
        centre = np.atleast_2d(np.asarray(centre, float))
        yaw = np.atleast_1d(np.asarray(yaw_rad, float))
        a = self._array
        near = (
            np.linalg.norm(a[None, :, :2] - centre[:, None], axis=-1)
            < np.hypot(*half) + np.hypot(a[:, 3], a[:, 4])[None]
        )
        t, n = np.nonzero(near)
        if not len(t):
            return False
        return bool(rectangles_overlap(centre[t], yaw[t], half, a[n, :2], a[n, 2], a[n, 3:]).any())
