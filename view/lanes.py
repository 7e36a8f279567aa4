"""Pictures of lanes and their topology, seen from above."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

RANGE_M = (-50.0, -25.0, 50.0, 25.0)
_BACKGROUND, _AREA = (250, 250, 250), (232, 230, 222)
_GRID = (225, 225, 225)
_LANE, _CONNECTOR, _EDGE, _CAR = (40, 90, 200), (230, 120, 20), (20, 150, 60), (60, 60, 60)


def draw_lanes(
    lines: Sequence[NDArray[np.floating]],
    lane_lane: NDArray[np.floating],
    is_connector: NDArray[np.bool_] | None = None,
    px_per_m: int = 12,
    areas: Sequence[NDArray[np.floating]] = (),
) -> NDArray[np.uint8]:
    """RGB picture [H, W, 3] of lanes [points, 3] in the EGO frame, forward to the right.

    Lanes are blue, inside intersections orange, each with an arrow in its middle; a green dot where the end of one lane
    connects to the start of another (lane_lane [n, n] above 0.5). areas: outlines [points, 2 or 3] filled in grey, such
    as the drivable areas of a map.
    """
    x0, y0, x1, y1 = RANGE_M
    image = np.full((round((y1 - y0) * px_per_m), round((x1 - x0) * px_per_m), 3), _BACKGROUND, np.uint8)

    def pixels(points: NDArray[np.floating]) -> NDArray[np.int32]:
        points = np.asarray(points, np.float64)
        return np.round(np.stack([points[..., 0] - x0, y1 - points[..., 1]], -1) * px_per_m).astype(np.int32)

    def grid_line(ends_m: list[list[float]]) -> None:
        (left, top), (right, bottom) = pixels(np.array(ends_m)).tolist()
        cv2.line(image, (left, top), (right, bottom), _GRID, 1)

    for area in areas:
        cv2.fillPoly(image, [pixels(np.asarray(area)[:, :2])], _AREA)
    for metres in range(-40, 50, 10):
        grid_line([[metres, y0], [metres, y1]])
    for metres in range(-20, 30, 10):
        grid_line([[x0, metres], [x1, metres]])
    for i, line in enumerate(lines):
        colour = _CONNECTOR if is_connector is not None and is_connector[i] else _LANE
        path = pixels(line)
        cv2.polylines(image, [path], False, colour, 2, cv2.LINE_AA)
        middle = len(path) // 2
        behind = np.asarray(line[middle]) - np.asarray(line[max(middle - 1, 0)])
        length = float(np.linalg.norm(behind[:2]))
        if length > 0:
            tip = pixels(line[middle] + behind / length)
            cv2.arrowedLine(image, path[middle].tolist(), tip.tolist(), colour, 2, cv2.LINE_AA, tipLength=0.8)
    for i, _ in np.argwhere(np.asarray(lane_lane) > 0.5):
        cv2.circle(image, pixels(lines[i][-1]).tolist(), 4, _EDGE, -1, cv2.LINE_AA)
    car = pixels(np.array([[-1.0, -1.0], [3.5, 1.0]]))
    cv2.rectangle(image, car[0].tolist(), car[1].tolist(), _CAR, 2)
    return image
