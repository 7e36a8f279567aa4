"""Cross-entropy with class weights for mmseg's pixel heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class WeightedCrossEntropy(nn.Module):
    """Weighted mean of the pixels' cross-entropy, each pixel with the weight of its class.

    mmseg's own loss takes class weights too, but indexes them with the label of ignored pixels and fails
    (mmseg 1.2.2, models/losses/cross_entropy_loss.py).

    class_weights: one for each class; loss_weight: of the whole term.
    """

    loss_name = "loss_ce"

    def __init__(self, class_weights: Sequence[float], loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        self.class_weights: Tensor
        self.register_buffer("class_weights", torch.tensor(class_weights, dtype=torch.float32), persistent=False)

    def forward(
        self, logits: Tensor, labels: Tensor, weight: Tensor | None = None, ignore_index: int = 255, **_: object
    ) -> Tensor:
        """Of logits [B, C, H, W] and class indices [B, H, W]; weight: [B, H, W], one more weight of each pixel."""
        weights = self.class_weights.to(logits.dtype)
        pixels = functional.cross_entropy(logits, labels, weights, ignore_index=ignore_index, reduction="none")
        known = labels != ignore_index
        total = (weights[labels.where(known, 0)] * known).sum().clamp_min(torch.finfo(logits.dtype).tiny)
        return self.loss_weight * (pixels if weight is None else pixels * weight).sum() / total
