"""The whole detector: history by cache equals history by re-encoding, explicit modes, cameras and sizes as data."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from drivestack.backbone.fpn import FPN
from drivestack.backbone.internimage import InternImage
from drivestack.bev.head import BEVFormerHead
from drivestack.bev.history import PastFrame, evaluation_mode, find_past
from drivestack.bev.model import BEVFormerV2
from drivestack.bev.proposals import BevProposals, HybridQueries
from drivestack.bev.transformer import BevTransformer
from drivestack.errors import ConfigError
from drivestack.geometry import PinholeCamera, invert_pose, pose, rotation_z
from drivestack.structures import Batch, CameraView, Frame, past_lidar_from_current

RANGE = (-20.0, -20.0, -5.0, 20.0, 20.0, 3.0)
WIDTH, HEIGHT = 64, 32
CAMERA_FROM_BODY = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # LIDAR axes: y forward, z up


def build(offsets=(0,), num_cameras=3, proposals=True, seed=0):
    torch.manual_seed(seed)
    channels = 32
    return BEVFormerV2(
        img_backbone=InternImage(channels=16, depths=(1, 1, 1, 1), groups=(1, 2, 4, 8), out_indices=(1, 2, 3)),
        img_neck=FPN(in_channels=(32, 64, 128), out_channels=channels, num_outs=3),
        pts_bbox_head=BEVFormerHead(
            BevTransformer(
                point_range=RANGE,
                bev_size=(8, 10),
                embed_dims=channels,
                num_heads=4,
                num_cams=num_cameras,
                num_levels=3,
                encoder_layers=1,
                decoder_layers=2,
                ffn_dims=64,
                dropout=0.1,
                frames=offsets,
                fusion_channels=channels,
            ),
            num_query=6,
            num_groups=2,
            embed_dims=channels,
            num_decoder_layers=2,
            pc_range=RANGE,
            bev_size=(8, 10),
        ),
        bev_proposals=BevProposals(channels, 10, RANGE, num_proposals=5) if proposals else None,
        hybrid_queries=HybridQueries(channels, 10) if proposals else None,
        frame_offsets=offsets,
        num_bev_levels=3,
    )


def scene(num_frames, num_cameras=3):
    """Frames of a car that drives and turns, with images."""
    rng = np.random.default_rng(0)
    frames, images = [], []
    camera = PinholeCamera(np.array([[40.0, 0, 32], [0, 40, 16], [0, 0, 1]]), WIDTH, HEIGHT)
    for i in range(num_frames):
        global_from_ego = pose(rotation_z(0.1 * i), [2.0 * i, 0.3 * i, 0])
        ego_from_lidar = pose(rotation_z(-np.pi / 2), [0.9, 0, 1.8])
        views = []
        for n in range(num_cameras):
            camera_from_lidar = np.eye(4)
            camera_from_lidar[:3, :3] = CAMERA_FROM_BODY @ rotation_z(2 * np.pi * n / num_cameras)
            lidar_from_camera = invert_pose(camera_from_lidar)
            views.append(
                CameraView(
                    f"C{n}", "", camera, global_from_ego @ ego_from_lidar @ lidar_from_camera, lidar_from_camera, i
                )
            )
        frames.append(
            Frame(f"f{i}", "s", "scene", i, tuple(views), ego_from_lidar, global_from_ego,
                  prev_token=f"f{i - 1}" if i else "", next_token=f"f{i + 1}")
        )  # fmt: skip
        images.append(torch.from_numpy(rng.normal(size=(num_cameras, 3, HEIGHT, WIDTH)).astype(np.float32)))
    return frames, images


def clip(frames, images, index, offsets):
    """The batch of one clip, as the data pipeline makes it."""
    current = frames[index]
    num_cameras = len(current.cameras)
    pictures, matrices, valid = [], [], []
    for offset in offsets:
        there = index + offset >= 0
        valid.append(there)
        frame = frames[index + offset] if there else current
        motion = past_lidar_from_current(current, frame)
        pictures.append(images[index + offset] if there else torch.zeros_like(images[index]))
        matrices.append(np.stack([v.image_from_lidar @ motion for v in frame.cameras]))
    sizes = torch.tensor([HEIGHT, WIDTH]).expand(1, len(offsets), num_cameras, 2)
    return Batch(
        images=torch.stack(pictures)[None],
        frame_offsets=tuple(offsets),
        frame_valid=torch.tensor([valid]),
        image_from_lidar=torch.from_numpy(np.stack(matrices)).float()[None],
        image_size_px=sizes,
        image_flipped=torch.zeros(1, dtype=torch.bool),
        bda=torch.eye(3)[None],
        intrinsics=torch.from_numpy(np.stack([v.camera.intrinsics for v in current.cameras])).float()[None],
        lidar_from_camera=torch.from_numpy(np.stack([v.lidar_from_camera for v in current.cameras])).float()[None],
        gt_boxes=[torch.tensor([[5.0, 6, -1, 4, 2, 1.5, 0.3, 1, 0], [-8, 2, -1, 1, 1, 1.7, 0, 0, 0]])],
        gt_labels=[torch.tensor([3, 6])],
        frames=[current],
    )


def join(a, b):
    """Two batches of one as a batch of two."""
    cat = {
        name: torch.cat([getattr(a, name), getattr(b, name)])
        for name in ("images", "frame_valid", "image_from_lidar", "image_size_px", "image_flipped", "bda", "intrinsics",
                     "lidar_from_camera")
    }  # fmt: skip
    lists = {name: getattr(a, name) + getattr(b, name) for name in ("gt_boxes", "gt_labels", "frames")}
    return replace(a, **cat, **lists)


def same(found, expected):
    np.testing.assert_allclose(found.scores, expected.scores, atol=2e-5)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=2e-3)


def test_cached_history_gives_the_numbers_of_the_whole_clip():
    offsets = (-2, -1, 0)
    model = build(offsets).eval()
    frames, images = scene(5)
    encoded = []
    backbone = model.img_backbone.forward
    model.img_backbone.forward = lambda x: encoded.append(len(x)) or backbone(x)
    history = None
    for i in range(5):
        whole, _ = model.predict(clip(frames, images, i, offsets))
        encoded.clear()
        streamed, history = model.predict(clip(frames, images, i, (0,)), history)
        assert encoded == [3]  # one pass over the current frame's cameras
        same(streamed[0], whole[0])
        assert len(history) == min(i + 1, 2)


def test_history_works_for_a_batch_of_consecutive_frames():
    offsets = (-1, 0)
    model = build(offsets).eval()
    frames, images = scene(4)
    _, history = model.predict(clip(frames, images, 0, (0,)))
    both, _ = model.predict(join(clip(frames, images, 1, (0,)), clip(frames, images, 2, (0,))), history)
    for i, found in zip((1, 2), both):
        same(found, model.predict(clip(frames, images, i, offsets))[0][0])


def test_history_is_forgotten_at_a_scene_change():
    model = build((-1, 0)).eval()
    frames, images = scene(3)
    _, history = model.predict(clip(frames, images, 0, (0,)))
    jumped, _ = model.predict(clip(frames, images, 2, (0,)), history)  # frame 1 was never seen
    fresh, _ = model.predict(clip(frames, images, 2, (0,)))
    same(jumped[0], fresh[0])


def test_a_batch_of_two_is_two_batches():
    model = build((-1, 0)).eval()
    frames, images = scene(3)
    a, b = clip(frames, images, 1, (-1, 0)), clip(frames, images, 2, (-1, 0))
    together, _ = model.predict(join(a, b))
    for found, batch in zip(together, (a, b)):
        same(found, model.predict(batch)[0][0])


def test_every_parameter_learns_from_the_loss():
    model = build((-1, 0)).train()
    frames, images = scene(2)
    losses = model(clip(frames, images, 1, (-1, 0)), mode="loss")
    assert {"loss_cls", "loss_bbox", "d0.loss_cls", "loss_dense_cls"} <= losses.keys()
    sum(losses.values()).backward()
    still = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert still == []


def test_past_frames_are_encoded_as_in_evaluation_and_modes_come_back():
    model = build((-1, 0)).train()
    model.img_neck.eval()  # a part that its owner froze stays frozen (Q31)
    seen = []
    backbone = model.img_backbone.forward
    model.img_backbone.forward = lambda x: (
        seen.append((model.img_backbone.training, torch.is_grad_enabled())) or backbone(x)
    )
    frames, images = scene(2)
    model.loss(clip(frames, images, 1, (-1, 0)))
    assert seen == [(False, False), (True, True)]
    assert model.img_backbone.training and not model.img_neck.training
    with pytest.raises(RuntimeError), evaluation_mode(model):
        raise RuntimeError
    assert model.training and not model.img_neck.training


def test_mirrored_images_with_unmirrored_matrices_are_the_same_scene():
    model = build(proposals=False).eval()
    frames, images = scene(1)
    batch = clip(frames, images, 0, (0,))
    levels = model.extract_features(batch.images[:, 0], torch.tensor([False]))
    back = model.extract_features(batch.images[:, 0].flip(-1), torch.tensor([True]))
    plain = model.extract_features(batch.images[:, 0].flip(-1), torch.tensor([False]))
    for level, flipped, raw in zip(levels, back, plain):
        assert level.shape == flipped.shape
        assert torch.equal(flipped, raw.flip(-1))


def test_moved_cameras_move_the_answer():
    model = build().eval()
    frames, images = scene(1)
    batch = clip(frames, images, 0, (0,))
    found = model.predict(batch)[0][0]
    shuffled = replace(batch, image_from_lidar=batch.image_from_lidar.roll(1, dims=2))
    assert not np.allclose(found.scores, model.predict(shuffled)[0][0].scores, atol=1e-4)


def test_camera_count_is_data():
    model = build(num_cameras=5).eval()
    frames, images = scene(1, num_cameras=5)
    assert len(model.predict(clip(frames, images, 0, (0,)))[0]) == 1


def test_history_does_not_cross_a_scene_border():
    """Even where the frames of two scenes are linked: clips of a data set end there too."""
    frames, _ = scene(3)
    frames[2] = replace(frames[2], scene_token="another")
    history = {f.token: PastFrame(f, (), torch.zeros(0), torch.zeros(0)) for f in frames}
    assert find_past(history, frames[1], 1).frame is frames[0]
    assert find_past(history, frames[2], 1) is None and find_past(history, frames[2], 2) is None


def test_history_of_another_image_size_is_refused():
    model = build((-1, 0)).eval()
    frames, images = scene(2)
    _, history = model.predict(clip(frames, images, 0, (0,)))
    batch = clip(frames, images, 1, (0,))
    taller = torch.cat([batch.images, torch.zeros_like(batch.images)], -2)
    with pytest.raises(ValueError, match="sample f1: the features of sample f0 before it"):
        model.predict(replace(batch, images=taller), history)


def test_what_a_loss_cannot_be_taken_of_is_named():
    model = build((-1, 0)).train()
    frames, images = scene(2)
    batch = clip(frames, images, 1, (-1, 0))
    with pytest.raises(ConfigError, match=r"\(-1, 0\), the batch has \(-2, 0\)"):
        model.loss(replace(batch, frame_offsets=(-2, 0)))
    with pytest.raises(ConfigError, match="samples f1 have no labels"):
        model.loss(replace(batch, gt_boxes=[], gt_labels=[]))
    with pytest.raises(ConfigError, match="samples f1 have the label 10, but the model has 10 classes"):
        model.loss(replace(batch, gt_labels=[torch.tensor([3, 10])]))


def test_parts_on_different_ranges_are_refused():
    model = build((-1, 0))
    parts = dict(img_backbone=model.img_backbone, img_neck=model.img_neck, pts_bbox_head=model.pts_bbox_head)
    parts |= dict(frame_offsets=(-1, 0), hybrid_queries=model.hybrid_queries)
    wider = (-20.0, -20.0, -5.0, 30.0, 20.0, 3.0)
    with pytest.raises(ValueError, match=r"bev_proposals has pc_range .*30.0.* pts_bbox_head"):
        BEVFormerV2(**parts, bev_proposals=BevProposals(32, 10, wider))
    transformer = model.pts_bbox_head.transformer
    for wrong in (dict(pc_range=wider, bev_size=(8, 10)), dict(pc_range=RANGE, bev_size=(10, 8))):
        with pytest.raises(ValueError, match="give both the same"):
            BEVFormerHead(transformer, embed_dims=32, num_decoder_layers=2, **wrong)


def test_cameras_in_another_order_with_their_embeddings_are_the_same_rig():
    model = build(num_cameras=5).eval()
    frames, images = scene(1)
    batch, order = clip(frames, images, 0, (0,)), [2, 0, 1]
    model.pts_bbox_head.camera_ids = (4, 1, 3)
    found = model.predict(batch)[0][0]
    turned = replace(
        batch, images=batch.images[:, :, order], image_from_lidar=batch.image_from_lidar[:, :, order],
        intrinsics=batch.intrinsics[:, order], lidar_from_camera=batch.lidar_from_camera[:, order],
    )  # fmt: skip
    model.pts_bbox_head.camera_ids = [(4, 1, 3)[i] for i in order]
    same(model.predict(turned)[0][0], found)


def test_wrong_clips_and_configs_are_refused():
    model = build((-1, 0)).eval()
    frames, images = scene(3)
    with pytest.raises(ValueError, match=r"\(-1, 0\)"):
        model.predict(clip(frames, images, 2, (-2, 0)))
    with pytest.raises(ValueError, match="mode"):
        model(clip(frames, images, 1, (-1, 0)), mode="tensor")
    with pytest.raises(ValueError, match="ascending"):
        build((0, -1))
    parts = dict(img_backbone=model.img_backbone, img_neck=model.img_neck, pts_bbox_head=model.pts_bbox_head)
    with pytest.raises(ValueError, match=r"\(-2, 0\).*\(-1, 0\)"):
        BEVFormerV2(**parts, frame_offsets=(-2, 0))
    with pytest.raises(ValueError, match="hybrid_queries"):
        BEVFormerV2(**parts, frame_offsets=(-1, 0), bev_proposals=model.bev_proposals)
