"""What keeps the tasks on one map from hurting each other: gradients measured, adapters, frozen parts that stay."""

import copy

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from torch import nn

from drivestack.bev.map.adapter import BevAdapter
from drivestack.core.errors import ConfigError
from support import toy_rig
from support.three_tasks import labelled, model


def step(net, measures):
    """Losses and gradients of one pass from the same state of the random numbers."""
    torch.manual_seed(3)
    net.zero_grad()
    net.measures_gradients = measures
    losses = net.train().loss(labelled())
    sum(losses.values()).backward()
    return losses, {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def test_measured_gradients_are_those_of_each_task_and_change_no_bit():
    net = model(loss_weights={"occupancy": 3.0})
    state = copy.deepcopy(net.state_dict())
    plain, plain_gradients = step(net, False)
    assert net.gradients is None
    net.load_state_dict(state)
    watched, gradients = step(net, True)
    assert all(torch.equal(plain[name], watched[name]) for name in plain)
    assert all(torch.equal(plain_gradients[name], gradients[name]) for name in gradients)

    # the same from a pass per task, the map cut off from the encoder
    net.load_state_dict(state)
    torch.manual_seed(3)
    batch = labelled()
    levels, features = net.encode_clip(batch)
    expected = {}
    for task in net.tasks:
        head = net.task_head(task)
        loss = sum(head.loss(head(features, levels, batch), batch).values()) * (3.0 if task == "occupancy" else 1.0)
        expected[task] = torch.autograd.grad(loss, features.bev, retain_graph=True)[0].flatten()
    assert set(net.gradients) == {
        *(f"norm_{task}" for task in net.tasks),
        "cosine_boxes_occupancy", "cosine_boxes_lanes", "cosine_occupancy_lanes",
    }  # fmt: skip
    for task, gradient in expected.items():
        assert net.gradients[f"norm_{task}"] == pytest.approx(gradient.norm().item(), rel=1e-4) != 0
    cosine = torch.cosine_similarity(expected["boxes"], expected["occupancy"], dim=0).item()
    assert net.gradients["cosine_boxes_occupancy"] == pytest.approx(cosine, abs=1e-4)


def test_a_task_without_labels_has_no_gradient_and_no_cosine():
    net = model()
    net.measures_gradients = True
    net.loss(labelled(occupancy=[None]))
    assert net.gradients["norm_occupancy"] == 0
    assert "cosine_boxes_lanes" in net.gradients and not any("cosine" in n and "occ" in n for n in net.gradients)


def test_no_gradient_reaches_a_frozen_map():
    net = model(frozen=["img_backbone.", "img_neck.", "pts_bbox_head."], tasks=("occupancy",))
    net.measures_gradients = True
    with pytest.raises(ConfigError, match=r"gradient_log_interval: nothing up to the BEV map learns"):
        net.loss(labelled())


def test_adapters_start_as_nothing_and_learn():
    plain, adapted = model(), model(adapters=True)
    assert list(adapted.adapters) == ["boxes", "occupancy", "lanes"]
    lacking = adapted.load_state_dict(plain.state_dict(), strict=False)
    assert all(name.startswith("adapters.") for name in lacking.missing_keys) and not lacking.unexpected_keys
    assert set(plain.state_dict()) == {name for name in adapted.state_dict() if not name.startswith("adapters.")}
    before, after = step(plain, False)[0], step(adapted, False)[0]
    assert all(torch.equal(before[name], after[name]) for name in before)
    for task, adapter in adapted.adapters.items():
        assert all(block[-1].weight.grad.any() for block in adapter.blocks), task
    answers = [net.eval().predict(labelled())[0][0] for net in (plain, adapted)]
    assert (answers[0].boxes.scores == answers[1].boxes.scores).all()
    optimizer = torch.optim.SGD(adapted.adapters.parameters(), 0.1)
    optimizer.step()
    assert any(not torch.equal(before[name], value) for name, value in step(adapted, False)[0].items())


def test_an_adapter_is_of_its_task_alone():
    net = model(adapters=["lanes"], tasks=("occupancy",))
    assert list(net.adapters) == ["lanes"] and not any(p.requires_grad for p in net.adapters.parameters())
    with pytest.raises(ConfigError, match="'depth' is no task"):
        model(adapters=["depth"])
    with pytest.raises(ConfigError, match="task 'lanes' has no head: configure lane_head"):
        toy_rig.build(adapters=["lanes"])


def test_an_adapter_is_two_residual_convolutions():
    torch.manual_seed(0)
    adapter, x = BevAdapter(3), torch.randn(2, 3, 5, 6)
    assert torch.equal(adapter(x), x)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter)
    expected = x
    for block in adapter.blocks:
        deep = nn.functional.conv2d(expected, block[0].weight, block[0].bias, padding=1, groups=3).relu()
        expected = expected + torch.einsum("oc,bchw->bohw", block[2].weight[:, :, 0, 0], deep)
        expected = expected + block[2].bias[:, None, None]
    torch.testing.assert_close(adapter(x), expected)
    assert sum(p.numel() for p in BevAdapter(64).parameters()) == 9600


class NormedHead(nn.Module):
    """A voxel head whose trunk has BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(32, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 1))

    def forward(self, features, levels, batch):
        return self.trunk(features.bev)

    def loss(self, outputs, batch):
        return {"loss_occ": outputs.square().mean()}


def test_frozen_parts_do_not_drift_in_training_and_neither_does_their_average():
    net = toy_rig.build(occupancy_head=NormedHead(), frozen=["occupancy_head."])
    average = ExponentialMovingAverage(net, momentum=0.1)
    frozen = lambda of: {k: v.clone() for k, v in of.state_dict().items() if k.startswith("occupancy_head.")}
    before, averaged = frozen(net), frozen(average.module)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2, weight_decay=0.1)
    for _ in range(3):
        losses = net.train().loss(labelled(lanes=[None]))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        average.update_parameters(net)
    assert not net.occupancy_head.trunk[1].training and net.occupancy_head.training
    assert all(torch.equal(before[name], value) for name, value in frozen(net).items())
    assert all(torch.equal(averaged[name], value) for name, value in frozen(average.module).items())
    learning = toy_rig.build(occupancy_head=NormedHead()).train()
    learning.loss(labelled(lanes=[None]))
    assert learning.occupancy_head.trunk[1].running_mean.any()
