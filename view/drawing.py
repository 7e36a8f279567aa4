"""What pictures of keyframes are made of: colours, letters, boxes in a camera and from above.

Everything is drawn at twice the size and averaged down, which is what makes the lines smooth.
Pixels of this file are canvas pixels of the double size unless a name says otherwise; n boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..core.answers import Detections
from ..core.errors import DataError
from ..core.frames import CameraView, Frame
from ..geometry import PinholeCamera, box_corners, box_corners_bev, invert_pose, transform_boxes, transform_points

Colour = tuple[int, int, int]
Extent = tuple[float, float, float, float]  # left, top, right, bottom

CLASS_COLOURS: Mapping[str, Colour] = {
    "car": (255, 159, 28),
    "truck": (255, 95, 60),
    "bus": (255, 61, 129),
    "trailer": (205, 133, 80),
    "construction_vehicle": (240, 205, 120),
    "pedestrian": (74, 144, 255),
    "motorcycle": (199, 125, 255),
    "bicycle": (0, 213, 255),
    "traffic_cone": (255, 236, 60),
    "barrier": (176, 182, 200),
}
"""Green is left for the ground truth."""

GROUND_TRUTH: Colour = (57, 230, 95)
BACKGROUND: Colour = (18, 21, 26)
PANEL: Colour = (26, 30, 37)
FAINT: Colour = (66, 73, 86)
TEXT: Colour = (226, 230, 236)
QUIET_TEXT: Colour = (150, 158, 172)

OVERSAMPLING = 2
NEAR_M = 0.2
EGO_LENGTH_M, EGO_WIDTH_M = 4.1, 1.7  # Renault Zoe, the nuScenes car

# Corner numbers as drawn in geometry.box_corners.
_EDGES = ((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7))
_FRONT_FACE = (0, 1, 5, 4)


@dataclass(frozen=True)
class View:
    """How to draw."""

    score_threshold: float = 0.3
    """Predictions below stay invisible."""
    camera_width_px: int = 560
    """Width of one camera image in the finished picture."""
    range_m: float = 52.0
    """Half the side of the area seen from above."""
    ground_truth: bool = True
    """Draw labels where the frame has them (objects with at least one LiDAR or radar point)."""


CameraOverlay = Callable[[ImageDraw.ImageDraw, CameraView, PinholeCamera], None]
"""Draws more into a camera image; the camera is the one of the image as it is drawn."""


@dataclass(frozen=True)
class Drawn:
    """Boxes [n, 9] of the BEV frame that go into the picture, far ones first."""

    boxes: NDArray[np.float64]
    names: list[str]
    scores: NDArray[np.float64] | None

    @staticmethod
    def of(boxes: NDArray[np.float64], names: Sequence[str], scores: NDArray[np.float64] | None) -> Drawn:
        order = np.argsort(-np.hypot(boxes[:, 0], boxes[:, 1]))
        return Drawn(boxes[order], [names[i] for i in order], None if scores is None else scores[order])


def labelled_boxes(frame: Frame, view: View) -> Drawn:
    labels = frame.annotations
    if labels is None or not view.ground_truth:
        return Drawn(np.zeros((0, 9)), [], None)
    seen = (np.asarray(labels.num_lidar_points) + np.asarray(labels.num_radar_points)) > 0
    keep = np.flatnonzero(seen & np.array([bool(name) for name in labels.names], dtype=bool))
    return Drawn.of(frame.bev_boxes()[keep], [labels.names[i] for i in keep], None)


def predicted_boxes(detections: Detections | None, class_names: Sequence[str], view: View) -> Drawn:
    if detections is None:
        return Drawn(np.zeros((0, 9)), [], np.zeros(0))
    keep = np.flatnonzero(np.asarray(detections.scores) >= view.score_threshold)
    names = [class_names[label] for label in np.asarray(detections.labels)[keep]]
    boxes = np.asarray(detections.boxes, dtype=np.float64)[keep]
    return Drawn.of(boxes, names, np.asarray(detections.scores, dtype=np.float64)[keep])


def class_colour(name: str) -> Colour:
    return CLASS_COLOURS.get(name, (255, 255, 255))


@lru_cache(maxsize=64)
def font_of(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


# ---------------------------------------------------------------------------------------------------- one camera


def load_image(frame: Frame, view: CameraView, size: tuple[int, int]) -> Image.Image:
    """A camera's image at ``size``. Raises DataError if it is missing or unreadable."""
    try:
        with Image.open(view.image_path) as image:
            image.draft("RGB", size)  # JPEG decodes straight to a smaller size
            return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    except OSError as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise DataError(
            f"sample {frame.token}, camera {view.name}: image {view.image_path} {reason}; check the data root"
        ) from error


def camera_tile(
    frame: Frame,
    view: CameraView,
    truth: Drawn,
    found: Drawn,
    size: tuple[int, int],
    unit: float,
    below: CameraOverlay | None = None,
    on_top: CameraOverlay | None = None,
) -> Image.Image:
    """A camera's image with its boxes, centred in a picture of ``size``; ``unit``: width of a thin line.

    below, on_top: draw more, before the boxes and after them.
    Raises DataError if the image is missing or unreadable.
    """
    scale = min(size[0] / view.camera.width_px, size[1] / view.camera.height_px)
    inner = (round(view.camera.width_px * scale), round(view.camera.height_px * scale))
    image = load_image(frame, view, inner)
    camera = view.camera.resized(*inner)
    draw = ImageDraw.Draw(image, "RGBA")
    if below is not None:
        below(draw, view, camera)
    camera_from_bev = invert_pose(frame.bev_from_camera(view))
    tags = []
    for drawn in (found, truth):
        for i in range(len(drawn.boxes)):
            corners = transform_points(camera_from_bev, box_corners(drawn.boxes[i : i + 1, :7])[0])  # [8, 3]
            extent = _draw_box(draw, camera.intrinsics, corners, inner, drawn, i, unit)
            if extent is not None and drawn.scores is not None and extent[3] - extent[1] > 14 * unit:
                text = f"{drawn.names[i].replace('_', ' ')} {drawn.scores[i]:.2f}"
                tags.append(((max(extent[0], 0), max(extent[1] - 13 * unit, 0)), text, class_colour(drawn.names[i])))
    taken = [draw_tag(draw, (6 * unit, 5 * unit), view.name, TEXT, 13 * unit, unit, [])]
    for at, text, colour in reversed(tags):  # the nearest objects get their names first
        taken.append(draw_tag(draw, at, text, colour, 9.5 * unit, unit, taken))
    if on_top is not None:
        on_top(draw, view, camera)
    tile = Image.new("RGB", size, PANEL)
    tile.paste(image, ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2))
    return tile


def clip_near(polygon: NDArray[np.float64], near_m: float = NEAR_M) -> NDArray[np.float64]:
    """The part of a closed polygon (or segment) [k, 3] of the camera frame with depth >= near_m: [m, 3], m may be 0."""
    kept = []
    for a, b in zip(polygon, np.roll(polygon, -1, axis=0)):
        if a[2] >= near_m:
            kept.append(a)
        if (a[2] >= near_m) != (b[2] >= near_m):
            kept.append(a + (near_m - a[2]) / (b[2] - a[2]) * (b - a))
    return np.array(kept).reshape(-1, 3)


def _draw_box(
    draw: ImageDraw.ImageDraw,
    intrinsics: NDArray[np.float64],
    corners: NDArray[np.float64],
    size: tuple[int, int],
    drawn: Drawn,
    index: int,
    unit: float,
) -> Extent | None:
    """Draws one box of corners [8, 3] in the camera frame; its extent in the image, or None if out of sight."""
    if corners[:, 2].max() < NEAR_M or corners[:, 2].mean() < 0:
        return None

    def pixels(points: NDArray[np.float64]) -> list[tuple[float, float]]:
        uvw = clip_near(points) @ intrinsics.T
        return [(u / w, v / w) for u, v, w in uvw]

    segments = [pixels(corners[list(edge)])[:2] for edge in _EDGES]
    ends = np.array([point for segment in segments for point in segment]).reshape(-1, 2)
    left, top = ends.min(0)
    right, bottom = ends.max(0)
    if right < 0 or bottom < 0 or left > size[0] or top > size[1]:
        return None
    predicted = drawn.scores is not None
    colour = class_colour(drawn.names[index]) if predicted else GROUND_TRUTH
    front = pixels(corners[list(_FRONT_FACE)])
    if len(front) >= 3:
        draw.polygon(front, fill=(*colour, 90 if predicted else 45))
    stroke = max(1, round((2.0 if predicted else 1.0) * unit))
    for segment in segments:
        if len(segment) == 2:
            draw.line(segment, fill=(*colour, 255), width=stroke)
    nose = corners[[0, 1]].mean(0)  # where the heading leaves the floor of the box
    heading = pixels(np.stack([corners[:4].mean(0), nose]))[:2]
    if len(heading) == 2:
        draw.line(heading, fill=(*colour, 255), width=stroke)
    return left, top, right, bottom


def draw_tag(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    colour: Colour,
    size: float,
    unit: float,
    taken: list[Extent | None],
    plate: bool = True,
) -> Extent | None:
    """Text on a dark, translucent plate; nothing where it would cover one of the ``taken`` places."""
    font = font_of(size)
    left, top, right, bottom = draw.textbbox(at, text, font=font)
    pad = 2 * unit
    place = (left - pad, top - pad, right + pad, bottom + pad)
    for other in taken:
        if other and place[0] < other[2] and other[0] < place[2] and place[1] < other[3] and other[1] < place[3]:
            return None
    if plate:
        draw.rectangle(place, fill=(0, 0, 0, 150))
    draw.text(at, text, fill=(*colour, 255), font=font)
    return place


# ------------------------------------------------------------------------------------------------------ from above


Pixels = Callable[[NDArray[np.floating]], NDArray[np.float64]]
"""Points [..., 2 or 3] of the ego frame to pixels [..., 2] of the picture from above."""
BevOverlay = Callable[[Image.Image, Pixels], None]
"""Draws more into the picture from above."""


def bev_panel(
    frame: Frame,
    truth: Drawn,
    found: Drawn,
    size: tuple[int, int],
    view: View,
    unit: float,
    below: BevOverlay | None = None,
    on_top: BevOverlay | None = None,
) -> Image.Image:
    """The ego frame from above, ``view.range_m`` ahead and behind: forward (x) is up, left (y) is left.

    below, on_top: draw more, between the LiDAR's points and the boxes, and over the boxes.
    """
    panel = Image.new("RGB", size, PANEL)
    draw = ImageDraw.Draw(panel, "RGBA")
    pixels_per_m = size[1] / (2 * view.range_m)
    middle_px = np.array(size) / 2

    def pixels(points_ego: NDArray[np.floating]) -> NDArray[np.float64]:
        return middle_px - np.asarray(points_ego, np.float64)[..., [1, 0]] * pixels_per_m

    _draw_lidar(panel, frame, pixels)
    for radius_m in range(10, int(view.range_m) + 1, 10):
        r = radius_m * pixels_per_m
        box = (*(middle_px - r), *(middle_px + r))
        draw.ellipse(box, outline=(*FAINT, 255), width=max(1, round(0.8 * unit)))
        at = (middle_px[0] + 3 * unit, middle_px[1] - r + 2 * unit)
        draw.text(at, f"{radius_m} m", fill=QUIET_TEXT, font=font_of(9.5 * unit))
    if below is not None:
        below(panel, pixels)
    ego = np.array([[EGO_LENGTH_M, EGO_WIDTH_M], [EGO_LENGTH_M, -EGO_WIDTH_M]]) / 2
    ego = np.concatenate([ego + [1.0, 0], (-ego + [1.0, 0])])  # the ego frame sits on the rear axle
    draw.polygon([tuple(p) for p in pixels(ego)], fill=(*TEXT, 255))
    arrow = pixels(np.array([[2.6, 0.0], [1.2, 0.5], [1.2, -0.5]]))
    draw.polygon([tuple(p) for p in arrow], fill=(*PANEL, 255))

    taken: list[Extent | None] = []
    for drawn in (found, truth):
        predicted = drawn.scores is not None
        boxes = transform_boxes(frame.ego_from_bev, drawn.boxes)
        footprints = pixels(box_corners_bev(boxes)) if len(boxes) else []
        for i, footprint in enumerate(footprints):
            colour = class_colour(drawn.names[i]) if predicted else GROUND_TRUTH
            outline = [tuple(p) for p in footprint]
            if predicted:
                draw.polygon(outline, fill=(*colour, 70))
            stroke = max(1, round((1.8 if predicted else 1.0) * unit))
            draw.line([*outline, outline[0]], fill=(*colour, 255), width=stroke, joint="curve")
            middle, nose = footprint.mean(0), footprint[:2].mean(0)
            draw.line([tuple(middle), tuple(nose + (nose - middle) * 0.25)], fill=(*colour, 255), width=stroke)
            if predicted:
                at = (footprint[:, 0].max() + 2 * unit, footprint[:, 1].mean() - 5 * unit)
                taken.append(draw_tag(draw, at, f"{drawn.scores[i]:.2f}", colour, 8 * unit, unit, taken, plate=False))
    if on_top is not None:
        on_top(panel, pixels)
    draw.text((8 * unit, 6 * unit), "from above, forward is up", fill=QUIET_TEXT, font=font_of(11 * unit))
    return panel


def _draw_lidar(panel: Image.Image, frame: Frame, pixels: Pixels) -> None:
    """The sweep as faint dots, for orientation; nothing where there is none."""
    if not frame.lidar_path or not Path(frame.lidar_path).is_file():
        return
    points = np.fromfile(frame.lidar_path, dtype=np.float32)
    points = points[: len(points) // 5 * 5].reshape(-1, 5)[:, :3].astype(np.float64)  # nuScenes: x y z intensity ring
    points = transform_points(frame.ego_from_bev, points)
    uv = np.round(pixels(points)).astype(int)
    inside = ((uv >= 0) & (uv < np.subtract(panel.size, 1))).all(1) & (points[:, 2] < 4)
    image = np.asarray(panel).copy()
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        image[uv[inside, 1] + dy, uv[inside, 0] + dx] = (84, 94, 110)
    panel.paste(Image.fromarray(image))
