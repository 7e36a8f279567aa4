"""One-to-one matching of predictions to labels (DETR) under a cost that the caller states.

Shapes: Q predictions, n labels of one sample.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..bev.boxes.matching import UNMATCHED, finite_sum


@torch.no_grad()
def match(costs: Mapping[str, Tensor], where: str) -> Tensor:
    """Label of each prediction, long [Q], UNMATCHED where it has none, at the least sum of all ``costs`` [Q, n].

    Raises FloatingPointError if a cost is not finite; ``where`` (task, layer, sample) goes into its message.
    """
    total = finite_sum(costs, where)
    assigned = torch.full((total.shape[0],), UNMATCHED, dtype=torch.long)
    if total.shape[1]:
        rows, columns = linear_sum_assignment(total.cpu().numpy())
        assigned[rows] = torch.from_numpy(columns)
    return assigned.to(total.device)
