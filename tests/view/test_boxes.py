"""Boxes land where the projection says, labels in green, predictions in the colour of their class; cameras in rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drivestack.core.errors import DataError
from drivestack.core.frames import Frame
from drivestack.data_tools.clips.images import load_image
from drivestack.view.boxes import Drawn, box_legend, labelled_boxes, predicted_boxes
from drivestack.view.colours import CLASS_COLOURS, GROUND_TRUTH, Palette
from drivestack.view.curves import clip_near
from drivestack.view.drawing import View
from drivestack.view.panels import bev_panel, camera_rows, camera_tile
from support.toy_pictures import annotations, detections, shows, toy_frame

AHEAD = [12.0, 0, 1.0, 4, 2, 2, 0]
BEHIND_LEFT = [-10.0, 8.0, 1.0, 4, 2, 2, 1]
VIEW = View()
TILE = (640, 360)


def tile(frame: Frame, name: str, drawn: Drawn, named: bool = False) -> np.ndarray:
    (view,) = (view for view in frame.cameras if view.name == name)
    return np.asarray(camera_tile(frame, view, load_image(view, "token"), [drawn], TILE, 2.0, lambda _: named))


def found_in(frame: Frame, boxes: list[list[float]], labels: list[int], names: list[str], score: float = 0.9) -> Drawn:
    return predicted_boxes(frame, detections(boxes, labels, score), names, Palette.of(names), VIEW)


def test_cameras_stand_as_on_the_car(frame: Frame) -> None:
    front, back = camera_rows(frame)
    assert [view.name for view in front] == ["FRONT_LEFT", "FRONT", "FRONT_RIGHT"]
    assert [view.name for view in back] == ["BACK_LEFT", "BACK", "BACK_RIGHT"]


@pytest.mark.parametrize("count", range(13))
def test_up_to_twelve_cameras_stand_in_rows_of_four(tmp_path: Path, count: int) -> None:
    frame = toy_frame(tmp_path, [(f"C{i}", 360 * i / max(count, 1)) for i in range(count)])
    rows = camera_rows(frame)
    assert sorted(view.name for row in rows for view in row) == sorted(view.name for view in frame.cameras)
    assert all(1 <= len(row) <= 4 for row in rows)


def test_ground_truth_is_green_and_in_the_right_cameras(frame: Frame) -> None:
    drawn = labelled_boxes(replace(frame, annotations=annotations([AHEAD, BEHIND_LEFT], ["car", "truck"])), VIEW)
    assert shows(tile(frame, "FRONT", drawn), GROUND_TRUTH) > 100
    assert shows(tile(frame, "BACK_LEFT", drawn), GROUND_TRUTH) > 100
    assert shows(tile(frame, "FRONT_RIGHT", drawn), GROUND_TRUTH) == 0
    assert len(labelled_boxes(frame, VIEW).boxes) == 0


def test_objects_without_points_or_class_are_left_out(frame: Frame) -> None:
    labels = replace(
        annotations([AHEAD, BEHIND_LEFT, AHEAD], ["car", "truck", ""]), num_lidar_points=np.array([0, 1, 1])
    )
    assert labelled_boxes(replace(frame, annotations=labels), VIEW).names == ["truck"]
    assert not labelled_boxes(replace(frame, annotations=labels), replace(VIEW, ground_truth=False)).names


def test_predictions_have_their_class_colour_above_the_threshold(frame: Frame) -> None:
    drawn = found_in(frame, [AHEAD], [0], ["bus"])
    assert shows(tile(frame, "FRONT", drawn), CLASS_COLOURS["bus"]) > 100
    assert not shows(tile(frame, "FRONT", drawn), GROUND_TRUTH)
    assert shows(tile(frame, "BACK", drawn), CLASS_COLOURS["bus"]) == 0
    assert not found_in(frame, [AHEAD], [0], ["bus"], score=0.2).names


def test_own_classes_have_one_colour_in_cameras_from_above_and_in_the_legend(frame: Frame) -> None:
    names = ["pkw", "lkw", "two_wheeler"]
    palette = Palette.of(names)
    for label, name in enumerate(names):
        drawn = found_in(frame, [AHEAD], [label], names)
        above = np.asarray(bev_panel(frame, np.zeros((0, 3)), [drawn], (400, 400), VIEW, 2.0))
        (entry,) = box_legend(drawn, palette)
        assert (entry.text, entry.colour) == (name.replace("_", " "), palette[name])
        for picture in (tile(frame, "FRONT", drawn), above):
            assert shows(picture, palette[name]) > 50
            assert not any(shows(picture, palette[other]) > 50 for other in names if other != name)


def test_a_label_that_no_class_name_stands_for_is_named(frame: Frame) -> None:
    with pytest.raises(DataError, match="sample token: a box has label 2, but there are 2 class names"):
        found_in(frame, [AHEAD], [2], ["pkw", "lkw"])


def test_labels_have_names_where_they_are_alone(frame: Frame) -> None:
    drawn = labelled_boxes(replace(frame, annotations=annotations([AHEAD], ["pkw"])), VIEW)
    named, unnamed = tile(frame, "FRONT", drawn, named=True), tile(frame, "FRONT", drawn)
    assert (named != unnamed).any() and shows(named, GROUND_TRUTH) > shows(unnamed, GROUND_TRUTH)


def test_near_plane_clipping_keeps_the_visible_part() -> None:
    segment = np.array([[0.0, 0, -1], [2.0, 0, 1]])
    np.testing.assert_allclose(clip_near(segment, 0.0)[:2], [[1.0, 0, 0], [2.0, 0, 1]])
    assert len(clip_near(segment - [0, 0, 5])) == 0
    square = np.array([[0.0, 0, -1], [1.0, 0, -1], [1.0, 0, 1], [0.0, 0, 1]])
    assert len(clip_near(square, 0.5)) == 4


@pytest.mark.parametrize("size_m", [2.0, 6.0, 60.0])
def test_boxes_around_the_camera_do_not_break_the_picture(frame: Frame, size_m: float) -> None:
    around = [0.5, 0, 1.5, size_m, size_m, size_m, 0.3]
    for drawn in (
        found_in(frame, [around], [0], ["car"]),
        labelled_boxes(replace(frame, annotations=annotations([around], ["car"])), VIEW),
    ):
        tile(frame, "FRONT", drawn, named=True)


def test_range_captions_lie_over_rings_lanes_and_boxes(frame: Frame) -> None:
    empty = found_in(frame, [], [], ["bus"])
    crowd = [[x, y, 1.0, 4, 4, 2, 0] for x in range(-48, 49, 4) for y in range(-48, 49, 4)]
    crowded = found_in(frame, crowd, [0] * len(crowd), ["bus"])
    pictures = [
        np.asarray(bev_panel(frame, np.zeros((0, 3)), [drawn], (900, 900), VIEW, 2.0)) for drawn in (empty, crowded)
    ]
    letters = [(picture.min(-1) > 170) for picture in pictures]
    letters[0][:40] = letters[0][420:480, 430:470] = False  # the panel's title, the car
    bright = letters[0].sum()
    assert bright > 300 and (letters[0] & letters[1]).sum() > 0.95 * bright
