"""The mirror world: every object is still seen where its box projects to, and mirroring twice changes nothing."""

import numpy as np
import pytest
import torch

from drivestack.core.frames import Frame
from drivestack.data_tools.clips.collate import ClipSample, collate_clips
from drivestack.data_tools.clips.mirror import mirror_clip
from drivestack.geometry import box_corners, invert_pose, pose, rotation_z, transform_points

WIDTHS = (64, 48)
NUSCENES = pose(rotation_z(-np.pi / 2), [1.0, 0, 1.8])  # the LIDAR's x axis points right
OPENLANE = np.eye(4)  # no LIDAR: ego frame, y points left
MOUNTINGS = pytest.mark.parametrize(("ego_from_bev", "sideways"), [(NUSCENES, 0), (OPENLANE, 1)])


def sample(ego_from_bev=NUSCENES) -> ClipSample:
    rng = np.random.default_rng(0)
    intrinsics = np.array([[40.0, 0, 30], [0, 42, 15], [0, 0, 1]])
    axes = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # camera from BEV axes: looks along +y
    bev_from_camera = np.stack([invert_pose(pose(axes @ rotation_z(a), [0.1, 0.2, -0.3])) for a in (0.3, -1.2)])
    image_from_bev = np.stack(
        [np.block([[intrinsics, np.zeros((3, 1))], [0, 0, 0, 1]]) @ invert_pose(m) for m in bev_from_camera]
    )
    boxes = np.array([[2.0, 9, -1, 4, 2, 1.5, 0.4, 3, 1], [-7, 8, 0, 1, 1, 2, -2, 0, -1]], dtype=np.float32)
    return ClipSample(
        images=[[rng.normal(size=(3, 32, w)).astype(np.float32) for w in WIDTHS]],
        frame_offsets=(0,),
        image_from_bev=image_from_bev[None].astype(np.float32),
        image_flipped=False,
        bda=(np.diag([1.0, -1, 1]) @ rotation_z(0.2)).astype(np.float32),
        intrinsics=np.stack([intrinsics] * 2).astype(np.float32),
        bev_from_camera=bev_from_camera.astype(np.float32),
        frame=Frame("f", "s", "scene", 0, (), np.eye(4), ego_from_bev),
        camera_names=("left", "right"),
        gt_boxes=boxes,
        gt_labels=np.array([3, 6]),
    )


def pixels(image_from_bev, points):
    uvd = np.concatenate([points, np.ones_like(points[..., :1])], -1) @ image_from_bev[:3].T
    return uvd[..., :2] / uvd[..., 2:], uvd[..., 2]


@MOUNTINGS
def test_boxes_project_to_the_mirrored_pixels(ego_from_bev, sideways):
    before, after = sample(ego_from_bev), mirror_clip(sample(ego_from_bev))
    for n, width in enumerate(WIDTHS):
        uv, depth = pixels(before.image_from_bev[0, n], box_corners(before.gt_boxes))
        uv_mirrored, depth_mirrored = pixels(after.image_from_bev[0, n], box_corners(after.gt_boxes))
        # left and right corners change places: compare as sets, by sorting along u
        np.testing.assert_allclose(np.sort(depth_mirrored), np.sort(depth), atol=1e-4)
        np.testing.assert_allclose(np.sort(uv_mirrored[..., 0]), np.sort(width - uv[..., 0]), atol=1e-3)
        np.testing.assert_allclose(after.images[0][n], before.images[0][n][..., ::-1])


@MOUNTINGS
def test_headings_and_velocities_turn_with_the_boxes(ego_from_bev, sideways):
    before, after = sample(ego_from_bev), mirror_clip(sample(ego_from_bev))
    turned = [[-1, 1], [1, -1]][sideways]
    heading = np.stack([np.cos(before.gt_boxes[:, 6]), np.sin(before.gt_boxes[:, 6])], 1)
    mirrored = np.stack([np.cos(after.gt_boxes[:, 6]), np.sin(after.gt_boxes[:, 6])], 1)
    np.testing.assert_allclose(mirrored, heading * turned, atol=1e-6)
    np.testing.assert_allclose(after.gt_boxes[:, 7:], before.gt_boxes[:, 7:] * turned)
    # what is ahead of the car stays ahead, what is left becomes right
    ego = [np.array(c.ego_from_bev if c.ego_from_bev is not None else ego_from_bev) for c in (before, after)]
    at = [transform_points(e, c.gt_boxes[:, :3].astype(float)) for e, c in zip(ego, (before, after))]
    np.testing.assert_allclose(at[1], at[0] * [1, -1, 1], atol=1e-5)


@MOUNTINGS
def test_matrices_stay_consistent(ego_from_bev, sideways):
    after = mirror_clip(sample(ego_from_bev))
    for n in range(len(WIDTHS)):
        rotation = after.bev_from_camera[n, :3, :3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-5)
        assert np.linalg.det(rotation) > 0 and after.intrinsics[n, 0, 0] > 0  # an ordinary camera again
        chained = np.eye(4)
        chained[:3, :3] = after.intrinsics[n]
        np.testing.assert_allclose(
            chained @ invert_pose(after.bev_from_camera[n]), after.image_from_bev[0, n], atol=1e-3
        )


@MOUNTINGS
def test_twice_is_nothing_and_the_batch_holds_it(ego_from_bev, sideways):
    before = sample(ego_from_bev)
    twice = mirror_clip(mirror_clip(before))
    np.testing.assert_allclose(twice.ego_from_bev, ego_from_bev, atol=1e-6)
    for name in ("image_from_bev", "intrinsics", "bev_from_camera", "bda", "gt_boxes"):
        np.testing.assert_allclose(getattr(twice, name), getattr(before, name), atol=1e-4)
    batch = collate_clips([mirror_clip(sample())])
    assert batch.images.shape == (1, 1, 2, 3, 32, 64) and not batch.image_flipped.any()
    assert torch.isfinite(batch.image_from_bev).all()


def test_perspective_targets_are_refused():
    bad = sample()
    bad.mono = [object(), None]
    with pytest.raises(ValueError, match="mono=False"):
        mirror_clip(bad)
