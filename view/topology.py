"""Lanes, traffic elements and their topology in cameras and from above.

Predicted lanes are blue, their joints white, traffic elements have the colour of what they say; labels are thin, dashed
and green. Pixels of this file are canvas pixels of the double size (view/drawing.py); n lanes, k traffic elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..core.answers import LaneGraph
from ..core.frames import CameraView
from ..core.labels import ELEMENT_ATTRIBUTES, LaneLabels
from ..geometry import CameraModel, transform_points
from .colours import ELEMENT_COLOURS, GROUND_TRUTH, JOINT_COLOUR, LANE_COLOUR, PANEL, SIGN_COLOUR, TEXT, Colour
from .curves import lines_in_camera
from .drawing import Labels, LegendEntry, draw_path, draw_polygon, letters, shown
from .panels import Pixels

_MIN_EDGE = 0.5  # probability from which an edge of the topology is drawn
_POINTS = 24  # of a lane as it is drawn
_THUMBNAIL = 34  # height of a traffic element in the scene from above
_LANE_WIDTH = 2.2  # in thin lines


@dataclass(frozen=True)
class DrawnLanes:
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
    def of_labels(labels: LaneLabels) -> DrawnLanes:
        return DrawnLanes(
            [_resampled(line) for line in labels.centrelines],
            labels.elements_xyxy_px,
            [ELEMENT_ATTRIBUTES[i] for i in labels.attributes],
            None,
            _pairs(labels.lane_lane),
            _pairs(labels.lane_element),
        )

    @staticmethod
    def of_graph(graph: LaneGraph, score_threshold: float) -> DrawnLanes:
        lanes = np.flatnonzero(graph.lane_scores >= score_threshold)
        elements = np.flatnonzero(graph.element_scores >= score_threshold)
        return DrawnLanes(
            [_resampled(graph.centrelines[i]) for i in lanes],
            graph.elements_xyxy_px[elements],
            [ELEMENT_ATTRIBUTES[i] for i in graph.attributes[elements]],
            graph.element_scores[elements].tolist(),
            _pairs(graph.lane_lane[np.ix_(lanes, lanes)]),
            _pairs(graph.lane_element[np.ix_(lanes, elements)]),
        )

    def text(self, k: int) -> str:
        """The attribute of element k, and the score of a prediction."""
        name = shown(self.names[k])
        return name if self.scores is None else f"{name} {self.scores[k]:.2f}"

    def colour(self, k: int) -> Colour:
        return GROUND_TRUTH if self.is_label else element_colour(self.names[k])


def _pairs(edges: NDArray) -> list[tuple[int, int]]:
    return [(int(i), int(j)) for i, j in np.argwhere(edges > _MIN_EDGE)]


def _resampled(line: NDArray[np.floating]) -> NDArray[np.float64]:
    at = np.linspace(0, len(line) - 1, _POINTS)
    return np.stack([np.interp(at, np.arange(len(line)), line[:, axis]) for axis in range(3)], 1)


def element_colour(name: str) -> Colour:
    """Of a predicted light's state; signs and unknown lights share one."""
    return ELEMENT_COLOURS.get(name, SIGN_COLOUR)


def lane_legend(drawn: Sequence[DrawnLanes]) -> list[LegendEntry]:
    """Legend entries of the lanes and elements in the picture, of labels and of predictions."""
    entries: list[LegendEntry] = []
    for lanes in drawn:
        governed = [(lanes.colour(j), lanes.names[j]) for _, j in lanes.governed]
        if lanes.is_label:
            entries += [LegendEntry(GROUND_TRUTH, "labelled joint of two lanes", "ring")] * bool(lanes.joints)
            entries += [LegendEntry(GROUND_TRUTH, "labelled element and lane it governs", "tie")] * bool(governed)
            continue
        entries += [LegendEntry(LANE_COLOUR, "lane, arrow along the traffic", "line")] * bool(lanes.lines)
        entries += [LegendEntry(JOINT_COLOUR, "joint of two lanes", "joint")] * bool(lanes.joints)
        for name in dict.fromkeys(name if name in ELEMENT_COLOURS else "" for name in lanes.names):
            text = f"{name} light" if name else "sign or unknown light"
            entries.append(LegendEntry(element_colour(name), text, "frame"))
        if governed:
            entries.append(LegendEntry(governed[0][0], "tie: element governs lane", "tie"))
    return entries


# ---------------------------------------------------------------------------------------------------- one camera


def lanes_in_camera(
    draw: ImageDraw.ImageDraw,
    camera: CameraModel,
    camera_from_ego: NDArray[np.float64],
    drawn: Sequence[DrawnLanes],
    unit: float,
) -> None:
    """Draws lanes where the camera sees them (or would, without what stands before them)."""
    for lanes in drawn:
        colour = GROUND_TRUTH if lanes.is_label else LANE_COLOUR
        for line in lanes.lines:
            for uv in lines_in_camera(camera, transform_points(camera_from_ego, line)):
                draw_path(draw, uv, colour, unit, lanes.is_label, _LANE_WIDTH, alpha=230)


def elements_in_camera(
    draw: ImageDraw.ImageDraw,
    view: CameraView,
    camera: CameraModel,
    labels: Labels,
    drawn: Sequence[DrawnLanes],
    unit: float,
) -> None:
    """Draws frames around traffic elements, of predictions with what they say; ``camera``: of the image as drawn."""
    scale = 2 * [camera.width_px / view.camera.width_px, camera.height_px / view.camera.height_px]
    for lanes in drawn:
        for k in range(len(lanes.names)):
            left, top, right, bottom = (lanes.elements_xyxy_px[k] * np.array(scale)).tolist()
            if lanes.is_label:
                left, top, right, bottom = left - 2 * unit, top - 2 * unit, right + 2 * unit, bottom + 2 * unit
            outline = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
            draw_polygon(draw, outline, lanes.colour(k), unit, lanes.is_label)
            if not lanes.is_label:
                labels.beside((left, top, right, bottom), lanes.text(k), lanes.colour(k), letters(9.5, unit))


# ------------------------------------------------------------------------------------------------------ from above


def lanes_above(panel: Image.Image, pixels: Pixels, drawn: Sequence[DrawnLanes], unit: float) -> None:
    """Draws lanes with an arrow each, then their joints."""
    draw = ImageDraw.Draw(panel, "RGBA")
    for lanes in drawn:
        _directed(draw, pixels, lanes, unit)
    for lanes in drawn:
        _joints(draw, pixels, lanes, unit)


def _directed(draw: ImageDraw.ImageDraw, pixels: Pixels, lanes: DrawnLanes, unit: float) -> None:
    colour = GROUND_TRUTH if lanes.is_label else LANE_COLOUR
    for line in lanes.lines:
        uv = pixels(line)
        draw_path(draw, uv, colour, unit, lanes.is_label, _LANE_WIDTH)
        length = np.linalg.norm(np.diff(uv, axis=0), axis=1).sum()
        at = _POINTS // 2 if lanes.is_label else int(_POINTS * 0.6)  # beside one another where both agree
        heading = uv[at] - uv[at - 1]
        if length > 12 * unit and np.linalg.norm(heading) > 0:
            heading *= (4.5 if lanes.is_label else 6) * unit / np.linalg.norm(heading)
            across = np.array([-heading[1], heading[0]]) * 0.6
            tip = [uv[at] + heading, uv[at] - heading * 0.4 + across, uv[at] - heading * 0.4 - across]
            draw.polygon([tuple(p) for p in tip], fill=(*colour, 255))


def _joints(draw: ImageDraw.ImageDraw, pixels: Pixels, lanes: DrawnLanes, unit: float) -> None:
    for i, j in lanes.joints:
        a, b = pixels(lanes.lines[i][-1]), pixels(lanes.lines[j][0])
        middle = (a + b) / 2
        if lanes.is_label:
            r = 4.5 * unit
            draw.ellipse((*(middle - r), *(middle + r)), outline=(*GROUND_TRUTH, 255), width=max(1, round(unit)))
        else:
            r = 3 * unit
            draw_path(draw, [tuple(a), tuple(b)], JOINT_COLOUR, unit, False, 1.6)
            draw.ellipse((*(middle - r), *(middle + r)), fill=(*JOINT_COLOUR, 255))


def elements_above(
    panel: Image.Image,
    pixels: Pixels,
    labels: Labels,
    drawn: Sequence[DrawnLanes],
    front_image_bgr: NDArray[np.uint8] | None,
    unit: float,
) -> None:
    """Rows of the elements in the upper left corner, labelled ones below predicted ones, each tied to the lanes that it
    governs. front_image_bgr: [H, W, 3] of the front camera; without it the elements have no thumbnails."""
    top = 26 * unit
    for lanes in sorted(drawn, key=lambda lanes: lanes.is_label):
        if lanes.names:
            _element_row(panel, pixels, labels, lanes, front_image_bgr, top, unit)
            top += (_THUMBNAIL + 6) * unit


def _element_row(
    panel: Image.Image,
    pixels: Pixels,
    labels: Labels,
    lanes: DrawnLanes,
    front_image_bgr: NDArray[np.uint8] | None,
    top: float,
    unit: float,
) -> None:
    draw = ImageDraw.Draw(panel, "RGBA")
    side, font = round(_THUMBNAIL * unit), letters(10, unit)
    picture = 0 if front_image_bgr is None else side
    texts = [lanes.text(k) for k in range(len(lanes.names))]
    widths = [draw.textlength(text, font=font) + picture + 13 * unit for text in texts]
    step = min(1.0, (panel.size[0] - 16 * unit) / (sum(widths) + 6 * unit * len(widths)))
    x = 8 * unit
    for k, (text, width) in enumerate(zip(texts, widths)):
        colour = lanes.colour(k)
        foot = x + (picture or width) / 2, top + side
        for i in (i for i, j in lanes.governed if j == k):
            middle = pixels(lanes.lines[i][_POINTS // 2])
            draw_path(draw, [foot, tuple(middle)], colour, unit, lanes.is_label, 1.1, alpha=170)
            r = 3 * unit
            draw.ellipse((*(middle - r), *(middle + r)), fill=(*colour, 255))
        place = (x, top, x + width, top + side)
        stroke = round((1 if lanes.is_label else 2) * unit)
        draw.rounded_rectangle(place, 4 * unit, fill=PANEL, outline=colour, width=stroke)
        labels.reserve(place)
        if front_image_bgr is not None:
            inner = side - 2 * stroke - 2
            thumbnail = _thumbnail(front_image_bgr, lanes.elements_xyxy_px[k], inner)
            panel.paste(thumbnail, (round(x) + stroke + 1, round(top) + stroke + 1))
        draw.text((x + picture + 5 * unit, top + side / 2), text, fill=TEXT, font=font, anchor="lm")
        x += (width + 6 * unit) * step


def _thumbnail(image_bgr: NDArray[np.uint8], box_xyxy_px: NDArray[np.floating], side: int) -> Image.Image:
    """The surroundings of a traffic element in an image [H, W, 3]."""
    middle, half = (box_xyxy_px[:2] + box_xyxy_px[2:]) / 2, max(0.75 * np.max(box_xyxy_px[2:] - box_xyxy_px[:2]), 4)
    left, top, right, bottom = (round(float(v)) for v in (*(middle - half), *(middle + half)))
    image = Image.fromarray(image_bgr[..., ::-1]).crop((left, top, right, bottom))
    return image.resize((side, side), Image.Resampling.BICUBIC)
