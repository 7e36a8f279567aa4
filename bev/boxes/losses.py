"""Loss terms shared by the detection heads, element by element; the heads weigh and normalise them.

Shapes: any; what a function does to them is in its docstring. All are differentiable and finite for finite input.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of a tensor over all ranks of the default process group, or the tensor itself in one process.

    Loss normalisers (numbers of positives) are averaged this way, so that the gradient averaged by DDP is the
    gradient of the loss over the joint batch.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    mean = value.detach().clone()
    torch.distributed.all_reduce(mean)
    return mean / torch.distributed.get_world_size()


def sigmoid_focal_loss(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss (Lin et al., ICCV 2017) of each logit; targets in {0, 1} of the same shape."""
    p = logits.sigmoid()
    miss = (1 - p) * targets + p * (1 - targets)  # distance of the probability from its target
    balance = alpha * targets + (1 - alpha) * (1 - targets)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return balance * miss.pow(gamma) * cross_entropy


def gaussian_focal_loss(logits: Tensor, heat: Tensor, gamma: float = 2.0, beta: float = 4.0) -> Tensor:
    """Focal loss on centre heat maps (Zhou et al., "Objects as Points", eq. 1), element by element.

    heat in [0, 1] is 1 at object centres and falls off around them; cells near a centre are penalised less by
    (1 - heat) ** beta.
    """
    p = logits.sigmoid()
    positive = -F.logsigmoid(logits) * (1 - p).pow(gamma)
    negative = -F.logsigmoid(-logits) * p.pow(gamma) * (1 - heat).pow(beta)
    return torch.where(heat >= 1, positive, negative)


def ltrb_giou_loss(pred: Tensor, target: Tensor) -> Tensor:
    """1 - GIoU of boxes given as distances (left, top, right, bottom) [m, 4] from a common point; returns [m].

    The IoU inside carries FCOS's smoothing (overlap + 1) / (union + 1), the enclosing term does not.
    """
    overlap_size = torch.minimum(pred[:, :2], target[:, :2]) + torch.minimum(pred[:, 2:], target[:, 2:])  # [m, 2]
    hull_size = torch.maximum(pred[:, :2], target[:, :2]) + torch.maximum(pred[:, 2:], target[:, 2:])
    overlap, hull = overlap_size.prod(-1), hull_size.prod(-1)  # [m]
    union = (pred[:, :2] + pred[:, 2:]).prod(-1) + (target[:, :2] + target[:, 2:]).prod(-1) - overlap
    giou = (overlap + 1) / (union + 1) - (hull - union) / hull.clamp(min=torch.finfo(hull.dtype).eps)
    return 1 - giou
