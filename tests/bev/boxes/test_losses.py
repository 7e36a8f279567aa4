"""Loss terms against their definitions, torchvision, and at the ends of the number line."""

import pytest
import torch
from torchvision.ops import generalized_box_iou_loss
from torchvision.ops import sigmoid_focal_loss as torchvision_focal

from drivestack.bev.boxes.losses import gaussian_focal_loss, ltrb_giou_loss, mean_over_ranks, sigmoid_focal_loss


def test_focal_agrees_with_torchvision():
    torch.manual_seed(0)
    logits, targets = torch.randn(50, 4, dtype=torch.float64) * 5, torch.randint(2, (50, 4)).double()
    expected = torchvision_focal(logits, targets, alpha=0.25, gamma=2.0)
    torch.testing.assert_close(sigmoid_focal_loss(logits, targets), expected)


def test_gaussian_focal_on_a_hard_map_is_focal_without_balance():
    torch.manual_seed(0)
    logits, targets = torch.randn(50, dtype=torch.float64), torch.randint(2, (50,)).double()
    p = logits.sigmoid()
    expected = torch.where(targets == 1, -p.log() * (1 - p) ** 2, -(1 - p).log() * p**2)
    torch.testing.assert_close(gaussian_focal_loss(logits, targets), expected)


def test_gaussian_focal_forgives_neighbours():
    loss = gaussian_focal_loss(torch.zeros(3), torch.tensor([0.0, 0.5, 0.9]))
    assert loss[0] > 10 * loss[1] > 100 * loss[2] > 0


@pytest.mark.parametrize("loss", [sigmoid_focal_loss, gaussian_focal_loss])
def test_extreme_logits_stay_finite(loss):
    logits = torch.tensor([-200.0, 200.0, -200.0, 200.0], requires_grad=True)
    value = loss(logits, torch.tensor([0.0, 0.0, 1.0, 1.0]))
    value.sum().backward()
    assert value.isfinite().all() and logits.grad.isfinite().all()


@pytest.mark.parametrize("loss", [sigmoid_focal_loss, gaussian_focal_loss])
def test_gradients(loss):
    torch.manual_seed(0)
    logits = torch.randn(6, dtype=torch.float64, requires_grad=True)
    heat = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: loss(x, heat), logits)


def test_giou_approaches_the_unsmoothed_one_for_large_boxes():
    torch.manual_seed(0)
    pred, target = (
        torch.rand(20, 4, dtype=torch.float64) * 500 + 100,
        torch.rand(20, 4, dtype=torch.float64) * 500 + 100,
    )
    corners = [torch.cat([-d[:, :2], d[:, 2:]], 1) for d in (pred, target)]
    torch.testing.assert_close(ltrb_giou_loss(pred, target), generalized_box_iou_loss(*corners), rtol=0, atol=1e-4)
    assert ltrb_giou_loss(pred, pred).abs().max() < 1e-12


def test_giou_of_boxes_without_area_is_finite():
    pred = torch.zeros(2, 4, requires_grad=True)
    ltrb_giou_loss(pred, torch.tensor([[1.0, 1, 1, 1], [0, 0, 0, 0]])).sum().backward()
    assert pred.grad.isfinite().all()


def test_one_process_is_its_own_mean():
    value = torch.tensor(3.0)
    assert mean_over_ranks(value) is value


def test_normalisers_are_averaged_over_ranks(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.add_(5))  # the other rank has 5
    value = torch.tensor([3.0, 1.0])
    assert mean_over_ranks(value).tolist() == [4.0, 3.0]
    assert value.tolist() == [3.0, 1.0]
