"""What of a street map lies around the car, as off as real maps are: an input of the lane head.

Shapes: s lines, P points of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ...core.errors import ConfigError
from ...core.frames import Frame
from ...core.street_maps import StreetLines, StreetMap
from ...geometry import yaw_of

SHOWN = ("own", "other_scene", "none")
_STEP_M = 0.1
_MIN_LENGTH_M = 2.0


@dataclass(frozen=True)
class StreetMapSettings:
    """How a frame's street map becomes an input (``ClipDataset.street_map``).

    In training the map is moved as a whole by a random shift and turn, since real ones are off by metres and poses are
    not exact, and left out of some samples, so that the model does without. At test time it is as the data have it,
    unless ``test_jitter_m`` or ``shown`` says otherwise: what a wrong or missing map costs.
    """

    jitter_m: float = 2.0
    """Standard deviation of the shift along x and along y in training."""
    jitter_deg: float = 2.0
    """Of the turn about the car."""
    dropped: float = 0.3
    """Share of the training samples that get no map."""
    test_jitter_m: float = 0.0
    """As ``jitter_m``, at test time; drawn from the dataset's seed and the sample."""
    shown: str = "own"
    """At test time: the map of the sample's "own" scene, of an "other_scene", or "none"."""
    range_m: tuple[float, float, float, float] = (-50.0, -25.0, 50.0, 25.0)
    """x and y from, x and y to in the EGO frame, where lines are cut off."""
    num_points: int = 11

    def __post_init__(self) -> None:
        if self.shown not in SHOWN:
            raise ConfigError(f"street_map.shown must be one of {', '.join(SHOWN)}, got {self.shown!r}")


def lines_around(
    streets: StreetMap, global_from_ego: NDArray[np.float64], settings: StreetMapSettings, jitter: NDArray[np.float64]
) -> StreetLines:
    """The map around the car; jitter: (x, y, yaw) by which it is moved in the EGO frame, metres and radians.

    A street that leaves the range and comes back is two lines; those shorter than 2 m are left out. Lines run with
    growing x, those across with growing y.
    """
    # in the plane: with the car's tilt, coordinates of 100 km would move the map by metres
    car, yaw = global_from_ego[:2, 3], float(yaw_of(global_from_ego[:3, :3]))
    x_min, y_min, x_max, y_max = settings.range_m
    lines, kinds = [], []
    for line, kind in zip(streets.lines, streets.kinds):
        points = _turned(line - car, jitter[2] - yaw) + jitter[:2]
        dense = _evenly(points, max(2, round(_length_m(points) / _STEP_M) + 1))
        inside = ((dense >= (x_min, y_min)) & (dense <= (x_max, y_max))).all(1)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], inside.astype(int), [0]])))
        for first, stop in edges.reshape(-1, 2):
            piece = dense[first:stop]
            if len(piece) > 1 and _length_m(piece) >= _MIN_LENGTH_M:
                lines.append(_evenly(in_order(piece), settings.num_points))
                kinds.append(int(kind))
    stacked = np.array(lines, np.float32).reshape(-1, settings.num_points, 2)
    return StreetLines(torch.from_numpy(stacked), torch.tensor(kinds, dtype=torch.long))


def training_lines(frame: Frame, settings: StreetMapSettings, rng: np.random.Generator) -> StreetLines | None:
    """Of a training sample; None where it has no map, or its map is left out."""
    left_out = rng.random() < settings.dropped
    spread = [settings.jitter_m, settings.jitter_m, np.deg2rad(settings.jitter_deg)]
    jitter = rng.normal(size=3) * spread
    if frame.street_map is None or left_out:
        return None
    return lines_around(frame.street_map, frame.global_from_ego, settings, jitter)


def lines_to_show(
    frames: Sequence[Frame], index: int, settings: StreetMapSettings, rng: np.random.Generator
) -> StreetLines | None:
    """Of a frame at test time, see ``StreetMapSettings``.

    Raises ConfigError where another scene's map is wanted and the frames are all of one scene.
    """
    frame = frames[index]
    jitter = np.array([*rng.normal(size=2) * settings.test_jitter_m, 0.0])
    if settings.shown == "other_scene":
        frame = _of_other_scene(frames, index)
    if frame.street_map is None or settings.shown == "none":
        return None
    return lines_around(frame.street_map, frame.global_from_ego, settings, jitter)


def _of_other_scene(frames: Sequence[Frame], index: int) -> Frame:
    """The first frame from half the list on that is of another scene: its map around its own car."""
    for step in range(len(frames)):
        other = frames[(index + len(frames) // 2 + step) % len(frames)]
        if other.scene_token != frames[index].scene_token:
            return other
    raise ConfigError("street_map.shown 'other_scene': all frames are of one scene; give a data set of more")


def in_order(line: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points [n, 2] of a line, EGO frame, in the order that ``lines_around`` promises."""
    ahead, left = line[-1] - line[0]
    return line if (ahead if abs(ahead) > 1.0 else left) >= 0 else line[::-1]


def _turned(points: NDArray[np.float64], yaw_rad: float) -> NDArray[np.float64]:
    cos, sin = np.cos(yaw_rad), np.sin(yaw_rad)
    return points @ np.array([[cos, sin], [-sin, cos]])


def _length_m(line: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(np.diff(line, axis=0), axis=1).sum())


def _evenly(line: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """[count, 2] at even distances along the line."""
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    at = np.linspace(0, along[-1], count)
    return np.stack([np.interp(at, along, line[:, axis]) for axis in range(2)], 1)
