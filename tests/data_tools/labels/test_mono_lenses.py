"""Targets of single images through lenses: 2D boxes around curved edges, as far as the lens sees."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from drivestack.core.frames import Annotations, CameraView
from drivestack.data_tools.clips.transforms import ImagePlacement
from drivestack.data_tools.labels.mono_targets import corners_in_camera, devkit_visible, image_boxes, mono_targets
from drivestack.geometry import CameraModel, Lens, brown_conrady, kannala_brandt, pose, rotation_z

K = np.array([[100.0, 0, 200], [0, 100, 150], [0, 0, 1]])
WIDE = replace(kannala_brandt(K, 400, 300, (0.02, 0, 0, 0)), lens=Lens("kannala_brandt", (0.02,), np.deg2rad(110)))
BARREL = brown_conrady(
    4 * K - np.diag([0, 0, 3.0]) - [[0, 0, 600.0], [0, 0, 450], [0, 0, 0]], 400, 300, (0.03, -0.3, 0, 0)
)
PINHOLE = CameraModel(K, 400, 300)
FORWARD = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])


def surface(size_lwh: np.ndarray, count: int = 4000) -> np.ndarray:
    """Points [count, 3] on the faces of a box around the origin."""
    rng = np.random.default_rng(0)
    points = rng.uniform(-0.5, 0.5, (count, 3))
    axis = rng.integers(0, 3, count)
    points[np.arange(count), axis] = rng.choice([-0.5, 0.5], count)
    return points * size_lwh


@pytest.mark.parametrize("camera", [WIDE, BARREL], ids=["fisheye", "brown_conrady"])
def test_2d_boxes_hold_all_that_is_seen_of_a_box(camera: CameraModel) -> None:
    rng = np.random.default_rng(2)
    compared = 0
    for _ in range(60):
        size = rng.uniform(0.5, 5, 3)
        turn = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]]) @ rotation_z(rng.uniform(-3, 3))
        centre = rng.uniform([-8, -1, -1], [8, 2, 12])
        if np.linalg.norm(centre) < 4:
            continue
        corners = corners_in_camera(centre[None], turn[None], size[None])
        (box,), (inside,) = image_boxes(corners, camera)
        uv, _ = camera.project(surface(size) @ turn.T + centre)
        uv = uv[np.isfinite(uv).all(1)]
        if not len(uv):
            continue
        limit = [camera.width_px, camera.height_px]
        seen = np.clip(uv, 0, limit)
        whole = np.isfinite(camera.project(corners)[0]).all()
        margin = 0.5 if whole else 30  # the lens ends between the points on a face
        assert (seen.min(0) > box[:2] - margin).all() and (seen.max(0) < box[2:] + margin).all()
        if whole:  # and not more
            assert np.abs(seen.min(0) - box[:2]).max() < 6 and np.abs(seen.max(0) - box[2:]).max() < 6
            compared += 1
        assert 0 <= inside <= 1 + 1e-9
    assert compared > 8


def test_what_a_camera_cannot_see_has_no_box() -> None:
    box = lambda centre: corners_in_camera(np.array([centre]), np.eye(3)[None], np.ones((1, 3)))
    for camera, seen in ((WIDE, True), (PINHOLE, False)):  # at 99 degrees to the right
        corners = box([6.0, 0, -1.0])
        assert devkit_visible(corners, camera).tolist() == [seen]
    behind = box([0.0, 0.5, -6.0])
    boxes, inside = image_boxes(behind, WIDE)
    assert not devkit_visible(behind, WIDE)[0] and (boxes == 0).all() and inside.tolist() == [0]
    beyond = box([9.0, 0, 5.0])  # a polynomial without its limit folds it into the image
    assert not devkit_visible(beyond, BARREL)[0] and image_boxes(beyond, BARREL)[1].tolist() == [0]


@pytest.mark.parametrize("names", [[], ["dog"]])
def test_an_image_without_objects_of_a_class(names: list[str]) -> None:
    labels = Annotations.of_boxes(names, [[8.0, 1, 1]] * len(names), [[1.0, 1, 1]] * len(names), [0.0] * len(names))
    for camera in (WIDE, BARREL, PINHOLE):
        view = CameraView("C", camera, pose(FORWARD, [0.0, 0, 1.5]), np.eye(4), 0)
        assert mono_targets(labels, view, ["car"], ImagePlacement.of(camera, (0.0, 0.0, 1.0, 1.0), 300)) is None


def test_targets_of_a_wide_image() -> None:
    """Of boxes whose LiDAR points nobody counted."""
    labels = Annotations.of_boxes(
        ["car", "car", "car"],
        [[8.0, 1.0, 0.8], [1.0, 5.0, 0.8], [-9.0, 0.5, 0.8]],  # ahead, far to the left, behind
        [[4.0, 2, 1.6], [1.5, 1, 1.6], [4, 2, 1.6]],
        [0.3, 0.0, 0.0],
    )
    mounted = pose(FORWARD, [0.0, 0, 1.5])
    counts = {}
    for name, camera in (("wide", WIDE), ("pinhole", PINHOLE)):
        view = CameraView("C", camera, mounted, np.eye(4), 0)
        placement = ImagePlacement.of(camera, (0.0, 0.1, 1.0, 1.0), 135)
        targets = mono_targets(labels, view, ["car"], placement)
        assert targets is not None
        counts[name] = len(targets.labels)
        uv, _ = placement.camera(camera).project(targets.boxes3d_camera[:, 4:7].double().numpy())
        low, high = targets.boxes_xyxy_px[:, :2], targets.boxes_xyxy_px[:, 2:]
        assert ((low <= torch.from_numpy(uv)) & (torch.from_numpy(uv) <= high)).all()
    assert counts == {"wide": 2, "pinhole": 1}


def test_no_target_lies_where_depth_means_nothing() -> None:
    """At 88 and 100 degrees from the axis the fisheye sees a box, but a single-image box needs a depth ahead."""
    view = CameraView("wide", WIDE, pose(FORWARD, [0, 0, 1.5]), np.eye(4), 0)
    placement = ImagePlacement(0, 0, 400, 300, 400, 300)
    for degrees, found in ((60.0, 1), (84.0, 1), (88.0, 0), (100.0, 0)):
        angle = np.deg2rad(degrees)
        notes = Annotations.of_boxes(["car"], [[10 * np.cos(angle), 10 * np.sin(angle), 1.5]], [[0.8, 0.8, 0.8]], [0.0])
        notes = replace(notes, num_lidar_points=np.array([9]))
        targets = mono_targets(notes, view, ["car"], placement)
        assert (0 if targets is None else len(targets.labels)) == found, degrees
