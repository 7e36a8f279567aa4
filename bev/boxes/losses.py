"""Loss terms shared by the detection heads, element by element; the heads weigh and normalise them.

Shapes: any; what a function does to them is in its docstring. All are differentiable and finite for finite input.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
    """Focal loss (Lin et al., ICCV 2017) of each logit; targets in [0, 1] of the same shape.

    For targets between 0 and 1 it is the quality focal loss (arXiv 2006.04388, eq. 2), smallest where the probability
    is the target.
    """
    p = logits.sigmoid()
    miss = (targets - p).abs()
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


def smoothed(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Targets [..., num_classes] of labels [...]: 1 - smoothing at the label, and smoothing spread over all classes
    (Szegedy et al., arXiv 1512.00567, section 7).
    """
    return F.one_hot(labels, num_classes) * (1 - smoothing) + smoothing / num_classes


class LearnedLossWeights(nn.Module):
    """Weights of loss terms that are learned with the model (Kendall et al., arXiv 1705.07115, up to constant factors).

    Each group g of terms has a log variance s_g, from 0: its terms count exp(-s_g) times, and s_g itself is added, so
    that no weight falls to zero for nothing: at the optimum exp(s_g) is the group's loss.
    """

    def __init__(self, groups: Iterable[str]) -> None:
        super().__init__()
        self.log_variance = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in groups})

    def forward(self, losses: Mapping[str, Tensor], group_of: Mapping[str, str]) -> dict[str, Tensor]:
        """The terms times their groups' weights, and ``loss_weight_GROUP``; groups without a term learn nothing.

        group_of: name of a term -> its group.
        """
        weighted = {name: value * (-self.log_variance[group_of[name]]).exp() for name, value in losses.items()}
        used = set(group_of[name] for name in losses)
        for group, value in self.log_variance.items():
            weighted[f"loss_weight_{group}"] = value if group in used else value * 0.0
        return weighted
