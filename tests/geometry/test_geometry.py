"""Geometry: round trips, conventions, and the errors at the border."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation, Slerp

from drivestack.geometry import (
    BevGrid,
    CameraModel,
    VoxelGrid,
    bev_iou,
    bev_nms,
    bev_overlap,
    box_corners,
    boxes_from_legacy,
    boxes_to_legacy,
    interpolate_poses,
    invert_pose,
    matrix_to_quaternion,
    points_in_boxes,
    pose,
    quaternion_to_matrix,
    rotation_z,
    transform_boxes,
    transform_points,
    wrap_angle,
    yaw_of,
)

RNG = np.random.default_rng(0)


def random_boxes(n: int) -> np.ndarray:
    boxes = RNG.normal(size=(n, 9)) * 5
    boxes[:, 3:6] = np.abs(boxes[:, 3:6]) + 0.5
    boxes[:, 6] = wrap_angle(boxes[:, 6])
    return boxes


def test_quaternions_round_trip_near_every_pivot():
    q = RNG.normal(size=(200, 4))
    q = np.concatenate([q, np.eye(4), [[1e-9, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, -1]]])
    q /= np.linalg.norm(q, axis=1, keepdims=True)
    r = quaternion_to_matrix(q)
    assert np.allclose(r @ r.swapaxes(1, 2), np.eye(3), atol=1e-12)
    assert np.allclose(np.linalg.det(r), 1)
    back = matrix_to_quaternion(r)
    assert np.allclose(np.abs((back * q).sum(1)), 1)  # q and -q are the same rotation
    assert np.allclose(quaternion_to_matrix(back), r)


def test_quaternion_convention_is_scalar_first_and_counter_clockwise():
    quarter_turn = [math.cos(math.pi / 4), 0, 0, math.sin(math.pi / 4)]
    assert np.allclose(quaternion_to_matrix(quarter_turn) @ [1, 0, 0], [0, 1, 0])
    assert yaw_of(rotation_z(0.7)) == pytest.approx(0.7)


def test_pose_products_and_inverse():
    ego_from_bev = pose(rotation_z(0.3), [1, 2, 3])
    global_from_ego = pose([0.9, 0.1, -0.2, 0.3], [100, -50, 2])
    points_lidar = RNG.normal(size=(7, 3))
    stepwise = transform_points(global_from_ego, transform_points(ego_from_bev, points_lidar))
    assert np.allclose(transform_points(global_from_ego @ ego_from_bev, points_lidar), stepwise)
    assert np.allclose(invert_pose(global_from_ego) @ global_from_ego, np.eye(4))
    batch = torch.as_tensor(np.stack([ego_from_bev, global_from_ego]))
    assert torch.allclose(invert_pose(batch) @ batch, torch.eye(4, dtype=torch.float64).expand(2, 4, 4), atol=1e-12)
    assert np.allclose(transform_points(ego_from_bev, points_lidar[0]), transform_points(ego_from_bev, points_lidar)[0])


def test_wrap_angle_range():
    angles = np.linspace(-20, 20, 1001)
    wrapped = wrap_angle(angles)
    assert wrapped.min() >= -math.pi and wrapped.max() < math.pi
    assert np.allclose(np.exp(1j * wrapped), np.exp(1j * angles))


@pytest.mark.parametrize(
    ("rotation", "translation"),
    [
        (np.eye(3) * 2, [0, 0, 0]),
        (np.diag([1, 1, -1]), [0, 0, 0]),
        (np.eye(3), [0, np.nan, 0]),
        ([0, 0, 0, 0], [0, 0, 0]),
    ],
)
def test_pose_refuses_what_is_not_rigid(rotation, translation):
    with pytest.raises(ValueError):
        pose(rotation, translation)


def test_camera_follows_the_image():
    camera = CameraModel(np.array([[500.0, 0, 330], [0, 510, 170], [0, 0, 1]]), 640, 360)
    points = np.array([[1.0, 0.5, 10], [-2, 1, 20]])
    uv, depth_m = camera.project(points)
    assert np.allclose(depth_m, points[:, 2])
    assert np.allclose(camera.resized(320, 90).project(points)[0], uv * [0.5, 0.25])
    assert np.allclose(camera.cropped(10, 20, 100, 100).project(points)[0], uv - [10, 20])
    flipped = camera.flipped()
    assert np.allclose(flipped.project(points)[0], np.stack([640 - uv[:, 0], uv[:, 1]], 1))
    assert np.allclose(flipped.flipped().intrinsics, camera.intrinsics)
    rays = camera.rays()
    assert np.allclose(camera.project(rays[100, 200] * 7)[0], [200, 100])
    assert np.isnan(camera.project([[0, 0, -1.0]])[0]).all()
    homogeneous = camera.image_from_camera @ np.append(points[0], 1)
    assert np.allclose(homogeneous[:2] / homogeneous[2], uv[0])


@pytest.mark.parametrize("k", [np.eye(4), np.full((3, 3), np.nan), np.diag([0.0, 1, 1]), np.diag([1.0, 1, 2])])
def test_camera_refuses_bad_intrinsics(k):
    with pytest.raises(ValueError):
        CameraModel(k, 10, 10)


def test_corners_match_the_picture():
    corners = box_corners(np.array([[10.0, 20, 1, 4, 2, 1.5, math.pi / 2, 0, 0]]))[0]
    assert np.allclose(corners[0], [9, 22, 0.25])  # bottom, front, left: heading +y, so left is -x
    assert np.allclose(corners[5], [11, 22, 1.75])
    assert np.allclose(corners.mean(0), [10, 20, 1])


def test_legacy_convention_round_trip_and_heading():
    boxes = random_boxes(20)
    back = boxes_from_legacy(boxes_to_legacy(boxes))
    assert np.allclose(back, boxes)
    heading_x = np.array([[0.0, 0, 1, 4, 2, 2, 0, 0, 0]])
    legacy = boxes_to_legacy(heading_x)[0]
    assert np.allclose(legacy[:7], [0, 0, 0, 2, 4, 2, -math.pi / 2])
    assert torch.allclose(boxes_from_legacy(boxes_to_legacy(torch.as_tensor(boxes))), torch.as_tensor(boxes))


def test_transform_boxes_moves_corners_and_velocity():
    boxes = random_boxes(10)
    a_from_b = pose(rotation_z(1.1), [3, -4, 0.5])
    moved = transform_boxes(a_from_b, boxes)
    assert np.allclose(box_corners(moved), transform_points(a_from_b, box_corners(boxes)))
    assert np.allclose(np.linalg.norm(moved[:, 7:], axis=1), np.linalg.norm(boxes[:, 7:], axis=1))
    assert np.allclose(transform_boxes(invert_pose(a_from_b), moved), boxes)
    assert transform_boxes(a_from_b, boxes[:, :7]).shape == (10, 7)


def test_points_in_boxes_agrees_with_a_plain_check():
    boxes = random_boxes(6)
    points = RNG.normal(size=(500, 3)) * 6
    inside = points_in_boxes(points, boxes)
    for j, box in enumerate(boxes):
        local = (points - box[:3]) @ rotation_z(box[6])
        assert np.array_equal(inside[:, j], (np.abs(local) <= box[3:6] / 2).all(1))
    assert inside.any()


def test_bev_iou_and_nms():
    unit = np.array(
        [[0, 0, 0, 2, 2, 1, 0, 0, 0], [1, 0, 5, 2, 2, 1, 0, 0, 0], [50, 0, 0, 2, 2, 1, 0.3, 0, 0]], dtype=float
    )
    iou = bev_iou(unit, unit)
    assert np.allclose(np.diag(iou), 1)
    assert iou[0, 1] == pytest.approx(1 / 3)
    assert iou[0, 2] == 0
    assert bev_iou(unit, unit[:0]).shape == (3, 0)
    assert bev_nms(unit, [0.5, 0.9, 0.1], 0.3).tolist() == [1, 2]
    assert bev_nms(unit, [0.5, 0.9, 0.1], 0.4).tolist() == [1, 0, 2]
    assert bev_nms(unit, [0.5, 0.9, 0.1], 0.4, max_num=1).tolist() == [1]
    octagon = np.array([[0, 0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1, math.pi / 4]], dtype=float)
    intersection = 2 * (math.sqrt(2) - 1)  # regular octagon of two unit squares at 45 degrees
    assert bev_iou(octagon, octagon)[0, 1] == pytest.approx(intersection / (2 - intersection))


def test_bev_overlap_of_pairs_and_of_all():
    boxes = np.concatenate([RNG.uniform(-4, 4, (30, 3)), RNG.uniform(0.5, 5, (30, 3)), RNG.uniform(-4, 4, (30, 1))], 1)
    a, b = boxes[:12], boxes[12:24]
    overlap = bev_overlap(a, b)
    np.testing.assert_allclose(bev_overlap(a, b, aligned=True), overlap.diagonal())
    np.testing.assert_allclose(bev_iou(a, b, aligned=True), bev_iou(a, b).diagonal())
    np.testing.assert_allclose(bev_overlap(a, a).diagonal(), a[:, 3] * a[:, 4])
    assert (overlap > 0).any() and not bev_overlap(a, b + [40, 0, 0, 0, 0, 0, 0]).any()
    assert bev_overlap(a[:0], b).shape == (0, 12) and bev_iou(a[:0], b[:0], aligned=True).shape == (0,)


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.3, 0.8, 1.0])
def test_bev_nms_keeps_what_overlaps_no_better_box(threshold):
    boxes = np.concatenate([RNG.uniform(-6, 6, (60, 3)), RNG.uniform(0.5, 5, (60, 3)), RNG.uniform(-4, 4, (60, 1))], 1)
    boxes[50:] = boxes[:10]  # copies: an IoU of 1, or one rounding below
    scores, iou = RNG.uniform(size=60), bev_iou(boxes, boxes)
    expected: list[int] = []
    for i in np.argsort(-scores):
        if all(iou[i, j] <= threshold for j in expected):
            expected.append(int(i))
    assert bev_nms(boxes, scores, threshold).tolist() == expected
    assert bev_nms(boxes[:0], scores[:0], threshold).shape == (0,)


def test_grids_index_and_metres():
    grid = BevGrid(-10, -20, 10, 20, 5, 8)
    centres = grid.cell_centres()
    assert centres.shape == (8, 5, 2)
    cells, inside = grid.cells_of(centres)
    assert inside.all()
    assert np.array_equal(cells[..., 0], np.tile(np.arange(5), (8, 1)))
    assert np.array_equal(cells[3, 2], [2, 3])
    assert not grid.cells_of([10.0, 0])[1]
    voxels = VoxelGrid(-40, -40, -1, 40, 40, 5.4, 200, 200, 16)
    assert np.allclose(voxels.voxel_m, 0.4)
    index = RNG.integers(0, 16, size=(50, 3))
    back, inside = voxels.voxels_of(voxels.centres_of(index))
    assert inside.all() and np.array_equal(back, index)
    with pytest.raises(ValueError):
        BevGrid(0, 0, 0, 1, 1, 1)
    with pytest.raises(ValueError):
        VoxelGrid(0, 0, 0, 1, 1, 1, 1, 0, 1)


def test_poses_between_two_lie_on_the_shorter_way() -> None:
    rng = np.random.default_rng(3)
    start, end = (pose(quaternion_to_matrix(rng.normal(size=4)), rng.normal(size=3)) for _ in range(2))
    for share in (0.0, 0.3, 1.0):
        between = interpolate_poses(start, end, share)
        np.testing.assert_allclose(between[:3, 3], (1 - share) * start[:3, 3] + share * end[:3, 3], atol=1e-12)
        expected = Slerp([0, 1], Rotation.from_matrix([start[:3, :3], end[:3, :3]]))(share).as_matrix()
        np.testing.assert_allclose(between[:3, :3], expected, atol=1e-12)
    near = pose(rotation_z(1e-10), [0, 0, 0])
    np.testing.assert_allclose(interpolate_poses(np.eye(4), near, 0.5), pose(rotation_z(5e-11), [0, 0, 0]), atol=1e-15)
    many = interpolate_poses(np.stack([start, start]), np.stack([end, end]), [0.0, 0.3])
    np.testing.assert_allclose(many[1], interpolate_poses(start, end, 0.3), atol=1e-15)
