"""Pictures that show whether calibration and labels fit: boxes and the ground drawn into every camera.

The ground is a grid of 5 m squares at z = 0 of the EGO frame, with rings at 10, 20 and 30 m. It lies on the street,
goes on from one camera to the next, and boxes stand on it, if focal lengths, lenses, mountings and the EGO origin are
right. From above, each camera has the sector that it sees.

Pixels of this file are canvas pixels of the double size (view/drawing.py); k points of a line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..core.errors import DataError
from ..core.frames import CameraView, Frame
from ..data_tools.clips.images import load_image
from ..data_tools.readers.lidar import read_lidar
from ..geometry import CameraModel, invert_pose, transform_points
from .boxes import Drawn, box_legend
from .colours import BACKGROUND, QUIET_TEXT, Palette
from .drawing import (
    OVERSAMPLING,
    Labels,
    LegendEntry,
    View,
    draw_legend,
    draw_path,
    draw_title,
    legend_row_height,
    legend_rows,
    letters,
    plain_letters,
)
from .panels import BevOverlay, CameraOverlay, Pixels, bev_panel, camera_rows, camera_tile

GRID_COLOUR, RING_COLOUR = (255, 255, 255), (255, 214, 90)
GRID_M, STEP_M, REACH_M = 5.0, 0.25, 30.0
RINGS_M = (10.0, 20.0, 30.0)
SECTOR_M = 12.0
_NEAREST_DEPTH_M = 0.3
_MAX_CAMERA_PX = 1600


def render_data_check(frame: Frame, view: View | None = None) -> tuple[NDArray[np.uint8], list[str]]:
    """A keyframe's cameras with its boxes and the ground, and the scene from above; [H, W, 3] RGB.

    Second: what could not be drawn, a line each (an image that cannot be read is drawn black).
    """
    view, problems = view or View(), []
    drawn, palette = _boxes(frame)
    unit = OVERSAMPLING * view.camera_width_px / 560
    gap, bar = round(4 * unit), round(34 * unit)
    rows = camera_rows(frame)
    columns = max((len(row) for row in rows), default=1)
    width = OVERSAMPLING * view.camera_width_px
    shapes = [v.camera.height_px / v.camera.width_px for v in frame.cameras]
    tile = width, round(width * float(np.median(shapes)))
    height = max(len(rows) * (tile[1] + gap) - gap, width)
    total = columns * (width + gap) + height + gap
    legend = legend_rows(_legend(drawn, palette), total - 2 * gap, unit)
    canvas = Image.new("RGB", (total, bar + height + len(legend) * legend_row_height(unit) + 2 * gap), BACKGROUND)
    for j, row in enumerate(rows):
        for i, camera in enumerate(row):
            picture, problem = _tile(frame, camera, drawn, tile, unit)
            problems += [problem] if problem else []
            left = gap + (columns - len(row)) * (width + gap) // 2 + i * (width + gap)
            canvas.paste(picture, (left, bar + j * (tile[1] + gap)))
    try:
        points = read_lidar(frame)
    except DataError as error:
        points, problems = np.zeros((0, 3)), [*problems, str(error)]
    above = bev_panel(frame, points, [drawn], (height, height), view, unit, below=_sectors(frame, unit))
    canvas.paste(above, (gap + columns * (width + gap), bar))
    title = f"{plain_letters(frame.scene_name)}    sample {plain_letters(frame.token)}"
    draw_title(canvas, title, f"{len(drawn.boxes)} boxes", bar, gap, unit)
    draw_legend(canvas, legend, gap, bar + height + gap, unit)
    return np.asarray(canvas.reduce(OVERSAMPLING)), problems


def render_camera_check(frame: Frame, camera: CameraView) -> tuple[NDArray[np.uint8], str]:
    """One camera alone, as large as its image (at most 1600 pixels wide); the second as in ``render_data_check``."""
    drawn, _ = _boxes(frame)
    scale = OVERSAMPLING * min(1.0, _MAX_CAMERA_PX / camera.camera.width_px)
    size = round(camera.camera.width_px * scale), round(camera.camera.height_px * scale)
    picture, problem = _tile(frame, camera, drawn, size, max(1.0, size[0] / 1120))
    return np.asarray(picture.reduce(OVERSAMPLING)), problem


def _boxes(frame: Frame) -> tuple[Drawn, Palette]:
    """All labels, whether a sensor hit them or not, in the colours of their classes; without class by category."""
    notes = frame.annotations
    if notes is None:
        return Drawn(np.zeros((0, 9)), [], [], None), Palette.of((), ())
    own = notes.categories or [""] * len(notes)
    names = [name or category or "no class" for name, category in zip(notes.names, own)]
    palette = Palette.of(list(dict.fromkeys(names)), ())
    return Drawn.of(frame.bev_boxes(), names, [palette[name] for name in names], None), palette


def _legend(drawn: Drawn, palette: Palette) -> list[LegendEntry]:
    ground = [
        LegendEntry(GRID_COLOUR, "ground, squares of 5 m", "line"),
        LegendEntry(RING_COLOUR, "10, 20 and 30 m from the car", "line"),
    ]
    return [*box_legend(drawn, palette), *ground, LegendEntry(None, "filled face = front")]


def _tile(
    frame: Frame, camera: CameraView, drawn: Drawn, size: tuple[int, int], unit: float
) -> tuple[Image.Image, str]:
    problem = ""
    try:
        image = load_image(camera, frame.token)
    except DataError as error:
        problem = str(error)
        image = np.zeros((camera.camera.height_px, camera.camera.width_px, 3), np.uint8)
    return camera_tile(frame, camera, image, [drawn], size, unit, lambda _: True, below=_ground(unit)), problem


def _ground(unit: float) -> CameraOverlay:
    def draw_ground(draw: ImageDraw.ImageDraw, view: CameraView, camera: CameraModel, labels: Labels) -> None:
        camera_from_ego = invert_pose(view.ego_from_camera)
        for line, is_ring in ground_lines():
            points = transform_points(camera_from_ego, line)
            pixels, _ = camera.project(points)
            near = np.linalg.norm(points, axis=1) < _NEAREST_DEPTH_M
            pixels[near] = np.nan
            colour, alpha = (RING_COLOUR, 200) if is_ring else (GRID_COLOUR, 110)
            for part in _in_sight(pixels, camera):
                draw_path(draw, part, colour, unit, False, 1.3 if is_ring else 0.8, alpha)

    return draw_ground


def _sectors(frame: Frame, unit: float) -> BevOverlay:
    """Each camera's name and edges of its view, from its place on the car to SECTOR_M away."""

    def draw_sectors(panel: Image.Image, pixels: Pixels, labels: Labels) -> None:
        draw = ImageDraw.Draw(panel, "RGBA")
        for view in frame.cameras:
            camera, place = view.camera, view.ego_from_camera[:2, 3]
            columns = np.linspace(0, camera.width_px, 65)
            rays = camera.unproject(np.stack([columns, np.full(65, camera.intrinsics[1, 2])], 1))
            seen = (rays @ view.ego_from_camera[:3, :3].T)[np.isfinite(rays).all(1), :2]
            if not len(seen):
                continue
            arc = place + SECTOR_M * seen / np.maximum(np.linalg.norm(seen, axis=1, keepdims=True), 1e-9)
            outline = pixels(np.concatenate([place[None], arc, place[None]]))
            draw.line([tuple(p) for p in outline], fill=(*RING_COLOUR, 90), width=max(1, round(unit)))
            x, y = pixels(arc[len(arc) // 2])
            labels.beside((x, y, x, y), plain_letters(view.name), QUIET_TEXT, letters(9.5, unit))

    return draw_sectors


def _in_sight(pixels: NDArray[np.float64], camera: CameraModel) -> Iterator[NDArray[np.float64]]:
    """The parts of a line [k, 2] inside the image, each with the point before and after it where the lens sees them.

    Points far outside the image are left out, too: near the plane of a pinhole lines jump.
    """
    size = np.array([camera.width_px, camera.height_px])
    with np.errstate(invalid="ignore"):
        inside = np.asarray(((pixels >= 0) & (pixels <= size)).all(1))
        near = np.asarray((np.abs(pixels - size / 2) < 20 * size).all(1))
    flags = np.concatenate([[False], inside, [False]])
    for begin, end in zip(np.flatnonzero(~flags[:-1] & flags[1:]), np.flatnonzero(flags[:-1] & ~flags[1:])):
        begin -= bool(begin > 0 and near[begin - 1])
        end += bool(end < len(pixels) and near[end])
        yield pixels[begin:end]


def ground_lines() -> Iterator[tuple[NDArray[np.float64], bool]]:
    """Lines [k, 3] of the ground in the EGO frame, and whether each is a ring."""
    along = np.arange(-REACH_M, REACH_M + STEP_M / 2, STEP_M)
    zero = np.zeros_like(along)
    for at in np.arange(-REACH_M, REACH_M + 1, GRID_M):
        yield np.stack([along, zero + at, zero], 1), False
        yield np.stack([zero + at, along, zero], 1), False
    for radius in RINGS_M:
        angle = np.linspace(0, 2 * np.pi, 361)
        yield np.stack([radius * np.cos(angle), radius * np.sin(angle), np.zeros_like(angle)], 1), True


def pictured(frames: Sequence[Frame], number: int) -> list[Frame]:
    """Of the frames so many, evenly over the set, of those with boxes where there are any."""
    able = [frame for frame in frames if frame.annotations is not None and len(frame.annotations)] or list(frames)
    places = np.unique(np.linspace(0, len(able) - 1, min(number, len(able))).round().astype(int))
    return [able[i] for i in places]
