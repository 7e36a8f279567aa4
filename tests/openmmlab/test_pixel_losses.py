"""Cross-entropy with class weights: mean over the weights, ignored pixels left out."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from drivestack.backbone.pretrain.segmentation.heads import upernet
from drivestack.backbone.pretrain.segmentation.losses import WeightedCrossEntropy
from drivestack.core.errors import ConfigError


def test_it_is_the_mean_weighted_by_class_without_ignored_pixels() -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, generator=rng, requires_grad=True)
    labels = torch.randint(0, 3, (2, 4, 5), generator=rng)
    labels[0, 0] = 255
    weights = [1.0, 4.0, 0.5]
    loss = WeightedCrossEntropy(weights, loss_weight=0.4)(logits, labels, ignore_index=255)
    expected = 0.4 * functional.cross_entropy(logits, labels, torch.tensor(weights), ignore_index=255)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    assert logits.grad is not None and not logits.grad[0, :, 0].any() and logits.grad[1].any()


def test_nothing_but_ignored_pixels_costs_nothing() -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = WeightedCrossEntropy([1.0, 1, 1])(logits, torch.full((1, 2, 2), 255), ignore_index=255)
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and not logits.grad.any()


def test_weights_must_fit_the_classes() -> None:
    with pytest.raises(ConfigError, match="2 weights for 3 classes; give one for each"):
        upernet("T", 3, class_weights=(1.0, 2.0))
