"""One model with several heads: one encoder pass, any subset of tasks, partial labels, frozen parts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from drivestack.core.errors import ConfigError
from support import toy_rig
from support.three_tasks import VoxelHead, labelled, model


def test_three_answers_from_one_encoder_pass():
    net = model().eval()
    passes = []
    net.img_backbone.register_forward_hook(lambda *_: passes.append("images"))
    net.bev_map.encoder.register_forward_hook(lambda *_: passes.append("bev"))
    answer = net.predict(labelled())[0][0]
    assert passes == ["images", "bev"]
    assert answer.token == answer.boxes.token == answer.occupancy.token == "f0"
    assert answer.occupancy.semantics.shape == (4, 4, 1)


def test_the_boxes_are_those_of_the_detector_alone():
    net, alone = model().eval(), toy_rig.build().eval()
    alone.load_state_dict(net.state_dict(), strict=False)
    found, expected = (m.predict(labelled())[0][0].boxes for m in (net, alone))
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    np.testing.assert_array_equal(found.scores, expected.scores)


@pytest.mark.parametrize("tasks", [("boxes",), ("occupancy",), ("lanes",), ("occupancy", "lanes")])
def test_a_subset_learns_and_answers_and_every_learning_parameter_gets_a_gradient(tasks):
    net = model(tasks=tasks)
    losses = net.loss(labelled())
    sum(losses.values()).backward()
    silent = [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None]
    assert not silent
    touched = {n.split(".")[0] for n, p in net.named_parameters() if p.requires_grad}
    assert ("occupancy_head" in touched, "lane_head" in touched) == ("occupancy" in tasks, "lanes" in tasks)
    assert net.tasks == tasks and any(p.requires_grad for p in net.boxes.parameters()) == ("boxes" in tasks)
    answer = net.eval().predict(labelled())[0][0]
    assert (answer.boxes is None, answer.occupancy is None) == ("boxes" not in tasks, "occupancy" not in tasks)


@pytest.mark.parametrize(
    "labels", [{"occupancy": [None]}, {"lanes": []}, {"gt_boxes": [], "gt_labels": []}, {"occupancy": [], "lanes": []}]
)
def test_a_batch_without_a_tasks_labels_adds_nothing_there_and_reaches_every_parameter(labels):
    net = model()
    whole, partial = net.loss(labelled()), net.loss(labelled(**labels))
    sum(partial.values()).backward()
    assert not [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None]
    if "occupancy" in labels:
        assert partial["loss_occ_ce"] == 0 and whole["loss_occ_ce"] > 0
        assert not net.occupancy_head.classify.weight.grad.any()
    if "gt_boxes" in labels:
        assert partial["loss_boxes_unlabelled"] == 0
        assert not any(p.grad.any() for p in net.boxes.head.decoder.parameters())


@pytest.mark.parametrize(
    "labels", [{"occupancy": [None]}, {"lanes": []}, {"gt_boxes": [None], "gt_labels": [None]}, {"lanes": [None]}]
)
def test_a_rank_without_a_tasks_labels_still_joins_every_mean_over_ranks(monkeypatch, labels):
    """Else the others wait for it until they give up."""
    net, counted = model(), []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda value: counted.append(value.shape))
    net.loss(labelled())
    with_labels, counted = list(counted), counted.clear() or counted
    net.loss(labelled(**labels))
    assert with_labels and counted == with_labels


def test_weights_of_tasks_and_frozen_parts():
    torch.manual_seed(0)
    plain, weighted = model(), model(loss_weights={"occupancy": 3.0}, frozen=["img_backbone", "pts_bbox_head.cls"])
    weighted.load_state_dict(plain.state_dict())
    a, b = plain.eval().loss(labelled()), weighted.eval().loss(labelled())
    torch.testing.assert_close(b["loss_occ_ce"], 3 * a["loss_occ_ce"])
    torch.testing.assert_close(b["loss_lane_score"], a["loss_lane_score"])
    assert not any(p.requires_grad for p in weighted.img_backbone.parameters())
    assert all(p.requires_grad for p in weighted.img_neck.parameters())
    assert not any(p.requires_grad for p in weighted.boxes.head.cls_branches.parameters())
    assert all(p.requires_grad for p in weighted.boxes.head.reg_branches.parameters())


def test_what_cannot_work_is_said():
    with pytest.raises(ConfigError, match="'depth' is no task: choose from boxes, occupancy, lanes"):
        model(tasks=("depth",))
    with pytest.raises(ConfigError, match="configure lane_head"):
        toy_rig.build(occupancy_head=VoxelHead(), tasks=("boxes", "lanes"))
    with pytest.raises(ConfigError, match="no parameter's name begins with 'img_bakbone'"):
        model(frozen=["img_bakbone"])
    with pytest.raises(ConfigError, match="samples f0 have no labels to learn boxes, occupancy, lanes from"):
        model().loss(labelled(occupancy=[None], lanes=[None], gt_boxes=[], gt_labels=[]))


def without_batch_statistics(net):
    """As in training, but nothing of a sample depends on the others of its batch, and nothing is random."""
    net.train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return net


def test_a_sample_without_boxes_beside_one_with_them_changes_nothing():
    """Boxes of the labelled one are learned as if it were alone; the other one teaches what it has labels for."""
    net = without_batch_statistics(model(dropout=0.0, grid_mask=False))
    frames, images = toy_rig.scene(2)
    alone = replace(labelled(), occupancy=[None], lanes=[None])
    other = toy_rig.clip(frames, images, 1, (0,))
    other = replace(other, gt_boxes=[None], gt_labels=[None])
    expected = net.loss(alone)
    sum(expected.values()).backward()
    gradients = {name: p.grad.clone() for name, p in net.named_parameters() if p.requires_grad}
    assert gradients["boxes.head.query_embedding.weight"].any() and gradients["bev_map.cams_embeds"].any()
    for batch in (toy_rig.join(alone, other), toy_rig.join(other, alone)):
        net.zero_grad()
        losses = net.loss(batch)
        assert losses.keys() == expected.keys() and losses["loss_cls"] > 0
        for name, value in losses.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
        sum(losses.values()).backward()
        for name, p in net.named_parameters():
            if p.requires_grad:
                bound = 1e-4 * gradients[name].abs().max().item() + 1e-7
                assert (p.grad - gradients[name]).abs().max() <= bound, name
    # and with voxels of the sample that has no boxes
    voxels = replace(other, occupancy=labelled().occupancy)
    losses = net.loss(toy_rig.join(alone, voxels))
    torch.testing.assert_close(losses["loss_bbox"], expected["loss_bbox"], rtol=1e-5, atol=1e-6)
    assert losses["loss_occ_ce"] > 0


BOX_PARTS = ("pts_bbox_head.cls_branches.", "pts_bbox_head.reg_branches.", "pts_bbox_head.query_embedding.")
BOX_PARTS += ("pts_bbox_head.transformer.decoder.", "pts_bbox_head.transformer.reference_points.")
BOX_PARTS += ("bev_proposals.", "hybrid_queries.")


@pytest.mark.parametrize("frozen", [BOX_PARTS, (*BOX_PARTS, "img_backbone.", "img_neck."), BOX_PARTS[:3]])
def test_frozen_box_parts_and_a_batch_without_boxes(frozen):
    net = model(frozen=frozen)
    learning = {name for name, p in net.boxes.named_parameters() if p.requires_grad}
    assert bool(learning) == (frozen == BOX_PARTS[:3])
    losses = net.loss(labelled(gt_boxes=[None], gt_labels=[None]))
    assert losses["loss_boxes_unlabelled"] == 0 and losses["loss_occ_ce"] > 0
    sum(losses.values()).backward()
    assert not [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None]
    assert all(p.grad is None for p in net.parameters() if not p.requires_grad)


def test_asking_for_one_task_runs_and_changes_nothing_else():
    net, ran = model().eval(), []
    for name in ("boxes", "occupancy_head", "lane_head"):
        getattr(net, name).register_forward_hook(lambda *_, name=name: ran.append(name))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    learning = {name: p.requires_grad for name, p in net.named_parameters()}
    whole = net.predict(labelled())[0][0]
    ran.clear()
    answers, memory = net.predict(labelled(), tasks=("occupancy",))
    assert ran == ["occupancy_head"] and list(memory) == list(net.predict(labelled())[1])
    assert answers[0].boxes is None and answers[0].lanes is None and answers[0].token == "f0"
    np.testing.assert_array_equal(answers[0].occupancy.semantics, whole.occupancy.semantics)
    assert net.tasks == ("boxes", "occupancy", "lanes") and not any(m.training for m in net.modules())
    assert {name: p.requires_grad for name, p in net.named_parameters()} == learning
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    again = net.predict(labelled())[0][0]
    np.testing.assert_array_equal(again.boxes.scores, whole.boxes.scores)
    net.train()
    assert set(net.loss(labelled())) >= {"loss_cls", "loss_occ_ce", "loss_lane_score"}
    with pytest.raises(ConfigError, match="the model answers occupancy, not boxes: choose of these"):
        model(tasks=("occupancy",)).predict(labelled(), tasks=("occupancy", "boxes"))
