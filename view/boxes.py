"""Boxes in a camera and from above: predictions in the colour of their class, labels thin, dashed and green.

Pixels of this file are canvas pixels of the double size (view/drawing.py); n boxes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..core.answers import NO_TRACK, Detections
from ..core.errors import DataError
from ..core.files import atomic_path
from ..core.frames import Frame
from ..data_tools.labels.mono_targets import nearness_m
from ..geometry import CameraModel, box_corners, box_corners_bev, transform_boxes, transform_points
from .colours import GROUND_TRUTH, Colour, Palette
from .curves import edge_in_camera, face_in_camera
from .drawing import (
    NEAR_M,
    SCORE_LETTERS_PX,
    Extent,
    Labels,
    LegendEntry,
    View,
    draw_path,
    draw_polygon,
    letters,
    overlap,
    shown,
)

# Corner numbers as drawn in geometry.box_corners.
_EDGES = ((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7))
_FRONT_FACE = (0, 1, 5, 4)
_LEAST_NAMED = 14  # height in a camera from which a box gets its name, in thin lines


def save_picture(picture: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write a PNG or JPEG, by the suffix, atomically."""
    with atomic_path(path) as temporary:
        picture.save(temporary)


@dataclass(frozen=True)
class Drawn:
    """Boxes that go into the picture, far ones first: labels or predictions."""

    boxes: NDArray[np.float64]
    """[n, 9], BEV frame"""
    names: list[str]
    colours: list[Colour]
    scores: NDArray[np.float64] | None
    """[n], None for labels"""
    track_ids: NDArray[np.int64] | None = None
    """[n], None where there are no tracks"""

    @property
    def is_label(self) -> bool:
        return self.scores is None

    @staticmethod
    def of(
        boxes: NDArray[np.float64],
        names: Sequence[str],
        colours: Sequence[Colour],
        scores: NDArray[np.float64] | None,
        track_ids: NDArray[np.int64] | None = None,
    ) -> Drawn:
        order = np.argsort(-np.hypot(boxes[:, 0], boxes[:, 1]))
        chosen = [names[i] for i in order], [colours[i] for i in order]
        ids = None if track_ids is None else track_ids[order]
        return Drawn(boxes[order], *chosen, None if scores is None else scores[order], ids)

    def text(self, i: int) -> str:
        """Name, track, and score of a prediction."""
        name = shown(self.names[i])
        if self.track_ids is not None and self.track_ids[i] != NO_TRACK:
            name += f" #{self.track_ids[i]}"
        return name if self.scores is None else f"{name} {self.scores[i]:.2f}"


def labelled_boxes(frame: Frame, view: View) -> Drawn:
    """The frame's labels that a sensor hit and whose class is known, if ``view`` shows labels."""
    labels = frame.annotations
    if labels is None or not view.ground_truth:
        return Drawn(np.zeros((0, 9)), [], [], None)
    seen = (np.asarray(labels.num_lidar_points) + np.asarray(labels.num_radar_points)) > 0
    keep = np.flatnonzero(seen & np.array([bool(name) for name in labels.names], dtype=bool))
    return Drawn.of(frame.bev_boxes()[keep], [labels.names[i] for i in keep], [GROUND_TRUTH] * len(keep), None)


def predicted_boxes(
    frame: Frame, detections: Detections | None, class_names: Sequence[str], palette: Palette, view: View
) -> Drawn:
    """The detections above the threshold of ``view``. Raises DataError if a label is not one of ``class_names``."""
    if detections is None:
        return Drawn(np.zeros((0, 9)), [], [], np.zeros(0))
    keep = np.flatnonzero(np.asarray(detections.scores) >= view.score_threshold)
    labels = np.asarray(detections.labels)[keep]
    for label in labels[(labels < 0) | (labels >= len(class_names))][:1]:
        raise DataError(
            f"sample {frame.token}: a box has label {label}, but there are {len(class_names)} class names; "
            "give the class list of the model that found it"
        )
    names = [class_names[label] for label in labels]
    boxes = np.asarray(detections.boxes, dtype=np.float64)[keep]
    scores = np.asarray(detections.scores, dtype=np.float64)[keep]
    ids = None if detections.track_ids is None else np.asarray(detections.track_ids)[keep]
    return Drawn.of(boxes, names, [palette[name] for name in names], scores, ids)


def box_legend(found: Drawn, palette: Palette) -> list[LegendEntry]:
    """An entry for each class that was found, in the order of the palette."""
    names = set(found.names)
    return [LegendEntry(palette[name], shown(name)) for name in palette if name in names]


# ---------------------------------------------------------------------------------------------------- one camera


def boxes_in_camera(
    draw: ImageDraw.ImageDraw,
    camera: CameraModel,
    camera_from_bev: NDArray[np.float64],
    drawn: Drawn,
    unit: float,
) -> list[tuple[int, Extent]]:
    """Draws boxes into an image; (index, extent) of those that are in sight and large enough for a name."""
    named = []
    for i in range(len(drawn.boxes)):
        corners = transform_points(camera_from_bev, box_corners(drawn.boxes[i : i + 1, :7])[0])  # [8, 3]
        extent = _draw_box(draw, camera, corners, drawn, i, unit)
        if extent is not None and extent[3] - extent[1] > _LEAST_NAMED * unit:
            named.append((i, extent))
    return named


def name_boxes(labels: Labels, drawn: Drawn, named: Sequence[tuple[int, Extent]], unit: float) -> None:
    """Names and scores beside boxes in a camera; the nearest objects get theirs first."""
    font = letters(9.5, unit)
    for i, extent in reversed(named):
        labels.beside(extent, drawn.text(i), drawn.colours[i], font)


def _draw_box(
    draw: ImageDraw.ImageDraw,
    camera: CameraModel,
    corners: NDArray[np.float64],
    drawn: Drawn,
    index: int,
    unit: float,
) -> Extent | None:
    """Draws one box of corners [8, 3] in the camera frame; its extent in the image, or None if out of sight."""
    near_m = nearness_m(corners, camera)
    if near_m.max() < NEAR_M or near_m.mean() < 0:
        return None
    segments = [edge_in_camera(camera, corners[list(edge)]) for edge in _EDGES]
    ends = np.concatenate(segments)
    ends = ends[np.isfinite(ends[:, 0])]
    if not len(ends):
        return None
    left, top = ends.min(0)
    right, bottom = ends.max(0)
    if right < 0 or bottom < 0 or left > camera.width_px or top > camera.height_px:
        return None
    colour, is_label = drawn.colours[index], drawn.is_label
    front = face_in_camera(camera, corners[list(_FRONT_FACE)])
    if len(front) >= 3:
        draw.polygon([tuple(p) for p in front], fill=(*colour, 45 if is_label else 90))
    nose = corners[[0, 1]].mean(0)  # where the heading leaves the floor of the box
    for segment in [*segments, edge_in_camera(camera, np.stack([corners[:4].mean(0), nose]))]:
        if len(segment) > 1:
            draw_path(draw, segment, colour, unit, is_label)
    return left, top, right, bottom


# ------------------------------------------------------------------------------------------------------ from above


def boxes_above(draw: ImageDraw.ImageDraw, footprints: NDArray[np.float64], drawn: Drawn, unit: float) -> None:
    """Draws footprints [n, 4, 2] in pixels, with a stroke from the middle over the front."""
    for footprint, colour in zip(footprints, drawn.colours):
        if not drawn.is_label:
            draw.polygon([tuple(p) for p in footprint], fill=(*colour, 70))
        draw_polygon(draw, footprint, colour, unit, drawn.is_label)
        middle, nose = footprint.mean(0), footprint[:2].mean(0)
        draw_path(draw, [tuple(middle), tuple(nose + (nose - middle) * 0.25)], colour, unit, drawn.is_label)


def scores_above(labels: Labels, footprints: NDArray[np.float64], drawn: Drawn, unit: float) -> None:
    """Scores of predictions beside their footprints [n, 4, 2], the nearest first."""
    font = letters(8, unit, SCORE_LETTERS_PX)
    if drawn.scores is None:  # labels
        return
    for i in reversed(range(len(footprints))):
        extent = (*footprints[i].min(0), *footprints[i].max(0))
        if not drawn.is_label and overlap(extent, (0, 0, *labels.draw.im.size)):
            labels.beside(extent, f"{drawn.scores[i]:.2f}", drawn.colours[i], font, sides="right")


def footprints_of(drawn: Drawn, ego_from_bev: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n, 4, 2] corners from above in the EGO frame."""
    return box_corners_bev(transform_boxes(ego_from_bev, drawn.boxes)) if len(drawn.boxes) else np.zeros((0, 4, 2))
