"""Strokes, labels that do not cover one another, the legend."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from drivestack.view.colours import GROUND_TRUTH
from drivestack.view.drawing import (
    OVERSAMPLING,
    SCORE_LETTERS_PX,
    Labels,
    LegendEntry,
    draw_legend,
    draw_path,
    font_of,
    legend_row_height,
    legend_rows,
    letters,
    overlap,
    shown,
    visible_parts,
)

RED = (255, 0, 0)


def drawn_row(is_label: bool) -> np.ndarray:
    """[100] whether the pixels under a line through the middle are painted."""
    image = Image.new("RGB", (100, 9))
    draw_path(ImageDraw.Draw(image, "RGBA"), [(0, 4), (99, 4)], GROUND_TRUTH, 2.0, is_label)
    return np.asarray(image)[4].max(-1) > 0


def test_labels_are_dashed_and_predictions_are_not() -> None:
    assert drawn_row(False).all()
    dashes = drawn_row(True)
    assert dashes[:2].any() and dashes[-2:].any()
    assert 0.3 < dashes.mean() < 0.8
    assert np.abs(np.diff(dashes.astype(int))).sum() >= 6


def test_only_the_visible_part_of_a_line_is_kept() -> None:
    (inside,) = visible_parts(np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 5.0]]), (10, 10))
    assert len(inside) == 3
    (cut,) = visible_parts(np.array([[5.0, 5.0], [1e9, 5.0]]), (10, 10))
    assert cut[-1, 0] == pytest.approx(60) and cut[-1, 1] == 5
    assert not visible_parts(np.array([[-900.0, -900.0], [-900.0, 900.0]]), (10, 10))
    assert not visible_parts(np.array([[-900.0, 5.0], [-900.0, 5.0]]), (10, 10))
    parts = visible_parts(np.array([[5.0, 5.0], [500.0, 5.0], [500.0, 8.0], [5.0, 8.0]]), (10, 10))
    assert len(parts) == 2  # out at the right, back in below
    parts = visible_parts(np.array([[1.0, 1.0], [2.0, 2.0], [np.nan, np.nan], [3.0, 3.0], [4.0, 4.0]]), (10, 10))
    assert [len(part) for part in parts] == [2, 2]


def test_labels_never_cover_one_another_and_stay_in_the_picture() -> None:
    random = np.random.default_rng(0)
    image = Image.new("RGB", (640, 360))
    labels = Labels(ImageDraw.Draw(image, "RGBA"), 2.0)
    places = []
    for _ in range(60):  # a crowd
        left, top = random.uniform((150, 120), (450, 200))
        places.append(labels.beside((left, top, left + 30, top + 60), "pedestrian 0.77", RED, letters(9.5, 2.0)))
    written = [place for place in places if place is not None]
    assert len(written) > 8 and None in places
    assert not any(overlap(a, b) for a, b in combinations(written, 2))
    for left, top, right, bottom in written:
        assert left >= 0 and top >= 0 and right <= 640 and bottom <= 360


def test_a_covered_label_moves_to_another_side() -> None:
    image = Image.new("RGB", (300, 300))
    labels = Labels(ImageDraw.Draw(image, "RGBA"), 2.0)
    extent = (100, 100, 160, 160)
    above = labels.beside(extent, "one", RED, letters(9.5, 2.0))
    labels.reserve((0, 0, 300, 100))
    below = labels.beside(extent, "two", RED, letters(9.5, 2.0))
    assert above[3] <= 100 and below[1] >= 160
    assert labels.beside((140, 0, 150, 10), "wider than there is room" * 9, RED, letters(9.5, 2.0)) is None


@pytest.mark.parametrize("unit", [0.4, 1.0, 2.0])
def test_figures_from_above_are_at_least_nine_pixels_high(unit: float) -> None:
    _, top, _, bottom = letters(8, unit, SCORE_LETTERS_PX).getbbox("0")
    assert (bottom - top) / OVERSAMPLING >= 9


def test_the_legend_breaks_into_rows_and_shows_every_mark() -> None:
    marks = ("box", "line", "dashed", "joint", "ring", "tie", "frame", "dots")
    entries = [LegendEntry((10 + 20 * i, 200, 90), f"entry {i}", mark) for i, mark in enumerate(marks)]
    rows = legend_rows(entries, 500, 2.0)
    assert len(rows) > 1 and [entry for row in rows for entry in row] == entries
    canvas = Image.new("RGB", (500, len(rows) * legend_row_height(2.0)))
    draw_legend(canvas, rows, 0, 0, 2.0)
    pixels = np.asarray(canvas).reshape(-1, 3)
    for entry in entries:
        assert (pixels == entry.colour).all(-1).sum() > 5, entry.mark
    for row in rows:
        assert sum(font_of(26.0).getlength(entry.text) for entry in row) < 500


def test_names_are_shown_in_letters_that_the_font_has() -> None:
    assert shown("two_wheeler") == "two wheeler"
    assert shown("Anhänger") == "Anhanger" and shown("straße") == "strasse"
    assert shown("行") == "U+884C" and shown("人") != shown("行")
