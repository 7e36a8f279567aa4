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

from .box_coder import decode_boxes

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

    let_weight adds, where above 0, the cost let_weight * (1 - a * IoU(P', G)) of Waymo's LET-3D metric, whose own
    assignment maximises a * IoU (bev/evaluation/waymo_metrics.py): a prediction that is off in depth alone stays
    cheap, one beside the object does not. let_sensor_m: where the cameras are, in the BEV frame. Augmentation that
    turns or mirrors the BEV frame is not undone: it moves that place by a metre or two. BEVFormer++ reports an
    assignment by LET-IoU without its formula; this one is ours.
    """

    cls_weight: float = 2.0
    bbox_weight: float = 0.75
    beta: float = 1.0
    let_weight: float = 0.0
    let_sensor_m: tuple[float, float, float] = (1.43, 0.0, 2.18)

    def bbox_cost(self, codes: Tensor, gt_codes: Tensor) -> Tensor:
        """[..., Q, n] from codes [..., Q, 10] and [n, 10]."""
        pred, target = torch.broadcast_tensors(codes[..., :, None, :8], gt_codes[:, :8])  # [..., Q, n, 8]
        return F.smooth_l1_loss(pred, target, reduction="none", beta=self.beta).sum(-1) * self.bbox_weight

    def let_cost(self, codes: Tensor, gt_codes: Tensor) -> Tensor:
        """[G, Q, n] from codes [G, Q, 10] and [n, 10], on the CPU; 1 for predictions that are not finite."""
        from ..evaluation.waymo_metrics import TOLERANCE_FRACTION, TOLERANCE_MIN_M, iou_3d

        parts = (
            codes[..., :2],
            codes[..., 2:4].clamp(-6, 6),
            codes[..., 4:5],
            codes[..., 5:6].clamp(-6, 6),
            codes[..., 6:],
        )
        found = decode_boxes(torch.cat(parts, -1))[..., :7].flatten(0, -2)  # [G * Q, 7]
        truth = decode_boxes(gt_codes)[..., :7]  # [n, 7]
        sensor = found.new_tensor(self.let_sensor_m)
        p, g = found[:, :3] - sensor, truth[:, :3] - sensor
        dot, range_m = p @ g.T, g.norm(dim=-1).clamp(min=1e-6)  # [G * Q, n], [n]
        tolerance = (TOLERANCE_FRACTION * range_m).clamp(min=TOLERANCE_MIN_M)
        affinity = (1 - (dot / range_m - range_m).abs() / tolerance).clamp(0, 1)
        along = dot / p.square().sum(-1, keepdim=True).clamp(min=1e-6)
        beside = (g.norm(dim=-1).square() - dot * along).clamp(min=0).sqrt()  # of the truth from the line of sight
        reach = found[:, 3:6].norm(dim=-1)[:, None] + truth[:, 3:6].norm(dim=-1)
        row, column = ((affinity > 0) & (beside < reach / 2)).nonzero(as_tuple=True)  # NaN is neither
        moved = torch.cat([(p[row] * along[row, column, None]) + sensor, found[row, 3:]], 1)
        iou = iou_3d(moved.double().cpu().numpy(), truth[column].double().cpu().numpy())
        worth = torch.zeros(affinity.shape)
        worth[row.cpu(), column.cpu()] = affinity[row, column].cpu() * torch.from_numpy(iou).float()
        return (1 - worth).unflatten(0, codes.shape[:-1])

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
            if self.let_weight > 0:
                total = total + self.let_weight * self.let_cost(codes.float(), gt_codes.float())
            queries = torch.arange(total.shape[1]) if valid is None else valid.cpu().nonzero().flatten()
            for group, cost in enumerate(total[:, queries].numpy()):
                rows, columns = linear_sum_assignment(cost)
                assigned[group, queries[rows]] = torch.from_numpy(columns)
        return assigned.to(logits.device)
