"""Pictures of a keyframe's boxes in every camera and from above, ground truth beside prediction; and clips of them.

Pictures of boxes, voxels and lanes together: view/picture.py.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ..core.answers import Detections
from ..core.errors import DataError
from ..core.files import atomic_path
from ..core.frames import CameraView, Frame
from .drawing import (
    BACKGROUND,
    CLASS_COLOURS,
    GROUND_TRUTH,
    OVERSAMPLING,
    QUIET_TEXT,
    TEXT,
    Colour,
    Drawn,
    View,
    bev_panel,
    camera_tile,
    class_colour,
    font_of,
    labelled_boxes,
    predicted_boxes,
)


def render_frame(
    frame: Frame, detections: Detections | None, class_names: Sequence[str], view: View | None = None
) -> Image.Image:
    """One picture: the cameras in rows (front row above back row), the scene from above, title and legend.

    detections: predictions in the BEV frame, labels indexing ``class_names``; None draws ground truth alone.
    Raises DataError if an image of the frame is missing or unreadable.
    """
    view = view or View()
    truth = labelled_boxes(frame, view)
    found = predicted_boxes(detections, class_names, view)
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
            tile = camera_tile(frame, camera_view, truth, found, (tile_width, tile_height), unit)
            left = gap + (columns - len(row)) * (tile_width + gap) // 2 + i * (tile_width + gap)
            canvas.paste(tile, (left, bar + j * (tile_height + gap)))
    canvas.paste(
        bev_panel(frame, truth, found, (height, height), view, unit), (gap + columns * (tile_width + gap), bar)
    )
    counts = [f"{len(truth.boxes)} labelled"] if len(truth.boxes) else []
    counts += [f"{len(found.boxes)} predicted"] if detections is not None else []
    draw_title(canvas, frame, "    ".join(counts), bar, gap, unit)
    draw_legend(canvas, box_legend(truth, found, view), bar, gap, unit)
    return canvas.reduce(OVERSAMPLING)


def camera_rows(frame: Frame) -> list[list[CameraView]]:
    """The cameras as one stands in the car: those looking forwards left to right, then those looking backwards.

    The back row is not mirrored: left is the left side of the car, as in the nuScenes devkit's pictures.
    """
    rows: tuple[list[tuple[float, CameraView]], ...] = ([], [])
    for view in frame.cameras:
        axis = view.ego_from_camera[:3, 2]  # optical axis in the ego frame (x forward)
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
    view = view or View(camera_width_px=360)
    pictures = (render_frame(f, detections_by_token.get(f.token), class_names, view) for f in frames)
    save_clip(pictures, path, seconds_per_frame)


def save_clip(pictures: Iterable[Image.Image], path: str | os.PathLike[str], seconds_per_frame: float) -> None:
    """Pictures as an animated ``.gif`` or an ``.mp4``, atomically; those smaller than others get a margin.

    Raises DataError for another suffix, or no pictures.
    """
    path = Path(path)
    if path.suffix not in (".gif", ".mp4"):
        raise DataError(f"cannot write a clip to {path}: name it .gif or .mp4")
    pictures = list(pictures)
    if not pictures:
        raise DataError(f"no frames to draw for {path}; check scene and split")
    size = tuple(max(picture.size[axis] for picture in pictures) for axis in (0, 1))
    for i, picture in enumerate(pictures):
        if picture.size != size:
            pictures[i] = Image.new("RGB", size, BACKGROUND)
            pictures[i].paste(picture)
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


def draw_title(canvas: Image.Image, frame: Frame, counts: str, bar: int, gap: int, unit: float) -> None:
    """Scene, time and sample at the top, ``counts`` to the right; ``bar``: height of the line."""
    time = datetime.fromtimestamp(frame.timestamp_us / 1e6, tz=timezone.utc)
    text = f"{frame.scene_name}    {time:%Y-%m-%d %H:%M:%S}.{time.microsecond // 1000:03d} UTC    sample {frame.token}"
    draw = ImageDraw.Draw(canvas)
    draw.text((gap + 4 * unit, bar / 2), text, fill=TEXT, font=font_of(16 * unit), anchor="lm")
    at = (canvas.size[0] - gap - 4 * unit, bar / 2)
    draw.text(at, counts, fill=QUIET_TEXT, font=font_of(14 * unit), anchor="rm")


LegendEntry = tuple[Colour | None, str]
"""A colour and what it stands for; without a colour a remark."""


def box_legend(truth: Drawn, found: Drawn, view: View) -> list[LegendEntry]:
    entries: list[LegendEntry] = []
    if len(truth.boxes):
        entries.append((GROUND_TRUTH, "ground truth (thin green)"))
    if len(found.boxes):
        entries.append((None, f"predictions with score >= {view.score_threshold:.2f}:"))
        entries += [(class_colour(n), n.replace("_", " ")) for n in CLASS_COLOURS if n in found.names]
    return [*entries, (None, "filled face = front")]


def draw_legend(canvas: Image.Image, entries: Sequence[LegendEntry], bar: int, gap: int, unit: float) -> None:
    """The legend as the picture's last line, ``bar`` high; smaller where it would not fit."""
    draw = ImageDraw.Draw(canvas)
    room = canvas.size[0] - 2 * gap - 8 * unit
    needed = sum(draw.textlength(text, font_of(13 * unit)) + (22 + 18 * (c is not None)) * unit for c, text in entries)
    x, y = gap + 4 * unit, canvas.size[1] - bar / 2
    unit *= min(1.0, room / needed)
    font = font_of(13 * unit)
    for colour, text in entries:
        if colour is not None:
            draw.rectangle((x, y - 6 * unit, x + 12 * unit, y + 6 * unit), fill=colour)
            x += 18 * unit
        draw.text((x, y), text, fill=QUIET_TEXT if colour is None else TEXT, font=font, anchor="lm")
        x += draw.textlength(text, font=font) + 22 * unit
