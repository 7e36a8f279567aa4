"""One model with several heads: one encoder pass, any subset of tasks, partial labels, frozen parts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from drivestack.bev.map.resample import resample_bev
from drivestack.core.answers import OccupancyGrid
from drivestack.core.errors import ConfigError
from drivestack.core.labels import LaneTargets, OccupancyTargets
from drivestack.geometry import BevGrid
from support import toy_rig

EGO_GRID = BevGrid(-10.0, -10.0, 10.0, 10.0, num_x=4, num_y=4)


class VoxelHead(nn.Module):
    """Three classes in one layer of voxels."""

    def __init__(self) -> None:
        super().__init__()
        self.classify = nn.Conv2d(32, 3, 1)

    def forward(self, features, levels, batch):
        return self.classify(resample_bev(features, EGO_GRID, batch.ego_from_bev))

    def loss(self, outputs, batch):
        total = outputs.sum() * 0.0
        for logits, target in zip(outputs, batch.occupancy):
            if target is not None:
                total = total + nn.functional.cross_entropy(logits[None], target.semantics[None, ..., 0].long())
        return {"loss_occ_ce": total}

    def predict(self, outputs, batch):
        classes = outputs.argmax(1)[..., None].byte().numpy()
        return [OccupancyGrid(token, grid) for token, grid in zip(batch.tokens, classes)]


class LaneHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(32, 1)

    def forward(self, features, levels, batch):
        return self.score(features.bev.mean((2, 3)))

    def loss(self, outputs, batch):
        seen = [o.sum() ** 2 for o, t in zip(outputs, batch.lanes) if t is not None]
        return {"loss_lane_score": sum(seen, outputs.sum() * 0.0)}

    def predict(self, outputs, batch):
        return [None] * len(outputs)


def model(**more):
    return toy_rig.build(occupancy_head=VoxelHead(), lane_head=LaneHead(), **more)


def labelled(**labels):
    frames, images = toy_rig.scene(1)
    voxels = OccupancyTargets(torch.ones(4, 4, 1, dtype=torch.uint8), *torch.ones(2, 4, 4, 1, dtype=torch.bool))
    none = torch.zeros(0, 0, dtype=torch.bool)
    lanes = LaneTargets([], torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), none, none)
    return replace(toy_rig.clip(frames, images, 0, (0,)), **({"occupancy": [voxels], "lanes": [lanes]} | labels))


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
