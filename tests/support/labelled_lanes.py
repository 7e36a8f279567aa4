"""A frame with three lanes, two of them connected, and two traffic elements; and predictions that are all right."""

from __future__ import annotations

import numpy as np

from drivestack.core.answers import LaneGraph
from drivestack.core.frames import Frame
from drivestack.core.labels import LaneLabels


def labels(shift_m: float) -> LaneLabels:
    """Two lanes that follow each other and one beside them, a red light and a sign."""
    x = np.linspace(-30, 0, 11)
    line = lambda start, y: np.stack([x + 30 + start, np.full(11, y), np.zeros(11)], -1).astype(np.float32)
    return LaneLabels(
        [line(-30, shift_m), line(0, shift_m), line(-10, shift_m + 4)],
        np.array([False, True, False]),
        np.array([[10, 10, 30, 60], [100, 20, 130, 50]], np.float32),
        np.array([1, 6]),
        np.array([[0, 1, 0], [0, 0, 0], [0, 0, 0]], np.int8),
        np.array([[1, 0], [0, 1], [0, 0]], np.int8),
    )


def frame(token: str, shift_m: float = 0.0) -> Frame:
    identity = np.eye(4)
    return Frame(token, "scene", "scene", 0, (), identity, identity, lanes=labels(shift_m))


def perfect(own: Frame) -> LaneGraph:
    truth = own.lanes
    return LaneGraph(
        own.token,
        np.stack(truth.centrelines),
        np.array([0.9, 0.8, 0.7], np.float32),
        truth.elements_xyxy_px,
        truth.attributes,
        np.array([0.9, 0.8], np.float32),
        truth.lane_lane.astype(np.float32),
        truth.lane_element.astype(np.float32),
    )
