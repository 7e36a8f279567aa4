"""One-to-one matching of predictions to labels (DETR) under a cost that the caller states.

Shapes: Q predictions, n labels of one sample.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

UNMATCHED = -1


@torch.no_grad()
def focal_cost(logits: Tensor, labels: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """[Q, n] from logits [Q, classes] and labels [n]: the cost of the label's class for each prediction."""
    p = logits.float().sigmoid()[:, labels]
    negative = -(1 - p + 1e-12).log() * (1 - alpha) * p.pow(gamma)
    positive = -(p + 1e-12).log() * alpha * (1 - p).pow(gamma)
    return positive - negative


@torch.no_grad()
def match(costs: Mapping[str, Tensor], where: str) -> Tensor:
    """Label of each prediction, long [Q], UNMATCHED where it has none, at the least sum of all ``costs`` [Q, n].

    Raises FloatingPointError if a cost is not finite; ``where`` (task, layer, sample) goes into its message.
    """
    for term, cost in costs.items():
        if not cost.isfinite().all():
            raise FloatingPointError(
                f"{where}: the {term} cost of the matching is not finite; the predictions or the labels hold NaN or "
                "inf (lower the learning rate, or look at the samples named by the trainer)"
            )
    total = sum(costs.values())
    assigned = torch.full((total.shape[0],), UNMATCHED, dtype=torch.long)
    if total.shape[1]:
        rows, columns = linear_sum_assignment(total.cpu().numpy())
        assigned[rows] = torch.from_numpy(columns)
    return assigned.to(total.device)
