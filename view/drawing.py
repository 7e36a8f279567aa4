"""Parts of pictures: settings (View), strokes, letters, labels that do not cover one another, the legend.

Everything is drawn at twice the size and averaged down, which is what makes the lines smooth. Pixels here are canvas
pixels of the double size unless a name says otherwise. ``unit`` is the width of a thin line in them; it grows with the
picture, and letters with it, but never below a readable size.
Shapes: n points.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .colours import GROUND_TRUTH, QUIET_TEXT, TEXT, Colour

Extent = tuple[float, float, float, float]
"""left, top, right, bottom"""

OVERSAMPLING = 2
NEAR_M = 0.2
LEAST_LETTERS_PX = 10.0
"""Size of the smallest letters in the finished picture."""
SCORE_LETTERS_PX = 13.0
"""Likewise of scores from above: their figures are 9 pixels high."""
_DASH, _LEAST_DASH_PX, _GAP = 6.0, 5.0, 0.7  # of ground truth: in thin lines, but so many pixels in the end; in dashes
_FAR_OUT_PX = 50.0  # lines are cut this far outside the picture


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


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@lru_cache(maxsize=64)
def font_of(size: float) -> Font:
    return ImageFont.load_default(size=size)


def letters(size: float, unit: float, least_px: float = LEAST_LETTERS_PX) -> Font:
    """The font of ``size`` thin lines, but not below ``least_px`` pixels of the finished picture."""
    return font_of(max(size * unit, least_px * OVERSAMPLING))


def shown(name: str) -> str:
    """A class name as it is written in pictures."""
    return plain_letters(name.replace("_", " "))


def plain_letters(text: str) -> str:
    """Text in the letters that the font has, the ASCII ones: umlauts and accents lose their dots, others become their
    code points."""
    plain = unicodedata.normalize("NFKD", text.replace("ß", "ss"))
    return "".join(c if c.isascii() else f" U+{ord(c):04X} " for c in plain if not unicodedata.combining(c)).strip()


# --------------------------------------------------------------------------------------------------------- strokes


def draw_path(
    draw: ImageDraw.ImageDraw,
    path: NDArray[np.floating] | Sequence[tuple[float, float]],
    colour: Colour,
    unit: float,
    is_label: bool,
    width: float = 2.0,
    alpha: int = 255,
) -> None:
    """An open line of pixels [n, 2]: ``width`` thin lines wide, or, of a label, one thin line in dashes."""
    path = np.asarray(path, np.float64).reshape(-1, 2)
    stroke = max(OVERSAMPLING, round((1.0 if is_label else width) * unit))
    for part in visible_parts(path, draw.im.size):
        pieces = _dashes(part, max(_DASH * unit, _LEAST_DASH_PX * OVERSAMPLING)) if is_label else [part]
        for piece in pieces:
            draw.line([tuple(p) for p in piece], fill=(*colour, alpha), width=stroke, joint="curve")


def visible_parts(path: NDArray[np.float64], size: tuple[int, int]) -> list[NDArray[np.float64]]:
    """The parts of a line [n, 2] inside a picture of ``size`` (and a margin), each [>= 2, 2]; points that are not
    finite (out of a lens's sight) interrupt it."""
    low, high = -_FAR_OUT_PX, np.array(size) + _FAR_OUT_PX
    if ((path > low) & (path < high)).all():
        return [path] if len(path) > 1 else []
    parts: list[list[NDArray[np.float64]]] = []
    for a, b in pairwise(path):
        with np.errstate(divide="ignore", invalid="ignore"):
            at = np.stack([(low - a) / (b - a), (high - a) / (b - a)])  # [2 sides, 2 axes]
        still = a == b
        if ((a < low) | (a > high))[still].any() or not np.isfinite([a, b]).all():
            continue
        at[:, still] = np.array([[-np.inf], [np.inf]])
        start, end = max(0.0, at.min(0).max()), min(1.0, at.max(0).min())
        if not start < end:
            continue
        if not parts or start > 0 or not np.array_equal(parts[-1][-1], a):
            parts.append([a + start * (b - a)])
        parts[-1].append(a + end * (b - a) if end < 1 else b)
    return [np.array(part) for part in parts]


def _dashes(path: NDArray[np.float64], dash: float) -> list[NDArray[np.float64]]:
    """A line [n, 2] in dashes of about that length and somewhat shorter gaps, beginning and ending with a dash."""
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
    count = max(1, round((along[-1] / dash + _GAP) / (1 + _GAP)))
    dash = along[-1] / (count * (1 + _GAP) - _GAP)
    at = (1 + _GAP) * dash * np.arange(count)[:, None] + np.linspace(0, dash, 3)  # [count, 3]
    return list(np.stack([np.interp(at, along, path[:, axis]) for axis in (0, 1)], -1))


def draw_polygon(
    draw: ImageDraw.ImageDraw, outline: NDArray[np.floating], colour: Colour, unit: float, is_label: bool
) -> None:
    """The outline of a closed polygon [n, 2]."""
    draw_path(draw, np.concatenate([outline, outline[:1]]), colour, unit, is_label)


# ---------------------------------------------------------------------------------------------------------- labels


class Labels:
    """Short texts in one picture, none of which covers another one."""

    def __init__(self, draw: ImageDraw.ImageDraw, unit: float) -> None:
        self.draw, self.unit = draw, unit
        self.taken: list[Extent] = []

    def reserve(self, place: Extent) -> None:
        """Keep texts away from a place."""
        self.taken.append(place)

    def beside(
        self,
        extent: Extent,
        text: str,
        colour: Colour,
        font: Font,
        sides: Literal["above", "right"] = "above",
    ) -> Extent | None:
        """Write near something of that extent, on a dark plate: the first free place around it; nothing, and None, if
        there is none.

        sides: which places come first, "above" (for boxes in a camera) or "right" (for boxes from above).
        """
        left, top, right, bottom = self.draw.textbbox((0, 0), text, font=font)
        pad = 2 * self.unit
        size = right - left + 2 * pad, bottom - top + 2 * pad
        for x, y in _places(extent, size, sides):
            limit = self.draw.im.size
            x, y = min(max(x, 0.0), limit[0] - size[0]), min(max(y, 0.0), limit[1] - size[1])
            place = (x, y, x + size[0], y + size[1])
            if x < 0 or y < 0 or any(overlap(place, other) for other in self.taken):
                continue
            self.taken.append(place)
            self.draw.rectangle(place, fill=(0, 0, 0, 150))
            self.draw.text((x + pad - left, y + pad - top), text, fill=(*colour, 255), font=font)
            return place
        return None


def overlap(a: Extent, b: Extent) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _places(extent: Extent, size: tuple[float, float], sides: str) -> list[tuple[float, float]]:
    """Upper left corners for a text of ``size`` around ``extent``, best first."""
    left, top, right, bottom = extent
    width, height = size
    middle_x, middle_y = (left + right - width) / 2, (top + bottom - height) / 2
    beside = [(right, middle_y), (left - width, middle_y)]
    if sides == "right":
        corners = [(right, top - height), (right, bottom), (left - width, top - height), (left - width, bottom)]
        return [*beside, (middle_x, top - height), (middle_x, bottom), *corners]
    above = [(x, top - height * line) for line in (1, 2, 3) for x in (left, right - width, middle_x)]
    below = [(x, bottom) for x in (left, right - width, middle_x)]
    return [*above[:3], *below, (left, top), *beside, *above[3:]]


# ------------------------------------------------------------------------------------------------ title and legend

Mark = Literal["box", "line", "dashed", "joint", "ring", "tie", "frame", "dots"]


@dataclass(frozen=True)
class LegendEntry:
    """A mark as it is drawn in the picture and what it stands for; without a colour a remark."""

    colour: Colour | None
    text: str
    mark: Mark = "box"


_MARK, _MARK_GAP, _ENTRY_GAP, _LEGEND_LETTERS = 16.0, 6.0, 22.0, 13.0  # widths and size in thin lines


def _legend_unit(unit: float) -> float:
    return max(unit, LEAST_LETTERS_PX * OVERSAMPLING / _LEGEND_LETTERS)


def legend_rows(entries: Sequence[LegendEntry], width: float, unit: float) -> list[list[LegendEntry]]:
    """The entries in as many rows as the width of the picture requires."""
    unit = _legend_unit(unit)
    font = font_of(_LEGEND_LETTERS * unit)
    rows: list[list[LegendEntry]] = [[]]
    x = 0.0
    for entry in entries:
        needed = font.getlength(entry.text) + (_MARK + _MARK_GAP) * unit * (entry.colour is not None)
        if rows[-1] and x + needed > width:
            rows.append([])
            x = 0.0
        rows[-1].append(entry)
        x += needed + _ENTRY_GAP * unit
    return rows


def legend_row_height(unit: float) -> int:
    return round(24 * _legend_unit(unit))


def draw_legend(
    canvas: Image.Image, rows: Sequence[Sequence[LegendEntry]], left: float, top: float, unit: float
) -> None:
    """The legend below the panels; ``top``: of its first row."""
    height, unit = legend_row_height(unit), _legend_unit(unit)
    draw, font = ImageDraw.Draw(canvas), font_of(_LEGEND_LETTERS * unit)
    for j, row in enumerate(rows):
        x, y = left, top + (j + 0.5) * height
        for entry in row:
            if entry.colour is not None:
                _draw_mark(draw, entry, x, y, unit)
                x += (_MARK + _MARK_GAP) * unit
            draw.text((x, y), entry.text, fill=QUIET_TEXT if entry.colour is None else TEXT, font=font, anchor="lm")
            x += font.getlength(entry.text) + _ENTRY_GAP * unit


def _draw_mark(draw: ImageDraw.ImageDraw, entry: LegendEntry, x: float, y: float, unit: float) -> None:
    assert entry.colour is not None  # entries without one are text alone
    colour, stroke = entry.colour, max(2, round(2 * unit))
    middle, right = x + _MARK / 2 * unit, x + _MARK * unit
    radius = {"joint": 3.0, "ring": 4.5, "tie": 3.0}.get(entry.mark, 6.0) * unit
    around = (middle - radius, y - radius, middle + radius, y + radius)
    if entry.mark == "box":
        draw.rectangle(around, fill=colour)
    elif entry.mark == "frame":
        draw.rectangle(around, outline=colour, width=stroke)
    elif entry.mark == "dashed":
        draw_path(draw, [(x, y), (right, y)], colour, 1.4 * unit, is_label=True)
    elif entry.mark == "line":
        draw.line([(x, y), (right, y)], fill=colour, width=stroke)
    elif entry.mark == "ring":
        draw.ellipse(around, outline=colour, width=max(1, round(unit)))
    elif entry.mark == "dots":
        for dx, dy in ((0, -3), (3, 2), (5, -1), (8, 3), (9, -4), (12, 0), (15, 3)):
            draw.rectangle((x + dx * unit, y + dy * unit, x + (dx + 1) * unit, y + (dy + 1) * unit), fill=colour)
    else:  # joint, tie
        draw_path(draw, [(x, y), (right, y)], colour, unit, colour == GROUND_TRUTH, 1.4)
        draw.ellipse(around, fill=colour)


def draw_title(canvas: Image.Image, text: str, counts: str, bar: int, gap: int, unit: float) -> None:
    """``text`` at the left, ``counts`` to the right, smaller where the two would meet; ``bar``: height of the line."""
    draw = ImageDraw.Draw(canvas)
    edge, size, right_size = gap + 4 * unit, 16 * unit, 14 * unit
    room = canvas.size[0] - 2 * edge - 16 * unit
    shrink = min(1.0, room / (font_of(size).getlength(text) + font_of(right_size).getlength(counts)))
    draw.text((edge, bar / 2), text, fill=TEXT, font=font_of(size * shrink), anchor="lm")
    at = (canvas.size[0] - edge, bar / 2)
    draw.text(at, counts, fill=QUIET_TEXT, font=font_of(right_size * shrink), anchor="rm")


GROUND_TRUTH_ENTRY = LegendEntry(GROUND_TRUTH, "ground truth (thin green dashes)", "dashed")
