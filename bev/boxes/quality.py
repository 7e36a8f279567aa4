"""How good a box is, as its own query says: near the object's centre, and facing its way.

Two numbers per query of the last decoder layer (Sparse4Dv3, arXiv 2311.11722): centerness, exp(-error of the centre in
metres), and yawness, whether the heading is right within 90 degrees. Both learn by binary cross entropy on the queries
that are matched with an object (the paper has a focal loss for yawness).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CENTERNESS, YAWNESS = 0, 1
NUM_QUALITIES = 2


def quality_targets(codes: Tensor, gt_codes: Tensor) -> Tensor:
    """Centerness and yawness [P, 2] of codes [P, 10] (box_coder) that stand for labelled ones [P, 10]."""
    with torch.no_grad():
        error_m = (codes[:, [0, 1, 4]] - gt_codes[:, [0, 1, 4]]).norm(dim=1)
        facing = (codes[:, 6:8] * gt_codes[:, 6:8]).sum(1) > 0  # the cosine of the angle between the headings
        return torch.stack([(-error_m).exp(), facing.to(error_m)], 1)


def quality_loss(logits: Tensor, codes: Tensor, gt_codes: Tensor) -> Tensor:
    """Binary cross entropy [P] of both numbers [P, 2], added up."""
    return F.binary_cross_entropy_with_logits(logits, quality_targets(codes, gt_codes), reduction="none").sum(1)
