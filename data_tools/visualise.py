"""Pictures of a keyframe: boxes in every camera and from above, ground truth beside prediction; and clips of them.

Everything is drawn at twice the size and averaged down, which is what makes the lines smooth.
Pixels of this file are canvas pixels of the double size unless a name says otherwise; n boxes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..errors import DataError
from ..files import atomic_path
from ..geometry import box_corners, box_corners_bev, invert_pose, transform_boxes, transform_points
from ..structures import CameraView, Detections, Frame

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


@dataclass(frozen=True)
class _Drawn:
    """Boxes [n, 9] of the LIDAR frame that go into the picture, far ones first."""

    boxes: NDArray[np.float64]
    names: list[str]
    scores: NDArray[np.float64] | None

    @staticmethod
    def of(boxes: NDArray[np.float64], names: Sequence[str], scores: NDArray[np.float64] | None) -> _Drawn:
        order = np.argsort(-np.hypot(boxes[:, 0], boxes[:, 1]))
        return _Drawn(boxes[order], [names[i] for i in order], None if scores is None else scores[order])


def render_frame(
    frame: Frame, detections: Detections | None, class_names: Sequence[str], view: View | None = None
) -> Image.Image:
    """One picture: the cameras in rows (front row above back row), the scene from above, title and legend.

    detections: predictions in the LIDAR frame, labels indexing ``class_names``; None draws ground truth alone.
    Raises DataError if an image of the frame is missing or unreadable.
    """
    view = view or View()
    truth = _ground_truth(frame, view)
    found = _predictions(detections, class_names, view)
    unit = OVERSAMPLING * view.camera_width_px / 560  # all strokes and letters scale with the picture
    rows = camera_rows(frame)
    columns = max(len(row) for row in rows)
    tile_width = OVERSAMPLING * view.camera_width_px
    tile_height = max(round(tile_width * v.camera.height_px / v.camera.width_px) for v in frame.cameras)
    gap, bar = round(4 * unit), round(34 * unit)
    height = len(rows) * (tile_height + gap) - gap
    width = columns * (tile_width + gap) + height

    canvas = Image.new("RGB", (width + 2 * gap, height + 2 * bar), BACKGROUND)
    for j, row in enumerate(rows):
        for i, camera_view in enumerate(row):
            tile = _camera_tile(frame, camera_view, truth, found, (tile_width, tile_height), unit)
            left = gap + (columns - len(row)) * (tile_width + gap) // 2 + i * (tile_width + gap)
            canvas.paste(tile, (left, bar + j * (tile_height + gap)))
    canvas.paste(_bev_panel(frame, truth, found, height, view, unit), (gap + columns * (tile_width + gap), bar))
    counts = [f"{len(truth.boxes)} labelled"] if len(truth.boxes) else []
    counts += [f"{len(found.boxes)} predicted"] if detections is not None else []
    _title(canvas, frame, "    ".join(counts), bar, gap, unit)
    _legend(canvas, truth, found, view, bar, gap, unit)
    return canvas.reduce(OVERSAMPLING)


def camera_rows(frame: Frame) -> list[list[CameraView]]:
    """The cameras as one stands in the car: those looking forwards left to right, then those looking backwards.

    The back row is not mirrored: left is the left side of the car, as in the nuScenes devkit's pictures.
    """
    rows: tuple[list[tuple[float, CameraView]], ...] = ([], [])
    for view in frame.cameras:
        axis = (frame.ego_from_lidar @ view.lidar_from_camera)[:3, 2]  # optical axis in the ego frame (x forward)
        azimuth = math.atan2(axis[1], axis[0])
        rows[0 if axis[0] >= 0 else 1].append((-azimuth if axis[0] >= 0 else azimuth % (2 * math.pi), view))
    return [[view for _, view in sorted(row, key=lambda entry: entry[0])] for row in rows if row]


def save_picture(picture: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write a PNG or JPEG, by the suffix, atomically."""
    with atomic_path(path) as temporary:
        picture.save(temporary)


def render_clip(
    frames: Iterable[Frame],
    detections_by_token: Mapping[str, Detections],
    class_names: Sequence[str],
    path: str | os.PathLike[str],
    view: View | None = None,
    seconds_per_frame: float = 0.5,
) -> None:
    """Keyframes one after the other as an animated ``.gif`` or an ``.mp4`` (the latter through OpenCV).

    Raises DataError for another suffix, no frames, or an image that cannot be read.
    """
    path = Path(path)
    if path.suffix not in (".gif", ".mp4"):
        raise DataError(f"cannot write a clip to {path}: name it .gif or .mp4")
    view = view or View(camera_width_px=360)
    pictures = [render_frame(f, detections_by_token.get(f.token), class_names, view) for f in frames]
    if not pictures:
        raise DataError(f"no frames to draw for {path}; check scene and split")
    with atomic_path(path) as temporary:
        if path.suffix == ".mp4":
            _write_mp4(pictures, temporary, 1 / seconds_per_frame)
        else:
            palette = [p.quantize(192, dither=Image.Dither.NONE) for p in pictures]
            milliseconds = round(1000 * seconds_per_frame)
            palette[0].save(temporary, save_all=True, append_images=palette[1:], duration=milliseconds, loop=0)


def _write_mp4(pictures: list[Image.Image], path: Path, frames_per_second: float) -> None:
    import cv2  # carries its own ffmpeg

    width, height = (side // 2 * 2 for side in pictures[0].size)  # the codec wants even sides
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), frames_per_second, (width, height))
    if not writer.isOpened():
        raise DataError("this OpenCV cannot write mp4; name the clip .gif")
    for picture in pictures:
        writer.write(np.ascontiguousarray(np.asarray(picture)[:height, :width, ::-1]))
    writer.release()


def _ground_truth(frame: Frame, view: View) -> _Drawn:
    labels = frame.annotations
    if labels is None or not view.ground_truth:
        return _Drawn(np.zeros((0, 9)), [], None)
    seen = (np.asarray(labels.num_lidar_points) + np.asarray(labels.num_radar_points)) > 0
    keep = np.flatnonzero(seen & np.array([bool(name) for name in labels.names], dtype=bool))
    return _Drawn.of(frame.lidar_boxes()[keep], [labels.names[i] for i in keep], None)


def _predictions(detections: Detections | None, class_names: Sequence[str], view: View) -> _Drawn:
    if detections is None:
        return _Drawn(np.zeros((0, 9)), [], np.zeros(0))
    keep = np.flatnonzero(np.asarray(detections.scores) >= view.score_threshold)
    names = [class_names[label] for label in np.asarray(detections.labels)[keep]]
    boxes = np.asarray(detections.boxes, dtype=np.float64)[keep]
    return _Drawn.of(boxes, names, np.asarray(detections.scores, dtype=np.float64)[keep])


def _colour(name: str) -> Colour:
    return CLASS_COLOURS.get(name, (255, 255, 255))


def _font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


# ---------------------------------------------------------------------------------------------------- one camera


def _load_image(frame: Frame, view: CameraView, size: tuple[int, int]) -> Image.Image:
    try:
        with Image.open(view.image_path) as image:
            image.draft("RGB", size)  # JPEG decodes straight to a smaller size
            return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    except OSError as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise DataError(
            f"sample {frame.token}, camera {view.name}: image {view.image_path} {reason}; check the data root"
        ) from error


def _camera_tile(
    frame: Frame, view: CameraView, truth: _Drawn, found: _Drawn, size: tuple[int, int], unit: float
) -> Image.Image:
    scale = min(size[0] / view.camera.width_px, size[1] / view.camera.height_px)
    inner = (round(view.camera.width_px * scale), round(view.camera.height_px * scale))
    image = _load_image(frame, view, inner)
    camera = view.camera.resized(*inner)
    draw = ImageDraw.Draw(image, "RGBA")
    camera_from_lidar = invert_pose(view.lidar_from_camera)
    tags = []
    for drawn in (found, truth):
        for i in range(len(drawn.boxes)):
            corners = transform_points(camera_from_lidar, box_corners(drawn.boxes[i : i + 1, :7])[0])  # [8, 3]
            extent = _draw_box(draw, camera.intrinsics, corners, inner, drawn, i, unit)
            if extent is not None and drawn.scores is not None and extent[3] - extent[1] > 14 * unit:
                text = f"{drawn.names[i].replace('_', ' ')} {drawn.scores[i]:.2f}"
                tags.append(((max(extent[0], 0), max(extent[1] - 13 * unit, 0)), text, _colour(drawn.names[i])))
    taken = [_tag(draw, (6 * unit, 5 * unit), view.name, TEXT, 13 * unit, unit, [])]
    for at, text, colour in reversed(tags):  # the nearest objects get their names first
        taken.append(_tag(draw, at, text, colour, 9.5 * unit, unit, taken))
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
    drawn: _Drawn,
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
    colour = _colour(drawn.names[index]) if predicted else GROUND_TRUTH
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


def _tag(
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
    font = _font(size)
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


def _bev_panel(frame: Frame, truth: _Drawn, found: _Drawn, side: int, view: View, unit: float) -> Image.Image:
    """The ego frame from above: forward (x) is up, left (y) is left."""
    panel = Image.new("RGB", (side, side), PANEL)
    draw = ImageDraw.Draw(panel, "RGBA")
    pixels_per_m = side / (2 * view.range_m)

    def pixels(points_ego: NDArray[np.float64]) -> NDArray[np.float64]:
        return side / 2 - points_ego[..., [1, 0]] * pixels_per_m

    _draw_lidar(panel, frame, pixels)
    for radius_m in range(10, int(view.range_m) + 1, 10):
        r = radius_m * pixels_per_m
        box = (side / 2 - r, side / 2 - r, side / 2 + r, side / 2 + r)
        draw.ellipse(box, outline=(*FAINT, 255), width=max(1, round(0.8 * unit)))
        at = (side / 2 + 3 * unit, side / 2 - r + 2 * unit)
        draw.text(at, f"{radius_m} m", fill=QUIET_TEXT, font=_font(9.5 * unit))
    ego = np.array([[EGO_LENGTH_M, EGO_WIDTH_M], [EGO_LENGTH_M, -EGO_WIDTH_M]]) / 2
    ego = np.concatenate([ego + [1.0, 0], (-ego + [1.0, 0])])  # the ego frame sits on the rear axle
    draw.polygon([tuple(p) for p in pixels(ego)], fill=(*TEXT, 255))
    arrow = pixels(np.array([[2.6, 0.0], [1.2, 0.5], [1.2, -0.5]]))
    draw.polygon([tuple(p) for p in arrow], fill=(*PANEL, 255))

    taken: list[Extent | None] = []
    for drawn in (found, truth):
        predicted = drawn.scores is not None
        boxes = transform_boxes(frame.ego_from_lidar, drawn.boxes)
        footprints = pixels(box_corners_bev(boxes)) if len(boxes) else []
        for i, footprint in enumerate(footprints):
            colour = _colour(drawn.names[i]) if predicted else GROUND_TRUTH
            outline = [tuple(p) for p in footprint]
            if predicted:
                draw.polygon(outline, fill=(*colour, 70))
            stroke = max(1, round((1.8 if predicted else 1.0) * unit))
            draw.line([*outline, outline[0]], fill=(*colour, 255), width=stroke, joint="curve")
            middle, nose = footprint.mean(0), footprint[:2].mean(0)
            draw.line([tuple(middle), tuple(nose + (nose - middle) * 0.25)], fill=(*colour, 255), width=stroke)
            if predicted:
                at = (footprint[:, 0].max() + 2 * unit, footprint[:, 1].mean() - 5 * unit)
                taken.append(_tag(draw, at, f"{drawn.scores[i]:.2f}", colour, 8 * unit, unit, taken, plate=False))
    draw.text((8 * unit, 6 * unit), "from above, forward is up", fill=QUIET_TEXT, font=_font(11 * unit))
    return panel


def _draw_lidar(panel: Image.Image, frame: Frame, pixels) -> None:
    """The sweep as faint dots, for orientation; nothing where there is none."""
    if not frame.lidar_path or not Path(frame.lidar_path).is_file():
        return
    points = np.fromfile(frame.lidar_path, dtype=np.float32)
    points = points[: len(points) // 5 * 5].reshape(-1, 5)[:, :3].astype(np.float64)  # nuScenes: x y z intensity ring
    points = transform_points(frame.ego_from_lidar, points)
    uv = np.round(pixels(points)).astype(int)
    inside = ((uv >= 0) & (uv < panel.size[0] - 1)).all(1) & (points[:, 2] < 4)
    image = np.asarray(panel).copy()
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        image[uv[inside, 1] + dy, uv[inside, 0] + dx] = (84, 94, 110)
    panel.paste(Image.fromarray(image))


# ------------------------------------------------------------------------------------------------ title and legend


def _title(canvas: Image.Image, frame: Frame, counts: str, bar: int, gap: int, unit: float) -> None:
    time = datetime.fromtimestamp(frame.timestamp_us / 1e6, tz=timezone.utc)
    text = f"{frame.scene_name}    {time:%Y-%m-%d %H:%M:%S}.{time.microsecond // 1000:03d} UTC    sample {frame.token}"
    draw = ImageDraw.Draw(canvas)
    draw.text((gap + 4 * unit, bar / 2), text, fill=TEXT, font=_font(16 * unit), anchor="lm")
    at = (canvas.size[0] - gap - 4 * unit, bar / 2)
    draw.text(at, counts, fill=QUIET_TEXT, font=_font(14 * unit), anchor="rm")


def _legend(canvas: Image.Image, truth: _Drawn, found: _Drawn, view: View, bar: int, gap: int, unit: float) -> None:
    draw = ImageDraw.Draw(canvas)
    font = _font(13 * unit)
    x, y = gap + 4 * unit, canvas.size[1] - bar / 2
    entries: list[tuple[Colour | None, str]] = []
    if len(truth.boxes):
        entries.append((GROUND_TRUTH, "ground truth (thin green)"))
    if len(found.boxes):
        entries.append((None, f"predictions with score >= {view.score_threshold:.2f}:"))
        entries += [(_colour(n), n.replace("_", " ")) for n in CLASS_COLOURS if n in found.names]
    entries.append((None, "filled face = front"))
    for colour, text in entries:
        if colour is not None:
            draw.rectangle((x, y - 6 * unit, x + 12 * unit, y + 6 * unit), fill=colour)
            x += 18 * unit
        draw.text((x, y), text, fill=QUIET_TEXT if colour is None else TEXT, font=font, anchor="lm")
        x += draw.textlength(text, font=font) + 22 * unit
