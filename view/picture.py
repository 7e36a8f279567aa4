"""One picture of all answers to a keyframe: boxes, voxels, lanes and traffic elements, labels beside predictions.

    +-----------------------------+--------------+
    | cameras in rows: boxes,     | from above:  |
    | lanes, traffic elements     | lanes, their |
    +--------------+--------------+ topology and |
    | voxels,      | voxels,      | boxes        |
    | labelled     | predicted    |              |
    +--------------+--------------+--------------+

Pixels of this file are canvas pixels of the double size (view/drawing.py); n lanes, k traffic elements.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..core.answers import LaneGraph, SceneAnswer
from ..core.frames import CameraView, Frame
from ..core.labels import ELEMENT_ATTRIBUTES, LaneLabels
from ..data_tools.labels.files import WAYMO_SUFFIX, read_occupancy
from ..geometry import PinholeCamera, invert_pose, transform_points
from ..occupancy.classes import OCC3D_NUSCENES, OCC3D_WAYMO
from .boxes import LegendEntry, box_legend, camera_rows, draw_legend, draw_title, save_clip, save_picture
from .drawing import (
    BACKGROUND,
    GROUND_TRUTH,
    NEAR_M,
    OVERSAMPLING,
    PANEL,
    QUIET_TEXT,
    TEXT,
    Colour,
    Extent,
    Pixels,
    View,
    bev_panel,
    camera_tile,
    draw_tag,
    font_of,
    labelled_boxes,
    load_image,
    predicted_boxes,
)
from .voxels import VOXEL_COLOURS, Viewpoint, render_voxels

LANE_COLOUR: Colour = (110, 196, 255)
EDGE_COLOUR: Colour = (255, 255, 255)
ELEMENT_COLOURS: Mapping[str, Colour] = {"red": (255, 70, 70), "green": (90, 255, 120), "yellow": (255, 220, 60)}
SIGN_COLOUR: Colour = (150, 150, 255)

_MIN_EDGE = 0.5  # probability from which an edge of the topology is drawn
_POINTS = 24  # of a lane as it is drawn
_LEFT_WIDTH, _ABOVE_WIDTH = 2.26, 1.11  # of cameras and voxels, of the scene from above, in widths of a camera image
_VOXEL_SHAPE = 0.72  # height by width
_THUMBNAIL = 34  # height of a traffic element in the scene from above


def render_answers(
    frame: Frame, answer: SceneAnswer | None, class_names: Sequence[str], view: View | None = None
) -> NDArray[np.uint8]:
    """The picture [H, W, 3] RGB.

    answer: with any tasks; None draws the labels alone. class_names: what the box labels index.
    ``view.score_threshold`` holds for boxes, lanes and traffic elements. The elements belong to the frame's first
    camera. With voxels the cameras get three quarters of ``view.camera_width_px``: 1900 pixels in all by default.
    Raises DataError if an image or label file of the frame is missing or unreadable.
    """
    view = view or View()
    canvas = _Canvas(frame, answer, class_names, view)
    return np.asarray(canvas.draw().reduce(OVERSAMPLING))


def render_answer_clip(
    frames: Iterable[Frame],
    answer_of: Callable[[Frame], SceneAnswer | None],
    class_names: Sequence[str],
    path: str | os.PathLike[str],
    view: View | None = None,
    seconds_per_frame: float = 0.5,
) -> None:
    """Keyframes one after the other as an animated ``.gif`` or an ``.mp4``.

    Raises DataError for another suffix, no frames, or a file that cannot be read.
    """
    view = view or View(camera_width_px=360)
    pictures = (Image.fromarray(render_answers(f, answer_of(f), class_names, view)) for f in frames)
    save_clip(pictures, path, seconds_per_frame)


@dataclass(frozen=True)
class _Lanes:
    """Lanes and elements as they are drawn, of labels or of an answer."""

    lines: list[NDArray[np.float64]]
    """n x [_POINTS, 3], EGO frame"""
    elements_xyxy_px: NDArray[np.floating]
    """[k, 4]"""
    names: list[str]
    """[k] state or meaning of each element"""
    scores: list[float] | None
    """[k], None for labels"""
    joints: list[tuple[int, int]]
    """(i, j): the end of lane i connects to the start of lane j"""
    governed: list[tuple[int, int]]
    """(i, j): element j governs lane i"""

    @property
    def is_label(self) -> bool:
        return self.scores is None

    @staticmethod
    def of_labels(labels: LaneLabels) -> _Lanes:
        return _Lanes(
            [_resampled(line) for line in labels.centrelines],
            labels.elements_xyxy_px,
            [ELEMENT_ATTRIBUTES[i] for i in labels.attributes],
            None,
            _pairs(labels.lane_lane),
            _pairs(labels.lane_element),
        )

    @staticmethod
    def of_graph(graph: LaneGraph, score_threshold: float) -> _Lanes:
        lanes = np.flatnonzero(graph.lane_scores >= score_threshold)
        elements = np.flatnonzero(graph.element_scores >= score_threshold)
        return _Lanes(
            [_resampled(graph.centrelines[i]) for i in lanes],
            graph.elements_xyxy_px[elements],
            [ELEMENT_ATTRIBUTES[i] for i in graph.attributes[elements]],
            graph.element_scores[elements].tolist(),
            _pairs(graph.lane_lane[np.ix_(lanes, lanes)]),
            _pairs(graph.lane_element[np.ix_(lanes, elements)]),
        )


def _pairs(edges: NDArray) -> list[tuple[int, int]]:
    return [(int(i), int(j)) for i, j in np.argwhere(edges > _MIN_EDGE)]


def _resampled(line: NDArray[np.floating]) -> NDArray[np.float64]:
    at = np.linspace(0, len(line) - 1, _POINTS)
    return np.stack([np.interp(at, np.arange(len(line)), line[:, axis]) for axis in range(3)], 1)


def element_colour(name: str) -> Colour:
    return ELEMENT_COLOURS.get(name, SIGN_COLOUR)


class _Canvas:
    """The picture of one frame while it is drawn."""

    def __init__(self, frame: Frame, answer: SceneAnswer | None, class_names: Sequence[str], view: View) -> None:
        self.frame, self.answer, self.view = frame, answer or SceneAnswer(frame.token), view
        self.true_boxes = labelled_boxes(frame, view)
        self.found_boxes = predicted_boxes(self.answer.boxes, class_names, view)
        self.lanes: list[_Lanes] = []
        if self.answer.lanes is not None:
            self.lanes.append(_Lanes.of_graph(self.answer.lanes, view.score_threshold))
        if frame.lanes is not None and view.ground_truth:
            self.lanes.append(_Lanes.of_labels(frame.lanes))
        self.voxels: list[tuple[str, NDArray[np.uint8], NDArray[np.bool_] | None]] = []
        self.voxel_classes = OCC3D_WAYMO if frame.occupancy_path.endswith(WAYMO_SUFFIX) else OCC3D_NUSCENES
        mask = None
        if frame.occupancy_path and view.ground_truth:
            labels = read_occupancy(frame.occupancy_path)
            mask = labels.mask_camera
            self.voxels.append(("voxels, labelled", labels.semantics, mask))
        if self.answer.occupancy is not None:
            self.voxels.append(("voxels, predicted", self.answer.occupancy.semantics, mask))
        self.unit = OVERSAMPLING * view.camera_width_px / 560
        self._front_image: Image.Image | None = None
        self.gap, self.bar = round(4 * self.unit), round(34 * self.unit)

    def draw(self) -> Image.Image:
        gap, bar, unit = self.gap, self.bar, self.unit
        camera_width = OVERSAMPLING * self.view.camera_width_px
        rows = camera_rows(self.frame)
        columns = max(len(row) for row in rows)
        left_width = round(camera_width * _LEFT_WIDTH) if self.voxels else columns * (camera_width + gap) - gap
        tile_width = (left_width - (columns - 1) * gap) // columns
        shape = float(np.median([v.camera.height_px / v.camera.width_px for v in self.frame.cameras]))
        tile = tile_width, round(tile_width * shape)
        cameras_height = len(rows) * (tile[1] + gap) - gap
        voxel_size = (left_width - gap) // 2, round((left_width - gap) / 2 * _VOXEL_SHAPE)
        height = cameras_height + (gap + voxel_size[1] if self.voxels else 0)
        above_width = round(camera_width * _ABOVE_WIDTH) if self.voxels else height

        canvas = Image.new("RGB", (left_width + above_width + 3 * gap, height + 2 * bar), BACKGROUND)
        for j, row in enumerate(rows):
            for i, camera_view in enumerate(row):
                image = self._camera(camera_view, tile)
                left = gap + (columns - len(row)) * (tile_width + gap) // 2 + i * (tile_width + gap)
                canvas.paste(image, (left, bar + j * (tile[1] + gap)))
        for i, panel in enumerate(self._voxel_panels(voxel_size)):
            canvas.paste(panel, (gap + i * (voxel_size[0] + gap), bar + cameras_height + gap))
        above = bev_panel(
            self.frame,
            self.true_boxes,
            self.found_boxes,
            (above_width, height),
            self.view,
            unit,
            self._lanes_above,
            self._elements_above,
        )
        canvas.paste(above, (2 * gap + left_width, bar))
        draw_title(canvas, self.frame, self._counts(), bar, gap, unit)
        draw_legend(canvas, self._legend(), bar, gap, unit)
        return canvas

    def _counts(self) -> str:
        parts = []
        answer = self.answer
        if answer.boxes is not None or len(self.true_boxes.boxes):
            parts.append(_count("boxes", len(self.true_boxes.boxes), answer.boxes, len(self.found_boxes.boxes)))
        for kind in ("lanes", "elements"):
            counts = {lanes.is_label: len(lanes.lines if kind == "lanes" else lanes.names) for lanes in self.lanes}
            if counts:
                parts.append(_count(kind, counts.get(True, 0), answer.lanes, counts.get(False, 0)))
        return "     ".join(parts)

    def _legend(self) -> list[LegendEntry]:
        entries = box_legend(self.true_boxes, self.found_boxes, self.view)
        present = {int(c) for _, semantics, _ in self.voxels for c in np.unique(semantics)}
        named = {text for _, text in entries}
        for i in sorted(present & set(range(len(self.voxel_classes) - 1))):
            name = self.voxel_classes[i].replace("_", " ")
            if name not in named:
                entries.append((VOXEL_COLOURS[self.voxel_classes[i]], name))
        return entries

    # -------------------------------------------------------------------------------------------------- panels

    def _voxel_panels(self, size: tuple[int, int]) -> Iterator[Image.Image]:
        """Two: labels and predictions from behind the car, or what there is from there and through the front camera."""
        small = size[0] // OVERSAMPLING, size[1] // OVERSAMPLING
        views = [(*grid, Viewpoint.behind(*small)) for grid in self.voxels]
        if len(views) == 1:
            front = self.frame.cameras[0]
            scale = min(small[0] / front.camera.width_px, small[1] / front.camera.height_px)
            camera = front.camera.resized(round(scale * front.camera.width_px), round(scale * front.camera.height_px))
            viewpoint = Viewpoint(camera, front.ego_from_camera)
            views.append((f"through {front.name}", *self.voxels[0][1:], viewpoint))
        for title, semantics, mask, viewpoint in views:
            picture = Image.fromarray(render_voxels(semantics, mask, viewpoint, self.voxel_classes))
            panel = Image.new("RGB", small, PANEL)
            panel.paste(picture, ((small[0] - picture.size[0]) // 2, (small[1] - picture.size[1]) // 2))
            panel = panel.resize(size, Image.Resampling.NEAREST)  # reduced again in the end
            text = title + (" (dark: no camera sees it)" if mask is not None else "")
            at = (8 * self.unit, 6 * self.unit)
            ImageDraw.Draw(panel).text(at, text, fill=QUIET_TEXT, font=font_of(11 * self.unit))
            yield panel

    def _camera(self, camera_view: CameraView, size: tuple[int, int]) -> Image.Image:
        is_front = camera_view is self.frame.cameras[0]
        return camera_tile(
            self.frame,
            camera_view,
            self.true_boxes,
            self.found_boxes,
            size,
            self.unit,
            below=self._lanes_in_camera,
            on_top=self._elements_in_camera if is_front else None,
        )

    def _lanes_in_camera(self, draw: ImageDraw.ImageDraw, view: CameraView, camera: PinholeCamera) -> None:
        camera_from_ego = invert_pose(self.frame.ego_from_bev @ self.frame.bev_from_camera(view))
        for lanes in self.lanes:
            colour = GROUND_TRUTH if lanes.is_label else LANE_COLOUR
            stroke = max(1, round((1.0 if lanes.is_label else 2.2) * self.unit))
            for line in lanes.lines:
                for path in _paths_in_front(transform_points(camera_from_ego, line)):
                    uv, _ = camera.project(path)
                    draw.line([tuple(p) for p in uv], fill=(*colour, 230), width=stroke, joint="curve")

    def _elements_in_camera(self, draw: ImageDraw.ImageDraw, view: CameraView, camera: PinholeCamera) -> None:
        scale = 2 * [camera.width_px / view.camera.width_px, camera.height_px / view.camera.height_px]
        taken: list[Extent | None] = []
        unit = self.unit
        for lanes in self.lanes:
            for i, name in enumerate(lanes.names):
                box = (lanes.elements_xyxy_px[i] * np.array(scale)).tolist()
                if lanes.is_label:
                    box = [box[0] - 2 * unit, box[1] - 2 * unit, box[2] + 2 * unit, box[3] + 2 * unit]
                colour = GROUND_TRUTH if lanes.is_label else element_colour(name)
                draw.rectangle(box, outline=(*colour, 255), width=max(1, round((1 if lanes.is_label else 2) * unit)))
                if not lanes.is_label:
                    text = f"{name.replace('_', ' ')} {lanes.scores[i]:.2f}"
                    taken.append(
                        draw_tag(draw, (box[0], max(box[1] - 14 * unit, 0)), text, colour, 9.5 * unit, unit, taken)
                    )

    def _lanes_above(self, panel: Image.Image, pixels: Pixels) -> None:
        draw = ImageDraw.Draw(panel, "RGBA")
        for lanes in self.lanes:
            self._directed(draw, pixels, lanes)
        for lanes in self.lanes:
            self._joints(draw, pixels, lanes)

    def _elements_above(self, panel: Image.Image, pixels: Pixels) -> None:
        draw = ImageDraw.Draw(panel, "RGBA")
        for lanes in self.lanes:
            self._governed(draw, panel, pixels, lanes)

    def _directed(self, draw: ImageDraw.ImageDraw, pixels: Pixels, lanes: _Lanes) -> None:
        unit = self.unit
        colour = GROUND_TRUTH if lanes.is_label else LANE_COLOUR
        stroke = max(1, round((1.0 if lanes.is_label else 2.2) * unit))
        for line in lanes.lines:
            uv = pixels(line)
            draw.line([tuple(p) for p in uv], fill=(*colour, 255), width=stroke, joint="curve")
            length = np.linalg.norm(np.diff(uv, axis=0), axis=1).sum()
            at = _POINTS // 2 if lanes.is_label else int(_POINTS * 0.6)  # beside one another where both agree
            heading = uv[at] - uv[at - 1]
            if length > 12 * unit and np.linalg.norm(heading) > 0:
                heading *= (4.5 if lanes.is_label else 6) * unit / np.linalg.norm(heading)
                across = np.array([-heading[1], heading[0]]) * 0.6
                tip = [uv[at] + heading, uv[at] - heading * 0.4 + across, uv[at] - heading * 0.4 - across]
                draw.polygon([tuple(p) for p in tip], fill=(*colour, 255))

    def _joints(self, draw: ImageDraw.ImageDraw, pixels: Pixels, lanes: _Lanes) -> None:
        unit = self.unit
        for i, j in lanes.joints:
            a, b = pixels(lanes.lines[i][-1]), pixels(lanes.lines[j][0])
            middle = (a + b) / 2
            if lanes.is_label:
                r = 4.5 * unit
                draw.ellipse((*(middle - r), *(middle + r)), outline=(*GROUND_TRUTH, 255), width=max(1, round(unit)))
            else:
                r = 3 * unit
                draw.line([tuple(a), tuple(b)], fill=(*EDGE_COLOUR, 255), width=max(1, round(1.6 * unit)))
                draw.ellipse((*(middle - r), *(middle + r)), fill=(*EDGE_COLOUR, 255))

    def _governed(self, draw: ImageDraw.ImageDraw, panel: Image.Image, pixels: Pixels, lanes: _Lanes) -> None:
        """A row of the elements, labelled ones below predicted ones, each tied to the lanes it governs."""
        if not lanes.names:
            return
        unit, side = self.unit, round(_THUMBNAIL * self.unit)
        width = panel.size[0]
        font = font_of(10 * unit)
        texts = [name.replace("_", " ") for name in lanes.names]
        if not lanes.is_label:
            texts = [f"{text} {score:.2f}" for text, score in zip(texts, lanes.scores)]
        widths = [draw.textlength(text, font=font) + side + 13 * unit for text in texts]
        step = min(1.0, (width - 16 * unit) / (sum(widths) + 6 * unit * len(widths)))
        below_others = lanes.is_label and any(other.names for other in self.lanes if not other.is_label)
        x, y = 8 * unit, 26 * unit + (side + 6 * unit) * below_others
        for k, (name, text, chip) in enumerate(zip(lanes.names, texts, widths)):
            tie = GROUND_TRUTH if lanes.is_label else element_colour(name)
            foot = x + side / 2, y + side
            for i in (i for i, j in lanes.governed if j == k):
                middle = pixels(lanes.lines[i][_POINTS // 2])
                draw.line([foot, tuple(middle)], fill=(*tie, 150), width=max(1, round(1.1 * unit)))
                r = 3 * unit
                draw.ellipse((*(middle - r), *(middle + r)), fill=(*tie, 255))
            draw.rounded_rectangle((x, y, x + chip, y + side), 4 * unit, fill=PANEL, outline=tie, width=round(unit))
            panel.paste(self._thumbnail(lanes.elements_xyxy_px[k], side - 6), (round(x) + 3, round(y) + 3))
            draw.text((x + side + 5 * unit, y + side / 2), text, fill=TEXT, font=font, anchor="lm")
            x += (chip + 6 * unit) * step

    def _thumbnail(self, box_xyxy_px: NDArray[np.floating], side: int) -> Image.Image:
        """The surroundings of a traffic element, from the front image as it lies on disk."""
        front = self.frame.cameras[0]
        if self._front_image is None:
            self._front_image = load_image(self.frame, front, (front.camera.width_px, front.camera.height_px))
        middle, half = (box_xyxy_px[:2] + box_xyxy_px[2:]) / 2, max(0.75 * np.max(box_xyxy_px[2:] - box_xyxy_px[:2]), 4)
        window = [round(float(v)) for v in (*(middle - half), *(middle + half))]
        return self._front_image.crop(window).resize((side, side), Image.Resampling.BICUBIC)


def _count(what: str, labelled: int, answer: object | None, predicted: int) -> str:
    numbers = [f"{labelled} labelled"] if labelled else []
    numbers += [f"{predicted} predicted"] if answer is not None else []
    return f"{what}: {', '.join(numbers)}" if numbers else ""


def _paths_in_front(points_camera: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """The parts of an open line [points, 3] of the camera frame with depth >= NEAR_M, [>= 2, 3] each."""
    paths: list[list[NDArray[np.float64]]] = [[]]
    for a, b in pairwise(points_camera):
        ahead = a[2] >= NEAR_M, b[2] >= NEAR_M
        if any(ahead):
            crossing = a + (NEAR_M - a[2]) / (b[2] - a[2]) * (b - a) if not all(ahead) else a
            start, end = (a if ahead[0] else crossing), (b if ahead[1] else crossing)
            paths[-1] += [start, end] if not paths[-1] else [end]
        if not ahead[1] and paths[-1]:
            paths.append([])
    return [np.array(path) for path in paths if len(path) > 1]


def draw_pictures(
    frames: Iterable[Frame],
    answer_of: Callable[[Frame], SceneAnswer],
    class_names: Sequence[str],
    folder: Path,
    score_threshold: float,
) -> list[Path]:
    """One PNG per frame, ``scene_time_token.png``; the paths."""
    view = View(score_threshold=score_threshold)
    paths = []
    for frame in frames:
        name = f"{frame.scene_name or 'scene'}_{frame.timestamp_us}_{frame.token[:8]}.png"
        path = folder / name.replace("/", "_")  # names of OpenLane-V2 are paths
        save_picture(Image.fromarray(render_answers(frame, answer_of(frame), class_names, view)), path)
        paths.append(path)
    return paths
