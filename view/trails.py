"""Where tracks were: lines behind the boxes in the picture from above, a colour for each track.

Pixels of this file are canvas pixels of the double size (view/drawing.py); m keyframes of a track.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ImageDraw

from ..core.answers import NO_TRACK, Detections, SceneAnswer
from ..core.frames import Frame
from ..geometry import invert_pose, transform_points
from .colours import TRACK_COLOURS, Colour

TRAIL_S = 3.0
"""How far back a trail goes."""


def track_colour(track_id: int) -> Colour:
    """Of a track: the same in all keyframes; ids that are near one another differ."""
    return TRACK_COLOURS[track_id % len(TRACK_COLOURS)]


@dataclass(frozen=True)
class Trail:
    """The last places of one track."""

    track_id: int
    centre_global_m: NDArray[np.float64]
    """[m, 3], oldest first; the last is that of the keyframe itself."""


def trails_of(
    frame: Frame, detections: Detections | None, past: Iterable[tuple[Frame, Detections | None]], score_threshold: float
) -> list[Trail]:
    """The trails of the tracks that a keyframe's detections hold above the threshold.

    past: other keyframes in any order; those of the same scene in the TRAIL_S before the frame count, whatever the
    score there.
    """
    if detections is None or detections.track_ids is None:
        return []
    drawn = {int(own) for own in detections.track_ids[detections.scores >= score_threshold]} - {NO_TRACK}
    before = [
        (other, found)
        for other, found in past
        if other.scene_token == frame.scene_token and 0 < frame.timestamp_us - other.timestamp_us <= TRAIL_S * 1e6
    ]
    places: dict[int, list[NDArray[np.float64]]] = {}
    for other, found in [*sorted(before, key=lambda pair: pair[0].timestamp_us), (frame, detections)]:
        if found is None or found.track_ids is None:
            continue
        centres = transform_points(other.global_from_bev, np.asarray(found.boxes, np.float64)[:, :3])
        for own, centre in zip(found.track_ids.tolist(), centres):
            if own in drawn:
                places.setdefault(own, []).append(centre)
    return [Trail(own, np.stack(centres)) for own, centres in sorted(places.items())]


def read_trails(
    frame: Frame, frames: Sequence[Frame], answer_of: Callable[[Frame], SceneAnswer | None], score_threshold: float
) -> list[Trail]:
    """The trails of a keyframe, from the answers to those before it among ``frames``."""

    def boxes(one: Frame) -> Detections | None:
        answer = answer_of(one)
        return None if answer is None else answer.boxes

    now = boxes(frame)
    if now is None or now.track_ids is None:
        return []
    since_us = frame.timestamp_us - TRAIL_S * 1e6
    past = [f for f in frames if f.scene_token == frame.scene_token and since_us <= f.timestamp_us < frame.timestamp_us]
    return trails_of(frame, now, [(one, boxes(one)) for one in past], score_threshold)


def trails_above(
    draw: ImageDraw.ImageDraw,
    pixels: Callable[[NDArray[np.floating]], NDArray[np.float64]],
    trails: Sequence[Trail],
    frame: Frame,
    unit: float,
) -> None:
    """Draws trails into the picture from above: a line through the places, with a dot at each."""
    ego_from_global = invert_pose(frame.global_from_ego)
    for trail in trails:
        points = pixels(transform_points(ego_from_global, trail.centre_global_m))  # [m, 2]
        colour = track_colour(trail.track_id)
        if len(points) > 1:
            draw.line([tuple(point) for point in points], fill=colour, width=max(1, round(1.6 * unit)), joint="curve")
        for i, (x, y) in enumerate(points):
            radius = (2.6 if i == len(points) - 1 else 1.6) * unit
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
