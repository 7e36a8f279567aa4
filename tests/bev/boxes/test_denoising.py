"""Queries on lines of sight: where they lie, what they learn, and that nothing else meets them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from drivestack.bev.boxes.box_coder import denormalise_points, encode_boxes
from drivestack.bev.boxes.denoising import RayDenoising
from drivestack.core.batch import BevFeatures
from drivestack.core.errors import ConfigError
from drivestack.geometry import BevGrid
from support import toy_rig

PLAIN = dict(dropout=0.0, grid_mask=False)


def batch():
    frames, images = toy_rig.scene(1)
    clip = toy_rig.clip(frames, images, 0, (0,))
    clip.gt_boxes[0][:, :2] = torch.tensor([[2.0, 9], [-8, -5]])  # in the first and the third camera
    return clip


def rays(**settings):
    return RayDenoising(10, toy_rig.RANGE, **settings)


def network(seed=0, **settings):
    net = toy_rig.build(seed=seed, **PLAIN)
    net.boxes.ray_denoising = rays(**settings)
    return net


def places(found):
    return denormalise_points(found.proposals.reference, torch.tensor(toy_rig.RANGE))


def test_places_lie_on_the_line_from_a_camera_that_sees_the_object():
    torch.manual_seed(0)
    clip = batch()
    clip.bda = torch.tensor([[[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]])  # the BEV is turned: labels are, too
    clip.bda = clip.bda * torch.tensor([1.0, -1, 1])[:, None]  # and mirrored
    clip.bev_from_camera[0, :, :3, 3] = torch.tensor([[1.0, 0.5, 0.2]])
    real = torch.tensor([[2.0, 9, -1], [8, -5, -1], [-9, -5, -0.5]])
    boxes = torch.zeros(3, 9)
    boxes[:, :3], boxes[:, 3:6] = real @ clip.bda[0].T, torch.tensor([4.0, 2, 1.5])
    clip = replace(clip, gt_boxes=[boxes], gt_labels=[torch.tensor([3, 6, 0])])
    # matrices that fit the moved cameras
    clip.image_from_bev[0, 0] = torch.eye(4).expand(3, 4, 4).clone()
    clip.image_from_bev[0, 0, :, :3, :3] = clip.intrinsics[0]
    clip.image_from_bev[0, 0] = clip.image_from_bev[0, 0] @ torch.linalg.inv(clip.bev_from_camera[0])
    found = rays(negatives=5).queries(clip)
    assert found.proposals.reference.shape == (1, 18, 3)
    at = places(found)[0].view(3, 6, 3)
    camera = (torch.tensor([1.0, 0.5, 0.2]) @ clip.bda[0].T)[:2]
    mean_half_side = (4 + 2 + 1.5) / 6
    for i in range(3):
        line = boxes[i, :2] - camera
        away = (at[i, :, :2] - boxes[i, :2]) @ (line / line.norm())
        aside = at[i, :, :2] - boxes[i, :2] - away[:, None] * line / line.norm()
        assert aside.abs().max() < 1e-3 and (at[i, :, 2] - boxes[i, 2]).abs().max() < 1e-4
        assert away[0].abs() <= 0.75 * mean_half_side + 1e-4
        assert (away[1:].abs() >= 0.75 * mean_half_side - 1e-3).all() and away.abs().max() <= 3 * mean_half_side + 1e-3
        near = found.has_box[0].view(3, 6)[i]
        assert near[0] and torch.equal(near[1:], away[1:].abs() < 2.0)
    assert found.good[0].view(3, 6).sum(1).tolist() == [1, 1, 1] and found.good[0].view(3, 6)[:, 0].all()
    torch.testing.assert_close(found.codes[0, 6], encode_boxes(boxes[1]))
    assert found.labels[0].tolist() == [3] * 6 + [6] * 6 + [0] * 6


def test_shifts_are_mostly_behind_and_the_good_one_on_both_sides():
    torch.manual_seed(0)
    shifts = rays(negatives=3).shifts(torch.tensor([[2.0, 2, 2]]).repeat(4000, 1))  # a mean half side of 1 m
    assert shifts.shape == (4000, 4)
    good, others = shifts[:, 0], shifts[:, 1:]
    assert good.abs().max() <= 0.75 and abs(float(good.mean())) < 0.03 and 0.4 < (good > 0).float().mean() < 0.6
    assert abs(float(others.mean()) - 1.8) < 0.05 and (others < 0).float().mean() < 0.05
    assert others.abs().min() >= 0.75 and others.max() <= 3
    again = rays(negatives=3).shifts(torch.tensor([[4.0, 4, 4]]).repeat(4000, 1))
    assert again.abs().max() <= 6 and abs(float(again[:, 1:].mean()) - 3.6) < 0.1


def test_unseen_objects_stay_and_have_no_background_queries():
    clip = batch()
    clip.image_from_bev = torch.zeros_like(clip.image_from_bev)  # no camera sees anything
    found = rays().queries(clip)
    assert found.proposals.valid[0].view(2, 4).tolist() == [[True, False, False, False]] * 2
    torch.testing.assert_close(places(found)[0, ::4], clip.gt_boxes[0][:, :3], rtol=0, atol=1e-3)
    assert not found.has_box[0].view(2, 4)[:, 1:].any()


def test_the_same_seed_gives_the_same_queries_and_many_objects_are_drawn():
    clip = batch()
    boxes = clip.gt_boxes[0][:1].repeat(40, 1)
    boxes[:, 0] = torch.linspace(-15, 15, 40)
    many = replace(clip, gt_boxes=[boxes], gt_labels=[torch.arange(40) % 10])
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(rays(max_objects=8).queries(many))
    assert drawn[0].proposals.reference.shape == (1, 32, 3)
    assert torch.equal(drawn[0].proposals.reference, drawn[1].proposals.reference)
    assert not torch.equal(drawn[0].labels, drawn[2].labels)


def test_the_head_s_own_answers_and_losses_stay_to_the_bit():
    net, alone = network(), toy_rig.build(**PLAIN)
    assert net.state_dict().keys() == alone.state_dict().keys()  # no parameters
    losses, expected = net.loss(batch()), alone.loss(batch())
    extra = {"loss_ray_cls", "loss_ray_bbox", "d0.loss_ray_cls", "d0.loss_ray_bbox"}
    assert set(losses) == set(expected) | extra and all(losses[name] > 0 for name in extra)
    for name, value in expected.items():
        assert torch.equal(losses[name], value), name
    net.eval(), alone.eval()
    found, same = (m.predict(batch())[0][0].boxes for m in (net, alone))
    np.testing.assert_array_equal(found.scores, same.scores)
    assert set(net.loss(batch())) == set(expected)  # none in evaluation


def test_queries_see_one_another_and_not_the_padding():
    net = network().train()
    torch.manual_seed(0)
    bev = torch.randn(2, 32, 10, 8)
    pair = toy_rig.join(batch(), batch())
    pair.gt_boxes[1], pair.gt_labels[1] = pair.gt_boxes[1][:1], pair.gt_labels[1][:1]
    found = net.boxes.ray_denoising.queries(pair)
    assert found.proposals.valid.sum(1).tolist() == [8, 4]
    queries = net.boxes.hybrid_queries(bev, found.proposals)
    outs = net.boxes.head.decode_apart(bev, queries)
    changed = queries.query.clone()
    changed[1, 4:] = 7.0  # padding
    other = net.boxes.head.decode_apart(bev, replace(queries, query=changed))
    torch.testing.assert_close(other.cls_logits[:, 1, :4], outs.cls_logits[:, 1, :4])
    changed = queries.query.clone()
    changed[1, 3] = torch.randn(32)  # a background query of the same object
    other = net.boxes.head.decode_apart(bev, replace(queries, query=changed))
    assert (other.cls_logits[:, 1, 0] - outs.cls_logits[:, 1, 0]).abs().max() > 1e-4


def test_the_loss_is_the_heads_own_of_one_query_after_the_other():
    net = network(weight=0.5).train()
    head, clip = net.boxes.head, batch()
    torch.manual_seed(3)
    outputs = net.boxes(BevFeatures(torch.randn(1, 32, 10, 8), BevGrid(-20, -20, 20, 20, 8, 10)), [], clip)
    terms = net.boxes.ray_denoising.loss(outputs.rays, head, outputs.queries.cls_logits)
    found = outputs.rays.rays
    cls = bbox = 0.0
    for q in range(found.labels.shape[1]):
        if not found.proposals.valid[0, q]:
            continue
        p = outputs.rays.queries.cls_logits[-1, 0, q].sigmoid()
        for c in range(10):
            if found.good[0, q] and c == found.labels[0, q]:
                cls -= 0.25 * (1 - p[c]) ** 2 * p[c].log()
            else:
                cls -= 0.75 * p[c] ** 2 * (1 - p[c]).log()
        if found.has_box[0, q]:
            apart = (outputs.rays.queries.box_codes[-1, 0, q] - found.codes[0, q]).abs()
            smooth = torch.where(apart < 1, apart**2 / 2, apart - 0.5)
            bbox += (smooth * head.code_weights).sum()
    objects = len(clip.gt_labels[0])
    torch.testing.assert_close(terms["loss_ray_cls"], cls * 2.0 * 0.5 / objects, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(terms["loss_ray_bbox"], bbox * 0.75 * 0.5 / objects, rtol=1e-4, atol=1e-6)


def test_gradients_reach_the_map_and_batches_without_objects_add_zeros():
    net = network()
    losses = net.loss(batch())
    sum(v for k, v in losses.items() if "ray" in k).backward()
    assert any(p.grad is not None and p.grad.any() for p in net.img_backbone.parameters())
    assert net.boxes.hybrid_queries.bev_proj.weight.grad.any()
    empty = replace(batch(), gt_boxes=[torch.zeros(0, 9)], gt_labels=[torch.zeros(0, dtype=torch.long)])
    none = {k: v for k, v in net.loss(empty).items() if "ray" in k}
    assert set(none) == {k for k in losses if "ray" in k} and all(v == 0 for v in none.values())
    sum(none.values()).backward()
    # a sample without objects beside one with: finite, and the mean is over objects
    mixed = net.loss(toy_rig.join(batch(), empty))
    mixed = {k: v for k, v in mixed.items() if "ray" in k}
    assert all(v.isfinite() and v > 0 for v in mixed.values())
    sum(mixed.values()).backward()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="max_objects"):
        rays(max_objects=0)
    with pytest.raises(ConfigError, match="reach"):
        rays(positive_reach=4.0)
    from drivestack.bev.boxes.head import BoxHead
    from drivestack.bev.boxes.task import BoxTask

    with pytest.raises(ConfigError, match="hybrid_queries"):
        BoxTask(dict(type=BoxHead, num_query=4, num_layers=1), ray_denoising=dict(type=RayDenoising))


def test_a_query_for_background_that_leaves_the_range_is_none():
    """Moved back to the border it would lie on the car at the border, and learn that nothing is there."""
    torch.manual_seed(0)
    clip = batch()
    edge = toy_rig.RANGE[4] - 0.1
    clip.gt_boxes[0] = clip.gt_boxes[0][:1].clone()
    clip.gt_boxes[0][:, :2] = torch.tensor([0.5, edge])
    clip.gt_labels[0] = clip.gt_labels[0][:1]
    found = rays(negatives=200).queries(clip)
    ahead, valid = places(found)[0, :, 1], found.proposals.valid[0]
    assert valid[0] and found.good[0, 0]
    assert 0 < valid[1:].sum() < 200 and not found.has_box[0][~valid].any()
    assert (edge - ahead[1:][valid[1:]] > 0.1).all()  # what is left lies on the near side
