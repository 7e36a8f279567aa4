"""Voxel losses against their definitions, written out slowly."""

import math

import numpy as np
import pytest
import torch

from drivestack.occupancy import losses


@pytest.fixture
def voxels():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 4, generator=generator, dtype=torch.float64)
    return logits, torch.randint(0, 3, (40,), generator=generator)  # class 3 never occurs


def test_lovasz_is_the_extension_of_one_minus_iou(voxels):
    logits, truth = voxels
    probabilities = logits.softmax(-1)
    expected = []
    for c in range(3):
        errors = np.abs((truth == c).numpy() - probabilities[:, c].numpy())
        order = np.argsort(-errors, kind="stable")
        is_class = (truth == c).numpy()[order]
        total, before = 0.0, 0.0
        for k in range(1, 41):  # the k worst voxels are wrong
            wrong = is_class[:k]
            iou = (is_class.sum() - wrong.sum()) / (is_class.sum() + (~wrong).sum())
            total += errors[order][k - 1] * ((1 - iou) - before)
            before = 1 - iou
        expected.append(total)
    torch.testing.assert_close(losses.lovasz_softmax(probabilities, truth), torch.tensor(np.mean(expected)))


def test_a_perfect_answer_costs_nothing(voxels):
    truth = voxels[1]
    perfect = torch.nn.functional.one_hot(truth, 4).double()
    assert losses.lovasz_softmax(perfect, truth) == pytest.approx(0, abs=1e-9)
    assert losses.scene_class_affinity(perfect, truth) == pytest.approx(0, abs=1e-5)
    assert losses.geometric_affinity(perfect, truth, free=2) == pytest.approx(0, abs=1e-5)


def test_affinity_is_precision_recall_and_specificity(voxels):
    logits, truth = voxels
    p = 1 - logits.softmax(-1)[:, 2]
    occupied = truth != 2
    hit = p[occupied].sum()
    precision, recall, specificity = hit / p.sum(), hit / occupied.sum(), (1 - p)[~occupied].sum() / (~occupied).sum()
    expected = -(precision.log() + recall.log() + specificity.log())
    torch.testing.assert_close(losses.geometric_affinity(logits.softmax(-1), truth, free=2), expected)


def test_class_weights_are_one_over_log_frequency():
    weights = losses.log_frequency_weights()
    assert weights.shape == (18,)
    assert weights[17] == pytest.approx(1 / math.log(1892500630.001))
    assert weights[2] == weights.max()


@pytest.mark.parametrize("name", ["lovasz_softmax", "scene_class_affinity"])
def test_no_voxels_are_a_zero_with_a_gradient(name):
    logits = torch.zeros(0, 4, requires_grad=True)
    none = torch.zeros(0, dtype=torch.long)
    value = getattr(losses, name)(logits.softmax(-1), none) + losses.cross_entropy(logits, none)
    (value + losses.geometric_affinity(logits.softmax(-1), none, 3)).backward()
    assert value == 0 and logits.grad is not None


def test_gradients_are_finite_at_extremes():
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    truth = torch.tensor([1, 0])
    p = logits.softmax(-1)
    total = losses.lovasz_softmax(p, truth) + losses.scene_class_affinity(p, truth)
    (total + losses.geometric_affinity(p, truth, 1)).backward()
    assert total.isfinite() and logits.grad.isfinite().all()
