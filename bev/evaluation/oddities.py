"""What a submission of boxes says that the benchmark accepts and the physical world does not.

The devkit scores a car at 500 m/s, or one that is wider than long; nobody means it. These are statements about the
whole file, printed as warnings: they never make a file invalid, since a poor model may say such things too. One is
certain, and is a broken rule: boxes that all lie a kilometre and more from their sample's car are in another frame.

Shapes: n boxes of all samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...core.frames import Frame
from ...core.physics import MAX_DISTANCE_M, MAX_SIZE_M, MAX_SPEED_MPS
from .nuscenes_boxes import ScoredBoxes

VEHICLES = ("car", "truck", "bus", "trailer")
"""Longer than wide, every one of them; construction vehicles need not be."""
FAR = "farther from their sample's car than"
MIN_COUNT = 20
"""Boxes from which on a share of them says something about the file."""


@dataclass(frozen=True)
class _All:
    token: NDArray[np.str_]  # [n]
    index: NDArray[np.int64]  # [n] in its sample
    name: NDArray[np.str_]  # [n]
    score: NDArray[np.float64]  # [n]
    size_lwh_m: NDArray[np.float64]  # [n, 3]
    speed_mps: NDArray[np.float64]  # [n]
    distance_m: NDArray[np.float64]  # [n] from the car, NaN where it is not known

    @classmethod
    def of(cls, boxes: Mapping[str, ScoredBoxes], frames: Iterable[Frame]) -> _All:
        car_m = {frame.token: frame.global_from_ego[:3, 3] for frame in frames}
        unknown = np.full(3, np.nan)
        held = {token: own for token, own in boxes.items() if len(own)}
        distance = [
            np.linalg.norm(own.centre_global_m - car_m.get(token, unknown), axis=1) for token, own in held.items()
        ]
        joined = lambda values, *shape: np.concatenate([np.zeros((0, *shape)), *values])
        return cls(
            np.array([token for token, own in held.items() for _ in own.names], dtype=str),
            np.array([i for own in held.values() for i in range(len(own))], dtype=np.int64),
            np.array([name for own in held.values() for name in own.names], dtype=str),
            joined([own.scores for own in held.values()]),
            joined([own.size_lwh_m for own in held.values()], 3),
            joined([np.hypot(*own.velocity_global_mps.T) for own in held.values()]),
            joined(distance),
        )


def oddities(boxes: Mapping[str, ScoredBoxes], frames: Iterable[Frame] = ()) -> list[str]:
    """One line for each kind of oddity, with its count and an example; [] where there is none.

    boxes: by sample token; frames: of the split, for the distance of boxes from their car.
    """
    found = _All.of(boxes, frames)
    length, width, longest = found.size_lwh_m[:, 0], found.size_lwh_m[:, 1], found.size_lwh_m.max(1, initial=0)
    lines = [
        *_beyond(found, found.speed_mps, MAX_SPEED_MPS, "m/s", "faster than", "velocity is in m/s"),
        *_beyond(found, longest, MAX_SIZE_M, "m", "larger than", "size is in metres"),
        *_beyond(found, found.distance_m, MAX_DISTANCE_M, "m", FAR, "translation is in the global frame"),
        *_beyond(found, found.score, 1.0, "", "of a score above", "scores are confidences from 0 to 1"),
    ]
    vehicles = np.isin(found.name, VEHICLES)
    wide = vehicles & (width > length)
    if vehicles.sum() >= MIN_COUNT and wide.sum() > vehicles.sum() / 2:
        counts = f"{wide.sum()} of {vehicles.sum()} vehicles"
        lines.append(f"{counts} are wider than long; size is width, length, height, in this order")
    return lines


def all_far_away(boxes: Mapping[str, ScoredBoxes], frames: Iterable[Frame]) -> str:
    """The broken rule where not one of MIN_COUNT boxes or more lies within MAX_DISTANCE_M of its car; else ''."""
    found = _All.of(boxes, frames)
    if len(found.name) < MIN_COUNT or not (found.distance_m > MAX_DISTANCE_M).all():
        return ""
    nearest = int(found.distance_m.argmin())
    return (
        f"all {len(found.name)} boxes lie farther than {MAX_DISTANCE_M:g} m from their sample's car, the nearest "
        f"{found.distance_m[nearest]:.0f} m (sample {found.token[nearest]}); give translations in the global frame"
    )


def _beyond(
    found: _All, values: NDArray[np.float64], limit: float, unit: str, comparison: str, meant: str
) -> Iterator[str]:
    """A line with the count and the worst example of ``values`` [n] above the limit, if there is any."""
    odd = values > limit
    if odd.any():
        worst = int(np.where(odd, values, -np.inf).argmax())
        example = f"sample {found.token[worst]}, box {found.index[worst]}: {found.name[worst]}, {values[worst]:.4g}"
        text = f"{odd.sum()} of {len(odd)} boxes are {comparison} {limit:g} {unit}".strip()
        yield f"{text} ({f'{example} {unit}'.strip()}); {meant}"
