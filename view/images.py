"""One picture of an image model's answer: the image with boxes, masks or a class for every pixel, and a legend.

Pixels of this file are canvas pixels of the double size (view/drawing.py). Shapes: H and W of the image.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..core.errors import DataError
from ..core.image_answers import ImageAnswer, Instances
from .colours import BACKGROUND, TEXT, Palette
from .drawing import (
    OVERSAMPLING,
    Labels,
    LegendEntry,
    draw_legend,
    draw_polygon,
    legend_row_height,
    legend_rows,
    letters,
    shown,
)

_TINT = 0.45  # of masks and classes over the image
_LEAST_WIDTH_PX, _UNIT_OF_WIDTH = 480, 1 / 900
_MOST_COLOURS = 200
"""Of more classes only those in the picture get a colour, which may differ between pictures then."""
_TOP_CLASSES = 5


def render_image_answer(
    image: NDArray[np.uint8],
    answer: ImageAnswer,
    class_names: Sequence[str],
    score_threshold: float = 0.3,
    width_px: int | None = None,
) -> NDArray[np.uint8]:
    """The picture [h, w, 3] RGB.

    image: [H, W, 3] RGB, what the answer is about. class_names: what its labels index. score_threshold: instances below
    stay invisible. width_px: of the picture; default the image's, but at least 480.
    Raises DataError where answer and image differ in size, or a label has no name.
    """
    height, width = image.shape[:2]
    if answer.size_px != (width, height):
        raise DataError(
            f"image {answer.token}: the answer is about {answer.size_px[0]} x {answer.size_px[1]} pixels, the image "
            f"has {width} x {height}: give the image that was answered"
        )
    shown_width = OVERSAMPLING * (width_px or max(width, _LEAST_WIDTH_PX))
    size = shown_width, max(1, round(height * shown_width / width))
    scale = np.array([size[0] / width, size[1] / height] * 2)
    unit = max(1.0, shown_width * _UNIT_OF_WIDTH)
    smooth = cv2.INTER_AREA if size[0] < width else cv2.INTER_CUBIC
    canvas = np.asarray(cv2.resize(np.ascontiguousarray(image), size, interpolation=smooth), np.uint8)
    palette = _palette(answer, class_names, score_threshold)
    found: list[str] = []
    if answer.segmentation is not None:
        canvas = _tinted(canvas, answer.segmentation, class_names, palette)
        counts = np.bincount(answer.segmentation.ravel(), minlength=len(class_names))[: len(class_names)]
        found += [class_names[i] for i in np.argsort(-counts, kind="stable") if counts[i]]
    instances = _above(answer.instances, score_threshold)
    if instances is not None and instances.masks is not None:
        for mask, label in zip(instances.masks[::-1], instances.labels[::-1]):  # the best on top
            canvas = _tinted_where(canvas, mask, palette[_name(class_names, int(label), answer)])
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture, "RGBA")
    labels = Labels(draw, unit)
    if answer.probabilities is not None:
        _write_classes(labels, answer, class_names, unit)
    if instances is not None:
        _draw_instances(draw, labels, instances, answer, class_names, palette, scale, unit)
        found += [_name(class_names, int(label), answer) for label in instances.labels]
    return _with_legend(picture, list(dict.fromkeys(found)), palette, unit)


def _palette(answer: ImageAnswer, class_names: Sequence[str], score_threshold: float) -> Palette:
    if len(class_names) <= _MOST_COLOURS:
        surfaces = answer.segmentation is not None  # road, building, ... look as in voxels
        return Palette.of((), (*class_names, "")) if surfaces else Palette.of(tuple(class_names))
    instances = _above(answer.instances, score_threshold)
    seen = set() if instances is None else {int(label) for label in instances.labels}
    if answer.segmentation is not None:
        seen |= set(np.unique(answer.segmentation).tolist())
    return Palette.of(tuple(class_names[i] for i in sorted(seen) if i < len(class_names)))


def _above(instances: Instances | None, score_threshold: float) -> Instances | None:
    if instances is None:
        return None
    kept = instances.scores >= score_threshold
    masks = None if instances.masks is None else instances.masks[kept]
    return Instances(instances.boxes_xyxy_px[kept], instances.scores[kept], instances.labels[kept], masks)


def _name(class_names: Sequence[str], label: int, answer: ImageAnswer) -> str:
    if not 0 <= label < len(class_names):
        raise DataError(
            f"image {answer.token}: the answer has a class {label}, there are {len(class_names)} names: give the names "
            "of the model's classes"
        )
    return class_names[label]


def _tinted(
    canvas: NDArray[np.uint8], classes: NDArray[np.uint8], class_names: Sequence[str], palette: Palette
) -> NDArray[np.uint8]:
    """Every pixel tinted by its class [H, W]; classes without a name stay as they are."""
    colours = np.zeros((256, 3), np.uint8)
    named = np.zeros(256, bool)
    for i in np.unique(classes).tolist():
        if i < len(class_names):
            colours[i], named[i] = palette[class_names[i]], True
    size = canvas.shape[1], canvas.shape[0]
    large = cv2.resize(classes, size, interpolation=cv2.INTER_NEAREST)
    blended = cv2.addWeighted(canvas, 1 - _TINT, colours[large], _TINT, 0)
    return np.where(named[large][:, :, None], blended, canvas).astype(np.uint8)


def _tinted_where(canvas: NDArray[np.uint8], mask: NDArray[np.bool_], colour: Sequence[int]) -> NDArray[np.uint8]:
    size = canvas.shape[1], canvas.shape[0]
    large = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST).astype(bool)
    out = canvas.copy()
    out[large] = ((1 - _TINT) * canvas[large] + _TINT * np.array(colour)).astype(np.uint8)
    return out


def _draw_instances(
    draw: ImageDraw.ImageDraw,
    labels: Labels,
    instances: Instances,
    answer: ImageAnswer,
    class_names: Sequence[str],
    palette: Palette,
    scale: NDArray[np.float64],
    unit: float,
) -> None:
    boxes = instances.boxes_xyxy_px * scale  # [n, 4]
    names = [_name(class_names, int(label), answer) for label in instances.labels]
    for (left, top, right, bottom), name in reversed(list(zip(boxes, names))):
        corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
        draw_polygon(draw, corners, palette[name], unit, is_label=False)
    font = letters(9.5, unit)
    for box, name, score in zip(boxes, names, instances.scores):
        left, top, right, bottom = map(float, box)
        labels.beside((left, top, right, bottom), f"{shown(name)} {score:.2f}", palette[name], font)


def _write_classes(labels: Labels, answer: ImageAnswer, class_names: Sequence[str], unit: float) -> None:
    assert answer.probabilities is not None
    y = 3 * unit
    for i in np.argsort(-answer.probabilities, kind="stable")[:_TOP_CLASSES]:
        text = f"{shown(_name(class_names, int(i), answer))} {answer.probabilities[i]:.2f}"
        place = labels.beside((4 * unit, y, 4 * unit, y), text, TEXT, letters(13, unit))
        y = y if place is None else place[3]


def _with_legend(picture: Image.Image, names: Sequence[str], palette: Palette, unit: float) -> NDArray[np.uint8]:
    """Reduced to the finished size, below it the classes that were found."""
    if not names:
        return np.asarray(picture.reduce(OVERSAMPLING))
    width, height = picture.size
    edge = round(8 * unit)
    rows = legend_rows([LegendEntry(palette[name], shown(name)) for name in names], width - 2 * edge, unit)
    row = legend_row_height(unit)
    canvas = Image.new("RGB", (width, height + row * len(rows) + edge), BACKGROUND)
    canvas.paste(picture, (0, 0))
    draw_legend(canvas, rows, edge, height + edge / 2, unit)
    return np.asarray(canvas.reduce(OVERSAMPLING))
