"""Pictures through lenses: edges and lanes are curves that lie where the camera projects them, cut where it ends."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy.ndimage import distance_transform_edt

from drivestack.core.frames import Frame
from drivestack.geometry import (
    CameraModel,
    Lens,
    box_corners,
    brown_conrady,
    cylinder,
    kannala_brandt,
    transform_points,
)
from drivestack.geometry.poses import invert_pose, pose
from drivestack.view.boxes import _EDGES, Drawn, boxes_in_camera
from drivestack.view.colours import GROUND_TRUTH, LANE_COLOUR
from drivestack.view.curves import edge_in_camera, face_in_camera, lines_in_camera
from drivestack.view.drawing import View
from drivestack.view.picture import render_answers
from drivestack.view.topology import DrawnLanes, lanes_in_camera
from support.toy_pictures import FORWARD, annotations, shows

K = np.array([[100.0, 0, 200], [0, 100, 150], [0, 0, 1]])
ROUND = replace(kannala_brandt(K, 400, 300, (0.02, 0, 0, 0)), lens=Lens("kannala_brandt", (0.02,), np.deg2rad(105)))
BARREL = brown_conrady(K, 400, 300, (-0.25, 0.05, 0.001, 0.0))
CAMERA_FROM_EGO = invert_pose(pose(FORWARD, [0.0, 0.0, 1.5]))
COLOUR = (250, 30, 200)
BOXES = {  # EGO frame
    "ahead": [6.0, 1.0, 1.0, 4.0, 2.0, 1.6, 0.4],
    "to the left": [1.0, 4.5, 1.0, 4.0, 2.0, 1.6, 0.0],
    "past 90 degrees": [-0.5, 3.0, 1.0, 0.5, 0.5, 0.5, 0.3],
}


def dense_edges(camera: CameraModel, box: list[float], count: int = 400) -> np.ndarray:
    """Pixels [points, 2] along the twelve edges as the camera projects them, without those that it does not see."""
    corners = transform_points(CAMERA_FROM_EGO, box_corners(np.array([box]))[0])
    at = np.linspace(0, 1, count)[:, None]
    points = np.concatenate([corners[i] + (corners[j] - corners[i]) * at for i, j in _EDGES])
    uv, _ = camera.project(points)
    return uv[np.isfinite(uv).all(1)]


def drawn_box(camera: CameraModel, box: list[float]) -> tuple[np.ndarray, int]:
    """Which pixels [H, W] have the box's colour, and how many boxes were in sight."""
    picture = Image.new("RGB", (camera.width_px, camera.height_px))
    drawn = Drawn(np.array([[*box, 0, 0]]), ["car"], [COLOUR], np.array([0.9]))
    named = boxes_in_camera(ImageDraw.Draw(picture, "RGBA"), camera, CAMERA_FROM_EGO, drawn, 0.5)
    return (np.asarray(picture) == COLOUR).all(-1), len(named)


@pytest.mark.parametrize("name", BOXES)
@pytest.mark.parametrize("camera", [ROUND, BARREL], ids=["fisheye", "brown_conrady"])
def test_edges_of_boxes_are_drawn_where_the_camera_projects_them(camera: CameraModel, name: str) -> None:
    shown, _ = drawn_box(camera, BOXES[name])
    uv = dense_edges(camera, BOXES[name])
    inside = uv[((uv > 1) & (uv < [camera.width_px - 2, camera.height_px - 2])).all(1)]
    if name == "past 90 degrees" and camera is BARREL:
        assert not len(inside) and not shown.any()
        return
    away_from_line = distance_transform_edt(~shown)
    column, row = np.round(inside).astype(int).T
    assert len(inside) > 1000 and away_from_line[row, column].max() <= 2.5
    expected = np.zeros_like(shown)
    expected[row, column] = True
    heading = 12  # the stroke over the floor is no edge
    beside = distance_transform_edt(~expected)[shown] > 3
    assert beside.mean() < 0.15 and shown.sum() > heading
    straight, _ = drawn_box(camera.pinhole, BOXES[name])
    if name != "ahead":
        assert (straight & shown).sum() < 0.5 * shown.sum()


def test_a_fisheye_shows_boxes_beside_and_behind_itself_once() -> None:
    assert drawn_box(ROUND, BOXES["past 90 degrees"])[1] == 1
    assert drawn_box(ROUND.pinhole, BOXES["past 90 degrees"])[1] == 0
    shown, named = drawn_box(ROUND, [-6.0, 0.5, 1.0, 2, 1, 1, 0])  # straight behind: past the lens' end
    assert named == 0 and not shown.any()


def test_lines_are_cut_where_the_lens_ends() -> None:
    ends = np.array([[0.0, 1.0, 4.0], [4.0, 1.0, -4.0]])
    pixels = edge_in_camera(ROUND, ends)
    seen = np.isfinite(pixels[:, 0])
    assert seen[0] and not seen[-1] and np.array_equal(seen, np.sort(seen)[::-1])
    limit_px = np.hypot(*(pixels[seen] - [200, 150]).T).max()
    assert limit_px <= 100 * (np.deg2rad(105) + 0.02 * np.deg2rad(105) ** 3) + 1e-6
    square = np.array([[-1.0, -1, 0.1], [1, -1, 0.1], [1, 1, 0.1], [-1, 1, 0.1]])
    assert np.isfinite(face_in_camera(ROUND, square)).all() and len(face_in_camera(ROUND, square)) == 65
    assert len(face_in_camera(ROUND, square - [0, 0, 9])) == 0
    (line,) = lines_in_camera(ROUND, np.array([[0.0, 1.0, 20.0], [0.0, 1.0, 1.0]]))
    assert np.isfinite(line).all() and len(line) == 17


def test_lanes_are_curves_through_a_lens() -> None:
    x = np.linspace(1.0, 20, 24)
    line = np.stack([x, np.full(24, 3.0), np.zeros(24)], 1)
    lanes = DrawnLanes([line], np.zeros((0, 4)), [], [0.9], [], [])
    picture = Image.new("RGB", (400, 300))
    lanes_in_camera(ImageDraw.Draw(picture, "RGBA"), ROUND, CAMERA_FROM_EGO, [lanes], 0.5)
    shown = np.asarray(picture).max(-1) > 0.5 * max(LANE_COLOUR)
    dense = np.stack([np.interp(np.linspace(0, 23, 500), np.arange(24), line[:, i]) for i in range(3)], 1)
    uv, _ = ROUND.project(transform_points(CAMERA_FROM_EGO, dense))
    column, row = np.round(uv).astype(int).T
    assert distance_transform_edt(~shown)[row, column].max() <= 2
    expected = np.zeros_like(shown)
    expected[row, column] = True
    assert distance_transform_edt(~expected)[shown].max() <= 3.5


def test_a_picture_of_a_rig_with_lenses(frame: Frame) -> None:
    size = frame.cameras[0].image_size_px
    matrix = np.array([[50.0, 0, size[0] / 2], [0, 50, size[1] / 2], [0, 0, 1]])
    views = [replace(view, camera=kannala_brandt(matrix, *size, (0.02, 0, 0, 0))) for view in frame.cameras]
    labels = annotations([[3.0, 4.0, 1.0, 4, 2, 2, 0]], ["car"])
    alone = replace(frame, cameras=tuple(views[:1]), annotations=labels)
    picture = render_answers(alone, None, ["car"], View(camera_width_px=320))
    assert shows(picture[:, :320], GROUND_TRUTH) > 50
    without = render_answers(
        replace(alone, cameras=(replace(views[0], camera=views[0].camera.pinhole),)), None, ["car"],
        View(camera_width_px=320),
    )  # fmt: skip
    assert (picture[:, :320] != without[:, :320]).any()


def test_what_passes_behind_a_cylinder_is_not_drawn_across_it() -> None:
    camera = cylinder(1200, 300, np.deg2rad(120))
    (line,) = lines_in_camera(camera, np.array([[1.0, 0.0, -5.0], [-1.0, 0.0, -5.0]]))
    steps = np.abs(np.diff(line[:, 0]))
    assert np.isfinite(line).any() and np.nanmax(steps) < 100
