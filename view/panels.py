"""The panels of a picture: one camera's image, and the scene from above.

Pixels of this file are canvas pixels of the double size (view/drawing.py); n points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..core.frames import CameraView, Frame
from ..geometry import CameraModel, invert_pose, transform_points
from .boxes import Drawn, boxes_above, boxes_in_camera, footprints_of, name_boxes, scores_above
from .colours import FAINT, LIDAR_COLOUR, PANEL, QUIET_TEXT, TEXT
from .drawing import Extent, Labels, View, letters, plain_letters
from .voxels import EGO_LENGTH_M, EGO_WIDTH_M

_MAX_COLUMNS = 4  # cameras in one row
_CAPTION_BEARING_RAD = math.radians(35)  # to the right of forward, where few lanes run
_LIDAR_HEIGHT_M = 4.0  # points above stay out of the picture: tree tops and bridges hide the street

CameraOverlay = Callable[[ImageDraw.ImageDraw, CameraView, CameraModel, Labels], None]
"""Draws more into a camera image; the camera is the one of the image as it is drawn."""
Pixels = Callable[[NDArray[np.floating]], NDArray[np.float64]]
"""Points [..., 2 or 3] of the EGO frame to pixels [..., 2] of the picture from above."""
BevOverlay = Callable[[Image.Image, Pixels, Labels], None]
"""Draws more into the picture from above."""


# ----------------------------------------------------------------------------------------------------- the cameras


def optical_axis(view: CameraView) -> NDArray[np.float64]:
    """[3] unit vector in the EGO frame, x forward."""
    return view.ego_from_camera[:3, 2]


def camera_rows(frame: Frame) -> list[list[CameraView]]:
    """The cameras as one stands in the car: those looking forwards left to right, then those looking backwards.

    The back row is not mirrored: left is the left side of the car, as in the nuScenes devkit's pictures. More than four
    that look one way stand in several rows.
    """
    rows: tuple[list[tuple[float, CameraView]], ...] = ([], [])
    for view in frame.cameras:
        axis = optical_axis(view)
        azimuth = math.atan2(axis[1], axis[0])
        rows[0 if axis[0] >= 0 else 1].append((-azimuth if axis[0] >= 0 else azimuth % (2 * math.pi), view))
    out = []
    for row in rows:
        ordered = [view for _, view in sorted(row, key=lambda entry: entry[0])]
        parts = math.ceil(len(ordered) / _MAX_COLUMNS)
        out += [ordered[i * len(ordered) // parts : (i + 1) * len(ordered) // parts] for i in range(parts)]
    return out


def camera_tile(
    frame: Frame,
    view: CameraView,
    image_bgr: NDArray[np.uint8],
    boxes: Sequence[Drawn],
    size: tuple[int, int],
    unit: float,
    named: Callable[[Drawn], bool],
    below: CameraOverlay | None = None,
    on_top: CameraOverlay | None = None,
) -> Image.Image:
    """A camera's image [H, W, 3] with boxes, centred in a picture of ``size``; ``unit``: width of a thin line.

    named: whose boxes get names. below, on_top: draw more, before the boxes and after them.
    """
    scale = min(size[0] / view.camera.width_px, size[1] / view.camera.height_px)
    inner = (max(1, round(view.camera.width_px * scale)), max(1, round(view.camera.height_px * scale)))
    smooth = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    image = Image.fromarray(cv2.cvtColor(cv2.resize(image_bgr, inner, interpolation=smooth), cv2.COLOR_BGR2RGB))
    camera = view.camera.resized(*inner)
    draw = ImageDraw.Draw(image, "RGBA")
    labels = Labels(draw, unit)
    if below is not None:
        below(draw, view, camera, labels)
    camera_from_bev = invert_pose(frame.bev_from_camera(view))
    in_sight = [(drawn, boxes_in_camera(draw, camera, camera_from_bev, drawn, unit)) for drawn in boxes]
    labels.beside((4 * unit, 3 * unit, 4 * unit, 3 * unit), plain_letters(view.name), TEXT, letters(13, unit))
    if on_top is not None:
        on_top(draw, view, camera, labels)
    for drawn, extents in in_sight:
        if named(drawn):
            name_boxes(labels, drawn, extents, unit)
    tile = Image.new("RGB", size, PANEL)
    tile.paste(image, ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2))
    return tile


# ------------------------------------------------------------------------------------------------------ from above


def bev_panel(
    frame: Frame,
    lidar_points: NDArray[np.float64],
    boxes: Sequence[Drawn],
    size: tuple[int, int],
    view: View,
    unit: float,
    below: BevOverlay | None = None,
    on_top: BevOverlay | None = None,
) -> Image.Image:
    """The EGO frame from above, ``view.range_m`` ahead and behind: forward (x) is up, left (y) is left.

    lidar_points: [n, 3], BEV frame. below, on_top: draw more, between the LiDAR's points and the boxes, and over the
    boxes.
    """
    panel = Image.new("RGB", size, PANEL)
    pixels_per_m = size[1] / (2 * view.range_m)
    middle_px = np.array(size) / 2

    def pixels(points_ego: NDArray[np.floating]) -> NDArray[np.float64]:
        return middle_px - np.asarray(points_ego, np.float64)[..., [1, 0]] * pixels_per_m

    _draw_lidar(panel, transform_points(frame.ego_from_bev, lidar_points), pixels)
    draw = ImageDraw.Draw(panel, "RGBA")
    labels = Labels(draw, unit)
    captions = _draw_rings(draw, pixels, view.range_m, unit)
    if below is not None:
        below(panel, pixels, labels)
    _draw_car(draw, pixels)
    for place, _ in captions:
        labels.reserve(place)
    footprints = [pixels(footprints_of(drawn, frame.ego_from_bev)) for drawn in boxes]
    for drawn, corners in zip(boxes, footprints):
        boxes_above(draw, corners, drawn, unit)
    if on_top is not None:
        on_top(panel, pixels, labels)
    for drawn, corners in zip(boxes, footprints):
        scores_above(labels, corners, drawn, unit)
    for place, text in captions:  # last, on a plate: rings, lanes and boxes lie below
        draw.rectangle(place, fill=(*PANEL, 215))
        middle = (place[0] + place[2]) / 2, (place[1] + place[3]) / 2
        draw.text(middle, text, fill=(*TEXT, 255), font=letters(9.5, unit), anchor="mm")
    draw.text((8 * unit, 6 * unit), "from above, forward is up", fill=QUIET_TEXT, font=letters(11, unit))
    return panel


def _draw_rings(draw: ImageDraw.ImageDraw, pixels: Pixels, range_m: float, unit: float) -> list[tuple[Extent, str]]:
    """Rings every 10 m; where their captions belong, and what they say."""
    captions = []
    font = letters(9.5, unit)
    for radius_m in range(10, int(range_m) + 1, 10):
        (left, top), (right, bottom) = pixels(np.array([[radius_m, radius_m], [-radius_m, -radius_m]]))
        draw.ellipse((left, top, right, bottom), outline=(*FAINT, 255), width=max(1, round(0.8 * unit)))
        bearing = np.array([math.cos(_CAPTION_BEARING_RAD), -math.sin(_CAPTION_BEARING_RAD)])
        x, y = pixels(radius_m * bearing)
        text = f"{radius_m} m"
        half = draw.textbbox((0, 0), text, font=font, anchor="mm")
        place = (x + half[0] - 2 * unit, y + half[1] - 2 * unit, x + half[2] + 2 * unit, y + half[3] + 2 * unit)
        captions.append((place, text))
    return captions


def _draw_car(draw: ImageDraw.ImageDraw, pixels: Pixels) -> None:
    corners = np.array([[EGO_LENGTH_M, EGO_WIDTH_M], [EGO_LENGTH_M, -EGO_WIDTH_M]]) / 2
    corners = np.concatenate([corners + [1.0, 0], (-corners + [1.0, 0])])  # the ego frame sits on the rear axle
    draw.polygon([tuple(p) for p in pixels(corners)], fill=(*TEXT, 255))
    arrow = pixels(np.array([[2.6, 0.0], [1.2, 0.5], [1.2, -0.5]]))
    draw.polygon([tuple(p) for p in arrow], fill=(*PANEL, 255))


def _draw_lidar(panel: Image.Image, points_ego: NDArray[np.float64], pixels: Pixels) -> None:
    """Points [n, 3] as faint dots, for orientation."""
    uv = np.round(pixels(points_ego)).astype(int)
    inside = ((uv >= 0) & (uv < np.subtract(panel.size, 1))).all(1) & (points_ego[:, 2] < _LIDAR_HEIGHT_M)
    image = np.asarray(panel).copy()
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        image[uv[inside, 1] + dy, uv[inside, 0] + dx] = LIDAR_COLOUR
    panel.paste(Image.fromarray(image))
