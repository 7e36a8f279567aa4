"""One picture of all answers to a keyframe: boxes, voxels, lanes and traffic elements, labels beside predictions.

    +-----------------------------+--------------+
    | cameras in rows: boxes,     | from above:  |
    | lanes, traffic elements     | lanes, their |
    +--------------+--------------+ topology and |
    | voxels,      | voxels,      | boxes        |
    | labelled     | predicted    |              |
    +--------------+--------------+--------------+
    | legend                                     |
    +--------------------------------------------+

Pixels of this file are canvas pixels of the double size (view/drawing.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..core.answers import Detections, SceneAnswer
from ..core.cameras import front_view
from ..core.errors import DataError
from ..core.frames import CameraView, Frame
from ..data_tools.clips.images import load_image
from ..data_tools.labels.files import WAYMO_SUFFIX, read_occupancy
from ..data_tools.readers.lidar import read_lidar
from ..geometry import OCC3D_GRID, CameraModel, VoxelGrid, invert_pose
from ..occupancy.classes import OCC3D_NUSCENES, OCC3D_WAYMO
from .boxes import Drawn, box_legend, labelled_boxes, predicted_boxes, save_picture
from .clips import check_clip_path, save_clip
from .colours import BACKGROUND, FIXED_COLOURS, LIDAR_COLOUR, PANEL, QUIET_TEXT, TRACK_COLOURS, Palette
from .drawing import (
    GROUND_TRUTH_ENTRY,
    OVERSAMPLING,
    Labels,
    LegendEntry,
    View,
    draw_legend,
    draw_title,
    legend_row_height,
    legend_rows,
    letters,
    plain_letters,
    shown,
)
from .panels import Pixels, bev_panel, camera_rows, camera_tile
from .topology import DrawnLanes, elements_above, elements_in_camera, lane_legend, lanes_above, lanes_in_camera
from .trails import TRAIL_S, Trail, read_trails, trails_above, trails_of
from .voxels import Viewpoint, render_voxels

_LEFT_WIDTH, _ABOVE_WIDTH = 2.26, 1.11  # of cameras and voxels, of the scene from above, in widths of a camera image
_VOXEL_SHAPE = 0.72  # height by width


def render_answers(
    frame: Frame,
    answer: SceneAnswer | None,
    class_names: Sequence[str],
    view: View | None = None,
    *,
    voxel_class_names: Sequence[str] | None = None,
    voxel_grid: VoxelGrid = OCC3D_GRID,
    trails: Sequence[Trail] = (),
) -> NDArray[np.uint8]:
    """The picture [H, W, 3] RGB.

    answer: with any tasks; None draws the labels alone. class_names: what the box labels index; any names, each of
    which gets its own colour (view/colours.py).
    voxel_class_names: of labels and answers in voxels, the last being free; default those of the label file's data set,
    Occ3D-nuScenes or Occ3D-Waymo. voxel_grid: where the voxels lie in the EGO frame. trails: see view/trails.py.
    ``view.score_threshold`` holds for boxes, lanes and traffic elements. The elements belong to the frame's front
    camera (core/cameras.py). With voxels the cameras get three quarters of ``view.camera_width_px``: 1900 pixels in all
    by default. Raises DataError if an image, LiDAR or label file of the frame is missing or unreadable, or an answer
    has a class or grid other than these.
    """
    canvas = _Canvas(frame, answer, class_names, view or View(), voxel_class_names, voxel_grid, trails)
    return np.asarray(canvas.draw().reduce(OVERSAMPLING))


def render_answer_clip(
    frames: Iterable[Frame],
    answer_of: Callable[[Frame], SceneAnswer | None],
    class_names: Sequence[str],
    path: str | os.PathLike[str],
    view: View | None = None,
    seconds_per_frame: float = 0.5,
    *,
    voxel_class_names: Sequence[str] | None = None,
    voxel_grid: VoxelGrid = OCC3D_GRID,
) -> None:
    """Keyframes one after the other as an animated ``.gif`` or an ``.mp4``; the arguments of ``render_answers``.

    Tracks have trails through the keyframes before.

    Raises DataError for another ending, before anything is drawn, no frames, or as ``render_answers``.
    """
    path = check_clip_path(path)
    view = view or View(camera_width_px=360)
    render = partial(render_answers, voxel_class_names=voxel_class_names, voxel_grid=voxel_grid)
    threshold = view.score_threshold

    def draw() -> Iterator[Image.Image]:
        past: list[tuple[Frame, Detections | None]] = []
        for frame in frames:
            answer = answer_of(frame)
            boxes = None if answer is None else answer.boxes
            trails = trails_of(frame, boxes, past, threshold)
            past.append((frame, boxes))
            yield Image.fromarray(render(frame, answer, class_names, view, trails=trails))

    voxel_lists = ((), OCC3D_NUSCENES, OCC3D_WAYMO) if voxel_class_names is None else ((), voxel_class_names)
    colours = [colour for names in voxel_lists for colour in Palette.of(class_names, names).values()]
    save_clip(draw(), path, seconds_per_frame, [*FIXED_COLOURS, *TRACK_COLOURS, *colours])


@dataclass(frozen=True)
class _Voxels:
    """One grid as it is drawn."""

    title: str
    semantics: NDArray[np.uint8]
    """[X, Y, Z]"""
    mask: NDArray[np.bool_] | None
    """[X, Y, Z] where a camera sees"""


class _Canvas:
    """The picture of one frame while it is drawn."""

    def __init__(
        self,
        frame: Frame,
        answer: SceneAnswer | None,
        class_names: Sequence[str],
        view: View,
        voxel_class_names: Sequence[str] | None,
        voxel_grid: VoxelGrid,
        trails: Sequence[Trail],
    ) -> None:
        self.frame, self.answer, self.view = frame, answer or SceneAnswer(frame.token), view
        self.trails = trails
        if voxel_class_names is None:
            voxel_class_names = OCC3D_WAYMO if frame.occupancy_path.endswith(WAYMO_SUFFIX) else OCC3D_NUSCENES
        self.voxel_class_names, self.voxel_grid = voxel_class_names, voxel_grid
        self.voxels = list(self._read_voxels())
        self.palette = Palette.of(class_names, voxel_class_names if self.voxels else ())
        self.true_boxes = labelled_boxes(frame, view)
        self.found_boxes = predicted_boxes(frame, self.answer.boxes, class_names, self.palette, view)
        self.boxes = (self.found_boxes, self.true_boxes)
        self.lanes: list[DrawnLanes] = []
        if self.answer.lanes is not None:
            self.lanes.append(DrawnLanes.of_graph(self.answer.lanes, view.score_threshold))
        if frame.lanes is not None and view.ground_truth:
            self.lanes.append(DrawnLanes.of_labels(frame.lanes))
        self.lidar_points = read_lidar(frame)
        self.front = front_view(frame.cameras)
        self.front_bgr: NDArray[np.uint8] | None = None  # read once for the camera and the elements' thumbnails
        if self.front is not None and any(lanes.names for lanes in self.lanes):
            self.front_bgr = load_image(self.front, frame.token)
        self.unit = OVERSAMPLING * view.camera_width_px / 560
        self.gap, self.bar = round(4 * self.unit), round(34 * self.unit)

    def _read_voxels(self) -> Iterator[_Voxels]:
        mask = None
        if self.frame.occupancy_path and self.view.ground_truth:
            labels = read_occupancy(self.frame.occupancy_path, len(self.voxel_class_names))
            mask = labels.mask_camera
            yield self._checked(_Voxels("voxels, labelled", labels.semantics, mask))
        if self.answer.occupancy is not None:
            yield self._checked(_Voxels("voxels, predicted", self.answer.occupancy.semantics, mask))

    def _checked(self, voxels: _Voxels) -> _Voxels:
        if voxels.semantics.shape != self.voxel_grid.shape:
            raise DataError(
                f"sample {self.frame.token}: {voxels.title}, are {list(voxels.semantics.shape)}, the grid has "
                f"{list(self.voxel_grid.shape)}; give their voxel_grid"
            )
        return voxels

    # ------------------------------------------------------------------------------------------------------ layout

    def draw(self) -> Image.Image:
        gap, bar, unit = self.gap, self.bar, self.unit
        rows = camera_rows(self.frame)
        columns = max((len(row) for row in rows), default=0)
        camera_width = OVERSAMPLING * self.view.camera_width_px
        left_width = (
            round(camera_width * _LEFT_WIDTH) if self.voxels else columns * (camera_width + gap) - gap * bool(rows)
        )
        tile = self._tile_size(left_width, columns)
        cameras_height = len(rows) * (tile[1] + gap) - gap * bool(rows)
        voxel_size = (left_width - gap) // 2, round((left_width - gap) / 2 * _VOXEL_SHAPE)
        voxels_height = (gap * bool(rows) + voxel_size[1]) if self.voxels else 0
        height = max(cameras_height + voxels_height, round(camera_width * _ABOVE_WIDTH))
        above_width = round(camera_width * _ABOVE_WIDTH) if self.voxels else height
        left = gap + (left_width + gap) * (left_width > 0)
        width = left + above_width + gap
        legend = legend_rows(self._legend(), width - 2 * gap - 8 * unit, unit)
        legend_height = max(bar, len(legend) * legend_row_height(unit) + 2 * gap)

        canvas = Image.new("RGB", (width, bar + height + legend_height), BACKGROUND)
        top = bar + (height - cameras_height - voxels_height) // 2
        for j, row in enumerate(rows):
            for i, camera_view in enumerate(row):
                x = gap + (columns - len(row)) * (tile[0] + gap) // 2 + i * (tile[0] + gap)
                canvas.paste(self._camera(camera_view, tile), (x, top + j * (tile[1] + gap)))
        for i, panel in enumerate(self._voxel_panels(voxel_size)):
            place = (gap + i * (voxel_size[0] + gap), top + cameras_height + gap * bool(rows))
            canvas.paste(panel, place)
        canvas.paste(self._above((above_width, height)), (left, bar))
        draw_title(canvas, self._title(), self._counts(), bar, gap, unit)
        legend_top = bar + height + (legend_height - len(legend) * legend_row_height(unit)) / 2
        draw_legend(canvas, legend, gap + 4 * unit, legend_top, unit)
        return canvas

    def _tile_size(self, left_width: int, columns: int) -> tuple[int, int]:
        """Of each camera; those of another shape than most get a margin."""
        if not columns:
            return 0, 0
        width = (left_width - (columns - 1) * self.gap) // columns
        shapes = [view.camera.height_px / view.camera.width_px for view in self.frame.cameras]
        return width, round(width * float(np.median(shapes)))

    def _title(self) -> str:
        """Scene, time and sample."""
        time = datetime.fromtimestamp(self.frame.timestamp_us / 1e6, tz=UTC)
        moment = f"{time:%Y-%m-%d %H:%M:%S}.{time.microsecond // 1000:03d} UTC"
        return f"{plain_letters(self.frame.scene_name)}    {moment}    sample {self.frame.token}"

    def _counts(self) -> str:
        parts = []
        answer = self.answer
        if answer.boxes is not None or len(self.true_boxes.boxes):
            parts.append(_count("boxes", len(self.true_boxes.boxes), answer.boxes, len(self.found_boxes.boxes)))
        for kind in ("lanes", "elements"):
            counts = {lanes.is_label: len(lanes.lines if kind == "lanes" else lanes.names) for lanes in self.lanes}
            if counts:
                parts.append(_count(kind, counts.get(True, 0), answer.lanes, counts.get(False, 0)))
        return "     ".join(part for part in parts if part)

    def _legend(self) -> list[LegendEntry]:
        """Labels, then predictions, then what is neither."""
        of_boxes = box_legend(self.found_boxes, self.palette)
        labelled = len(self.true_boxes.boxes) or any(lanes.is_label and lanes.lines for lanes in self.lanes)
        entries = [GROUND_TRUTH_ENTRY] * bool(labelled)
        entries += lane_legend([lanes for lanes in self.lanes if lanes.is_label])
        predicted = [*of_boxes, *lane_legend([lanes for lanes in self.lanes if not lanes.is_label])]
        if predicted:
            entries.append(LegendEntry(None, f"predictions with score >= {self.view.score_threshold:.2f}:"))
        entries += [*predicted, *self._voxel_legend({entry.text for entry in of_boxes})]
        if self.trails:
            entries.append(LegendEntry(TRACK_COLOURS[0], f"track, its last {TRAIL_S:.0f} s", "line"))
        if len(self.true_boxes.boxes) or len(self.found_boxes.boxes):
            entries.append(LegendEntry(None, "filled face = front"))
        if len(self.lidar_points):
            entries.append(LegendEntry(LIDAR_COLOUR, "LiDAR points", "dots"))
        return entries

    def _voxel_legend(self, named: set[str]) -> list[LegendEntry]:
        """The classes of the voxels that the boxes have not named already."""
        present = {int(c) for grid in self.voxels for c in np.unique(grid.semantics)}
        known = set(range(len(self.voxel_class_names)))
        names = [self.voxel_class_names[i] for i in sorted(present & known - {len(self.voxel_class_names) - 1})]
        entries = [LegendEntry(self.palette[name], shown(name)) for name in names]
        entries = [entry for entry in entries if entry.text not in named]
        if strange := sorted(present - known):
            entries.append(LegendEntry(None, f"voxel class {', '.join(map(str, strange))}: has no name, not drawn"))
        return entries

    # ------------------------------------------------------------------------------------------------------ panels

    def _voxel_panels(self, size: tuple[int, int]) -> Iterator[Image.Image]:
        """Two: labels and predictions from behind the car, or what there is from there and through the front camera."""
        if not self.voxels:
            return
        small = size[0] // OVERSAMPLING, size[1] // OVERSAMPLING
        behind = Viewpoint.behind(*small, grid=self.voxel_grid)
        views = [(grid.title, grid, behind) for grid in self.voxels]
        if len(views) == 1 and self.frame.cameras:
            front = self.front or self.frame.cameras[0]
            scale = min(small[0] / front.camera.width_px, small[1] / front.camera.height_px)
            camera = front.camera.resized(round(scale * front.camera.width_px), round(scale * front.camera.height_px))
            viewpoint = Viewpoint(camera, front.ego_from_camera)
            views.append((f"through {plain_letters(front.name)}", self.voxels[0], viewpoint))
        for title, grid, viewpoint in views:
            drawn = render_voxels(
                grid.semantics, grid.mask, viewpoint, self.voxel_class_names, self.voxel_grid, palette=self.palette
            )
            picture = Image.fromarray(drawn)
            panel = Image.new("RGB", small, PANEL)
            panel.paste(picture, ((small[0] - picture.size[0]) // 2, (small[1] - picture.size[1]) // 2))
            panel = panel.resize(size, Image.Resampling.NEAREST)  # reduced again in the end
            text = title + (" (dark: no camera sees it)" if grid.mask is not None else "")
            at = (8 * self.unit, 6 * self.unit)
            ImageDraw.Draw(panel).text(at, text, fill=QUIET_TEXT, font=letters(11, self.unit))
            yield panel

    def _camera(self, camera_view: CameraView, size: tuple[int, int]) -> Image.Image:
        elements = partial(elements_in_camera, drawn=self.lanes, unit=self.unit)
        kept = self.front_bgr if camera_view is self.front else None
        return camera_tile(
            self.frame,
            camera_view,
            load_image(camera_view, self.frame.token) if kept is None else kept,
            self.boxes,
            size,
            self.unit,
            named=self._is_named,
            below=self._lanes_in_camera,
            on_top=elements if camera_view is self.front else None,
        )

    def _is_named(self, drawn: Drawn) -> bool:
        """Predictions have names in the cameras; labels where they are alone."""
        return not drawn.is_label or self.answer.boxes is None

    def _lanes_in_camera(
        self, draw: ImageDraw.ImageDraw, view: CameraView, camera: CameraModel, labels: Labels
    ) -> None:
        camera_from_ego = invert_pose(self.frame.ego_from_bev @ self.frame.bev_from_camera(view))
        lanes_in_camera(draw, camera, camera_from_ego, self.lanes, self.unit)

    def _above(self, size: tuple[int, int]) -> Image.Image:
        def lanes(panel: Image.Image, pixels: Pixels, labels: Labels) -> None:
            lanes_above(panel, pixels, self.lanes, self.unit)

        def elements(panel: Image.Image, pixels: Pixels, labels: Labels) -> None:
            trails_above(ImageDraw.Draw(panel), pixels, self.trails, self.frame, self.unit)
            elements_above(panel, pixels, labels, self.lanes, self.front_bgr, self.unit)

        return bev_panel(
            self.frame, self.lidar_points, self.boxes, size, self.view, self.unit, below=lanes, on_top=elements
        )


def _count(what: str, labelled: int, answer: object | None, predicted: int) -> str:
    numbers = [f"{labelled} labelled"] if labelled else []
    numbers += [f"{predicted} predicted"] if answer is not None else []
    return f"{what}: {', '.join(numbers)}" if numbers else ""


def draw_pictures(
    frames: Iterable[Frame],
    answer_of: Callable[[Frame], SceneAnswer],
    class_names: Sequence[str],
    folder: Path,
    score_threshold: float,
    every: Sequence[Frame] = (),
) -> list[Path]:
    """One PNG per frame, ``scene_time_token.png``; the paths. every: frames through which trails of tracks go."""
    view = View(score_threshold=score_threshold)
    paths = []
    for frame in frames:
        name = f"{frame.scene_name or 'scene'}_{frame.timestamp_us}_{frame.token[:8]}.png"
        path = folder / name.replace("/", "_")  # names of OpenLane-V2 are paths
        trails = read_trails(frame, every, answer_of, score_threshold)
        picture = render_answers(frame, answer_of(frame), class_names, view, trails=trails)
        save_picture(Image.fromarray(picture), path)
        paths.append(path)
    return paths
