"""Voxels in 3D: what a pixel shows is what its line of sight meets first."""

from __future__ import annotations

import numpy as np
import pytest

from drivestack.geometry import CameraModel, VoxelGrid, kannala_brandt, pose, rotation_z
from drivestack.view.colours import VOXEL_COLOURS
from drivestack.view.voxels import Viewpoint, render_voxels

NAMES = ("car", "pedestrian", "vegetation", "free")
GRID = VoxelGrid(-4.0, -4.0, -1.0, 4.0, 4.0, 2.2, 10, 10, 4)
FREE = 3
FORWARD = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # ego from a camera that looks ahead
SKY = (20, 20, 20)
CAMERA = CameraModel(np.array([[70.0, 0, 59.5], [0, 70.0, 44.5], [0, 0, 1]]), 120, 90)


def classes_shown(picture: np.ndarray) -> np.ndarray:
    """[H, W] class by the hue of each pixel, FREE for the background."""
    hues = picture - picture.mean(-1, keepdims=True)
    palette = np.array([VOXEL_COLOURS[name] for name in NAMES[:-1]], float)
    palette -= palette.mean(1, keepdims=True)
    found = (hues @ (palette / np.linalg.norm(palette, axis=1, keepdims=True)).T).argmax(-1)
    return np.where(np.linalg.norm(hues, axis=-1) < 8, FREE, found)


def classes_met(voxels: np.ndarray, viewpoint: Viewpoint) -> np.ndarray:
    """The same by small steps along every pixel's line of sight."""
    rays = viewpoint.camera.rays() @ viewpoint.ego_from_camera[:3, :3].T
    out = np.full(rays.shape[:2], FREE)
    for distance_m in np.arange(15.0, 0.0, -0.04):  # from far to near: the nearest stays
        cells, inside = GRID.voxels_of(viewpoint.ego_from_camera[:3, 3] + distance_m * rays)
        found = np.where(inside, voxels[tuple(np.where(inside[..., None], cells, 0).transpose(2, 0, 1))], FREE)
        out = np.where(found != FREE, found, out)
    return out


@pytest.mark.parametrize(("eye", "degrees"), [((-9.0, 1.3, 0.5), 0), ((6.0, -6.0, 1.9), 130), ((0.1, 0.2, 0.7), -70)])
def test_pixels_show_what_the_line_of_sight_meets_first(eye: tuple[float, float, float], degrees: float) -> None:
    random = np.random.default_rng(1)
    voxels = random.choice(4, GRID.shape, p=[0.06, 0.06, 0.06, 0.82])
    cell, inside = GRID.voxels_of(eye)
    if inside:  # air around the eye, as faces nearer than half a metre are left out
        low = np.maximum(cell - 1, 0)
        voxels[low[0] : cell[0] + 2, low[1] : cell[1] + 2, low[2] : cell[2] + 2] = FREE
    viewpoint = Viewpoint(CAMERA, pose(rotation_z(np.radians(degrees)) @ FORWARD, np.array(eye)))
    shown = classes_shown(render_voxels(voxels, None, viewpoint, NAMES, GRID, SKY))
    met = classes_met(voxels, viewpoint)
    assert len(np.unique(met)) == 4
    assert (shown == met).mean() > 0.95  # the rest are pixels on edges, which blend both sides


def test_pixels_of_a_fisheye_too_past_90_degrees() -> None:
    voxels = np.random.default_rng(1).choice(4, GRID.shape, p=[0.03, 0.03, 0.03, 0.91])
    voxels[3:7, 3:7] = FREE
    k = np.array([[36.0, 0, 79.5], [0, 36.0, 44.5], [0, 0, 1]])
    viewpoint = Viewpoint(kannala_brandt(k, 160, 90, (0.01, 0, 0, 0)), pose(FORWARD, np.array([0.1, 0.2, 0.7])))
    assert viewpoint.camera.rays()[..., 2].min() < -0.5
    shown = classes_shown(render_voxels(voxels, None, viewpoint, NAMES, GRID, SKY))
    met = classes_met(voxels, viewpoint)
    behind = viewpoint.camera.rays()[..., 2] < 0
    assert len(np.unique(met[behind])) == 4
    assert (shown == met).mean() > 0.93 and (shown == met)[behind].mean() > 0.9  # near faces are curves


def test_the_whole_grid_is_in_the_picture_from_behind_and_the_car_stands_in_it() -> None:
    voxels = np.full((200, 200, 16), 17, np.uint8)
    picture = render_voxels(voxels, viewpoint=Viewpoint.behind(200, 150))
    car = np.argwhere(picture.min(-1) > 120)
    assert picture.shape == (150, 200, 3) and len(car) > 20
    assert np.ptp(car, axis=0).max() < 25
    voxels[[0, 0, -1, -1], [20, -20, 20, -20], 0] = 4
    corners = np.argwhere(np.ptp(render_voxels(voxels, viewpoint=Viewpoint.behind(200, 150)).astype(int), axis=-1) > 60)
    assert np.ptp(corners, axis=0).min() > 90


def test_voxels_outside_the_mask_fade() -> None:
    voxels = np.full((200, 200, 16), 17, np.uint8)
    voxels[120:140, 90:110, 0:3] = 4
    viewpoint = Viewpoint.behind(160, 120)
    everything = render_voxels(voxels, np.ones(voxels.shape, bool), viewpoint)
    nothing = render_voxels(voxels, np.zeros(voxels.shape, bool), viewpoint)
    np.testing.assert_array_equal(everything, render_voxels(voxels, None, viewpoint))
    hue = lambda picture: np.ptp(picture.astype(int), axis=-1)
    block = hue(everything) > 100
    assert block.sum() > 100
    assert hue(nothing)[block].mean() < 0.4 * hue(everything)[block].mean()


def test_unknown_classes_are_not_drawn_and_wrong_shapes_are_named() -> None:
    voxels = np.full(GRID.shape, 255, np.uint8)
    viewpoint = Viewpoint(CAMERA, pose(FORWARD, np.array([-9.0, 0.0, 0.5])))
    assert (render_voxels(voxels, None, viewpoint, NAMES, GRID, SKY) == SKY).all()
    with pytest.raises(ValueError, match=r"voxels of shape \[10, 10, 4\], the grid has \[200, 200, 16\]"):
        render_voxels(voxels)
    with pytest.raises(ValueError, match="mask of shape"):
        render_voxels(voxels, np.ones((2, 2, 2), bool), viewpoint, NAMES, GRID)
