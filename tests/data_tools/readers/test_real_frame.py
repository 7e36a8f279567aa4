"""One real nuScenes keyframe: 69 boxes, six images, and pixels where the devkit has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from drivestack.data_tools.clips.clip_dataset import ClipDataset
from drivestack.data_tools.clips.collate import collate_clips
from drivestack.data_tools.readers.nuscenes.info_pickle import load_pickle, read_info_pickle
from drivestack.geometry import box_corners, points_in_boxes, transform_points


@pytest.fixture(scope="module")
def folder(shared_real) -> Path:
    return shared_real / "nuscenes_frame"


@pytest.fixture(scope="module")
def info_path(folder) -> Path:
    return next(folder.glob("*.pkl"))


@pytest.fixture(scope="module")
def frame(folder, info_path):
    (frame,) = read_info_pickle(info_path, folder)
    return frame


def test_sixty_nine_boxes_lie_on_their_lidar_points(frame):
    assert len(frame.annotations) == 69 and len(frame.cameras) == 6
    points = np.fromfile(frame.lidar_path, np.float32).reshape(-1, 5)[:, :3].astype(np.float64)
    boxes = frame.bev_boxes()
    boxes[:, 3:6] *= 1.02  # the file's count uses boxes before rounding
    count = points_in_boxes(points, boxes).sum(0)
    stated = frame.annotations.num_lidar_points
    assert np.corrcoef(count, stated)[0, 1] > 0.99
    assert np.median(np.abs(count - stated)) <= 1


def test_projections_agree_with_the_devkit_within_a_pixel(frame, info_path):
    box_type = pytest.importorskip("nuscenes.utils.data_classes", reason="nuscenes-devkit is not installed").Box
    view_points = pytest.importorskip("nuscenes.utils.geometry_utils").view_points
    quaternion = pytest.importorskip("pyquaternion").Quaternion
    info = load_pickle(info_path)["data_list"][0]
    seen = 0
    for view in frame.cameras:
        lidar2cam = np.array(info["images"][view.name]["lidar2cam"])
        intrinsics = np.array(info["images"][view.name]["cam2img"])
        for box in frame.bev_boxes():
            theirs = box_type(box[:3], box[[4, 3, 5]], quaternion(axis=[0, 0, 1], radians=box[6]))
            in_camera = lidar2cam[:3, :3] @ theirs.corners() + lidar2cam[:3, 3:]
            if in_camera[2].min() < 0.5:
                continue
            expected = view_points(in_camera, intrinsics, normalize=True)[:2].T
            corners = transform_points(frame.image_from_bev(view), box_corners(box[None])[0])
            ours = corners[:, :2] / corners[:, 2:]
            distance = np.linalg.norm(ours[:, None] - expected[None], axis=-1)  # corners in another order
            assert distance.min(1).max() < 1e-2 and distance.min(0).max() < 1e-2
            seen += 1
    assert seen > 69  # several boxes are in front of two cameras


def test_perspective_targets_agree_with_the_boxes_that_mmdet3d_stored(frame, info_path, classes):
    """Its 2D boxes come from the same corners, clipped to the image as a polygon: equal inside the image."""
    stored = load_pickle(info_path)["data_list"][0]["cam_instances"]
    dataset = ClipDataset(
        classes=classes, frames=[frame], image={"crop": (0, 0, 1, 1), "test_height_px": 900}, mono=True
    )
    compared = 0
    for view, target in zip(frame.cameras, dataset[0].mono):
        theirs = np.array([o["bbox"] for o in stored[view.name]])
        for box in target.boxes_xyxy_px.numpy():
            if box[:2].min() > 1 and box[2] < 1599 and box[3] < 899:
                assert np.abs(theirs - box).max(1).min() < 0.1
                compared += 1
    assert compared > 30


def test_a_published_size_batch_of_the_real_frame(frame, classes):
    batch = collate_clips([ClipDataset(classes=classes, frames=[frame], frame_offsets=(-1, 0))[0]])
    assert batch.images.shape == (1, 2, 6, 3, 640, 1600)
    assert batch.frame_valid.tolist() == [[False, True]] and batch.tokens == ["ca9a282c9e77460f8360f564131a8af5"]
    assert 0.5 < batch.images[0, 1].std() / 60 < 1.5 and batch.images[0, 1].mean().abs() < 40
    assert 30 < len(batch.gt_labels[0]) < 69
    # A box centre projects into the augmented image at the place that crop and scale send it to.
    view = frame.cameras[0]
    centre = frame.bev_boxes()[0, :3]
    raw = transform_points(frame.image_from_bev(view), centre)
    moved = transform_points(batch.image_from_bev[0, 1, 0].double().numpy(), centre)
    np.testing.assert_allclose(moved[:2] / moved[2], raw[:2] / raw[2] - [0, 260], atol=1e-2)
