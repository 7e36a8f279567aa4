"""The whole detector: history by cache equals history by re-encoding, explicit modes, cameras and sizes as data."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from drivestack.bev.bevformer_v2 import BEVFormerV2
from drivestack.bev.boxes.proposals import BevProposals
from drivestack.bev.boxes.task import BoxTask
from drivestack.bev.map.history import PastFrame, evaluation_mode, find_past
from drivestack.core.errors import ConfigError
from support import toy_rig

RANGE, build, clip, join, scene = toy_rig.RANGE, toy_rig.build, toy_rig.clip, toy_rig.join, toy_rig.scene


def same(found, expected):
    """Two SceneAnswers hold the same boxes."""
    assert found.token == expected.token
    np.testing.assert_allclose(found.boxes.scores, expected.boxes.scores, atol=2e-5)
    np.testing.assert_allclose(found.boxes.boxes, expected.boxes.boxes, atol=2e-3)


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
    model.img_neck.eval()  # a frozen part stays frozen: docs/quirks.md#training-mode-restored-everywhere
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
    shuffled = replace(batch, image_from_bev=batch.image_from_bev.roll(1, dims=2))
    assert not np.allclose(found.boxes.scores, model.predict(shuffled)[0][0].boxes.scores, atol=1e-4)


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
    boxes = build().boxes
    parts = dict(head=boxes.head, hybrid_queries=boxes.hybrid_queries, embed_dims=32)
    wider = (-20.0, -20.0, -5.0, 30.0, 20.0, 3.0)
    with pytest.raises(ConfigError, match=r"bev_proposals has pc_range .*30.0.*but the BEV map .*leave it out there"):
        BoxTask(**parts, bev_proposals=BevProposals(32, 10, wider), pc_range=RANGE)
    with pytest.raises(ConfigError, match=r"head has pc_range .*20.0.*but the BEV map .*30.0"):
        BoxTask(**parts, pc_range=wider)


def test_a_number_is_stated_once():
    """Channels, range and classes follow from encoder, BEV map and box head where configs leave them out."""
    whole = build()
    torch.manual_seed(0)
    model = BEVFormerV2(
        img_backbone=whole.img_backbone,
        img_neck=dict(type="FPN", out_channels=32, num_outs=3),
        bev_map=whole.bev_map,
        boxes=dict(
            type="BoxTask",
            head=dict(type="BoxHead", num_classes=7, num_query=6, num_groups=2, num_layers=2, num_heads=4, ffn_dims=64),
            bev_proposals=dict(type="BevProposals", num_proposals=5),
            hybrid_queries=dict(type="HybridQueries"),
        ),
    )
    head, dense = model.boxes.head, model.boxes.bev_proposals
    assert head.point_range == dense.point_range == model.bev_map.pc_range == RANGE
    assert head.query_embedding.weight.shape == (12, 64) and head.cls_branches[0][-1].weight.shape == (7, 32)
    frames, images = scene(1)
    losses = model.loss(clip(frames, images, 0, (0,)))
    assert all(value.isfinite() for value in losses.values()) and "loss_dense_cls" in losses


def test_cameras_in_another_order_with_their_embeddings_are_the_same_rig():
    model = build(num_cameras=5).eval()
    frames, images = scene(1)
    batch, order = clip(frames, images, 0, (0,)), [2, 0, 1]
    model.bev_map.camera_ids = (4, 1, 3)
    found = model.predict(batch)[0][0]
    turned = replace(
        batch, images=batch.images[:, :, order], image_from_bev=batch.image_from_bev[:, :, order],
        intrinsics=batch.intrinsics[:, order], bev_from_camera=batch.bev_from_camera[:, order],
    )  # fmt: skip
    model.bev_map.camera_ids = [(4, 1, 3)[i] for i in order]
    same(model.predict(turned)[0][0], found)


def test_wrong_clips_and_configs_are_refused():
    model = build((-1, 0)).eval()
    frames, images = scene(3)
    assert model.frame_offsets == (-1, 0)
    with pytest.raises(ValueError, match=r"\(-1, 0\)"):
        model.predict(clip(frames, images, 2, (-2, 0)))
    with pytest.raises(ValueError, match="mode"):
        model(clip(frames, images, 1, (-1, 0)), mode="tensor")
    with pytest.raises(ValueError, match="ascending"):
        build((0, -1))
    with pytest.raises(ConfigError, match="hybrid_queries"):
        BoxTask(head=model.boxes.head, bev_proposals=model.boxes.bev_proposals, embed_dims=32, pc_range=RANGE)
    with pytest.raises(ConfigError, match="configure perspective as well"):
        BoxTask(
            head=model.boxes.head,
            perspective_proposals=model.boxes.bev_proposals,
            hybrid_queries=model.boxes.hybrid_queries,
            embed_dims=32,
            pc_range=RANGE,
        )
    with pytest.raises(ConfigError, match="at least one task"):
        BEVFormerV2(img_backbone=model.img_backbone, img_neck=model.img_neck, bev_map=model.bev_map)


def test_future_frames_need_the_whole_clip():
    model = build((-1, 0, 1)).eval()
    frames, images = scene(3)
    with pytest.raises(ValueError, match="where no future frame is needed"):
        model.predict(clip(frames, images, 1, (0,)))
    assert len(model.predict(clip(frames, images, 1, (-1, 0, 1)))[0]) == 1


def test_labels_are_not_looked_at_in_prediction():
    model = build().eval()
    frames, images = scene(1)
    batch = clip(frames, images, 0, (0,))
    odd = replace(batch, gt_boxes=[torch.full((1, 9), torch.nan)], gt_labels=[torch.tensor([99])], mono=[[None] * 3])
    plain = model.predict(batch.without_labels())[0][0]
    for other in (batch, odd):
        found = model.predict(other)[0][0]
        np.testing.assert_array_equal(found.boxes.boxes, plain.boxes.boxes)
        np.testing.assert_array_equal(found.boxes.scores, plain.boxes.scores)
    assert odd.gt_labels[0].tolist() == [99]  # the caller's batch is left as it is
