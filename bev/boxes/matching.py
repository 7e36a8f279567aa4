"""One-to-one matching of queries to labelled boxes (DETR), for all groups of a decoder layer at once.

Shapes: B batch, G query groups, Q queries of a group, n labelled boxes of a sample.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

UNMATCHED = -1


def focal_cost(logits: Tensor, labels: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """[..., Q, n] from logits [..., Q, classes] and labels [n]: what it costs to take a prediction for a label."""
    p = logits.float().sigmoid()[..., labels]
    negative = -(1 - p + 1e-12).log() * (1 - alpha) * p.pow(gamma)
    positive = -(p + 1e-12).log() * alpha * (1 - p).pow(gamma)
    return positive - negative


def finite_sum(costs: Mapping[str, Tensor], where: str) -> Tensor:
    """The sum of costs of one shape. Raises FloatingPointError naming the one that is not finite, and ``where``."""
    for term, cost in costs.items():
        if not cost.isfinite().all():
            raise FloatingPointError(
                f"{where}: the {term} cost of the matching is not finite; the predictions or the labels hold NaN or "
                "inf (lower the learning rate, or look at the samples named by the trainer)"
            )
    return functools.reduce(torch.add, costs.values())


@dataclass(frozen=True)
class HungarianMatcher:
    """Cheapest assignment under a focal classification cost plus a (smooth) L1 cost on the first 8 code numbers.

    Costs as in BEVFormer: position, size and heading in the head's code (metres, logs, sine and cosine), velocity
    left out; ``beta`` 0 is plain L1 (v1), 1 smooth L1 (v2).
    """

    cls_weight: float = 2.0
    bbox_weight: float = 0.75
    beta: float = 1.0

    def bbox_cost(self, codes: Tensor, gt_codes: Tensor) -> Tensor:
        """[..., Q, n] from codes [..., Q, 10] and [n, 10]."""
        pred, target = torch.broadcast_tensors(codes[..., :, None, :8], gt_codes[:, :8])  # [..., Q, n, 8]
        return F.smooth_l1_loss(pred, target, reduction="none", beta=self.beta).sum(-1) * self.bbox_weight

    @torch.no_grad()
    def match(
        self,
        logits: Tensor,
        codes: Tensor,
        gt_codes: Tensor,
        gt_labels: Tensor,
        where: str,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Index of the labelled box of each query, -1 for background: long [G, Q] on the device of ``logits``.

        logits [G, Q, classes], codes [G, Q, 10], gt_codes [n, 10], gt_labels [n]; ``valid`` [Q] marks the queries
        that may be matched. Each group is matched for itself. Raises FloatingPointError if a cost is not finite;
        ``where`` (layer, sample) goes into its message.
        """
        assigned = torch.full(logits.shape[:2], UNMATCHED, dtype=torch.long)
        if len(gt_labels):
            costs = {
                "classification": focal_cost(logits, gt_labels) * self.cls_weight,
                "box": self.bbox_cost(codes.float(), gt_codes.float()),
            }
            total = finite_sum(costs, where).cpu()  # [G, Q, n]
            queries = torch.arange(total.shape[1]) if valid is None else valid.cpu().nonzero().flatten()
            for group, cost in enumerate(total[:, queries].numpy()):
                rows, columns = linear_sum_assignment(cost)
                assigned[group, queries[rows]] = torch.from_numpy(columns)
        return assigned.to(logits.device)
