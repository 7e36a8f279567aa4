"""Camera boxes against upstream and against our own geometry."""

import math

import numpy as np
import pytest
import torch

from drivestack.bev.perspective.geometry import (
    CameraBoxes,
    camera_rays,
    decode_camera_boxes,
    egocentric_from_allocentric,
    labelled_boxes,
    quaternion_to_matrix,
)
from drivestack.geometry import box_corners, pose, rotation_z, transform_points
from drivestack.geometry import quaternion_to_matrix as numpy_quaternion_to_matrix


@pytest.fixture
def ref(case):
    return case("dd3d_geometry")


def test_rotations_and_rays_agree_with_upstream(ref):
    rotation = quaternion_to_matrix(ref["in.quat"])
    torch.testing.assert_close(rotation, ref["out.rot"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(rotation, numpy_quaternion_to_matrix(ref["in.quat"]), atol=1e-6)
    rays = camera_rays(ref["in.proj_ctr"], ref["in.inv_intrinsics"])
    torch.testing.assert_close(rays, ref["out.ray"], rtol=0, atol=1e-6)
    egocentric = egocentric_from_allocentric(ref["in.proj_ctr"], ref["in.inv_intrinsics"]) @ rotation
    torch.testing.assert_close(egocentric, quaternion_to_matrix(ref["out.ego_quat"]), rtol=0, atol=1e-6)


def test_boxes_agree_with_upstream(ref):
    boxes = CameraBoxes(
        quaternion_to_matrix(ref["in.quat"]), *(ref[f"in.{n}"] for n in ("proj_ctr", "depth", "size", "inv_intrinsics"))
    )
    torch.testing.assert_close(boxes.centre, ref["out.tvec"], rtol=0, atol=1e-5)
    torch.testing.assert_close(boxes.corners, ref["out.corners"], rtol=0, atol=1e-5)


def test_decoding_agrees_with_upstream(ref):
    raw = [ref[f"in.raw.{name}"] for name in ("quat", "proj_ctr", "depth", "size", "locations")]
    boxes = decode_camera_boxes(*raw, ref["in.inv_intrinsics"], ref["in.raw.canon"], (0.1, 80.0))
    torch.testing.assert_close(boxes.rotation, quaternion_to_matrix(ref["out.pred.quat"]), rtol=0, atol=1e-5)
    pairs = {
        "proj_ctr": boxes.proj_ctr,
        "depth": boxes.depth,
        "size": boxes.size_wlh,
        "tvec": boxes.centre,
        "corners": boxes.corners,
    }
    for name, value in pairs.items():
        torch.testing.assert_close(value, ref[f"out.pred.{name}"], rtol=1e-6, atol=1e-5)


def test_labels_are_read_and_brought_to_the_lidar():
    """A box of the BEV frame, written as a camera label, comes back."""
    forward_is_x = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    bev_from_camera = pose(rotation_z(0.3) @ forward_is_x, np.array([1.0, 0.2, 1.5]))
    box = np.array([[14.0, 6.0, -0.5, 4.5, 1.9, 1.6, 0.8]])
    camera_from_bev = np.linalg.inv(bev_from_camera)
    rotation = camera_from_bev[:3, :3] @ rotation_z(0.8)
    w = math.sqrt(max(1 + np.trace(rotation), 0)) / 2
    xyz = [rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]]
    centre = camera_from_bev[:3, :3] @ box[0, :3] + camera_from_bev[:3, 3]
    row = np.concatenate([[w], np.array(xyz) / (4 * w), centre, [1.9, 4.5, 1.6]])
    intrinsics = torch.tensor([[[300.0, 0, 200], [0, 310, 100], [0, 0, 1]]])
    boxes = labelled_boxes(torch.from_numpy(row)[None], intrinsics)
    back = boxes.in_frame(torch.from_numpy(bev_from_camera).float()[None])
    np.testing.assert_allclose(back, box, atol=1e-4)
    # corners too, whatever their order
    ours = transform_points(bev_from_camera, boxes.corners[0].double().numpy())
    distance = np.linalg.norm(ours[:, None] - box_corners(box)[0][None], axis=-1)
    assert distance.min(0).max() < 1e-4 and distance.min(1).max() < 1e-4


def test_gradients():
    torch.manual_seed(0)
    inverse = torch.linalg.inv(torch.tensor([[[300.0, 0, 200], [0, 310, 100], [0, 0, 1]]], dtype=torch.float64))
    raw = [torch.randn(1, n, dtype=torch.float64, requires_grad=True) for n in (4, 2, 1, 3)]

    def corners(quaternion, offset, depth, size):
        return decode_camera_boxes(
            quaternion,
            offset,
            20 + depth[:, 0],
            size,
            torch.tensor([[120.0, 60]], dtype=torch.float64),
            inverse,
            torch.ones(1, 3, dtype=torch.float64),
            (0.1, 80.0),
        ).corners

    assert torch.autograd.gradcheck(corners, raw)
