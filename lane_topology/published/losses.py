"""Losses of OpenLane-V2's baselines, of one decoder layer at a time; parity with the released code.

Source: OpenLane-V2, arXiv 2304.10440; DETR, arXiv 2005.12872; generalised IoU, arXiv 1902.09630.

Shapes: B batch, Q queries, A classes, D numbers of a code, n labels of a sample; assigned: B x long [Q].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou, generalized_box_iou_loss

from ...bev.boxes.losses import mean_over_ranks, sigmoid_focal_loss
from ...bev.boxes.matching import UNMATCHED, focal_cost
from ..matching import match


def one_hot_targets(logits: Tensor, labels: Sequence[Tensor], assigned: Sequence[Tensor]) -> Tensor:
    """[B, Q, A] of 0 and 1."""
    target = torch.zeros_like(logits)
    for b, (own, to) in enumerate(zip(labels, assigned)):
        rows = (to != UNMATCHED).nonzero().flatten()
        target[b, rows, own[to[rows]]] = 1
    return target


def matched(values: Tensor, labels: Sequence[Tensor], assigned: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Predictions [P, D] of all positives of a batch [B, Q, D], and their labels [P, D]."""
    pairs = [(v[to != UNMATCHED], own[to[to != UNMATCHED]]) for v, own, to in zip(values, labels, assigned)]
    ours, theirs = zip(*pairs)
    return torch.cat(ours), torch.cat(theirs)


def classification_loss(
    logits: Tensor, labels: Sequence[Tensor], assigned: Sequence[Tensor], over_ranks: bool
) -> Tensor:
    """Focal loss per positive; ``over_ranks``: the number of positives is the mean over all processes."""
    target = one_hot_targets(logits, labels, assigned)
    count = mean_over_ranks(target.sum()) if over_ranks else target.sum()
    return sigmoid_focal_loss(logits, target).sum() / count.clamp(min=1)


def match_lanes(
    logits: Tensor, codes: Tensor, gt_codes: Sequence[Tensor], cls_weight: float, reg_weight: float, where: str
) -> list[Tensor]:
    """Hungarian assignment of lane queries; logits [B, Q, 1], codes and gt_codes [n, D] in metres."""
    return [
        match(
            {
                "classification": cls_weight
                * focal_cost(own, torch.zeros(len(gt), dtype=torch.long, device=gt.device)),
                "point": reg_weight * torch.cdist(code.detach().float(), gt.float(), p=1),
            },
            f"{where}, sample {b}",
        )
        for b, (own, code, gt) in enumerate(zip(logits, codes, gt_codes))
    ]


def lane_losses(
    logits: Tensor, codes: Tensor, gt_codes: Sequence[Tensor], assigned: Sequence[Tensor], code_weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Unweighted focal and L1 loss, the latter summed over the D numbers of a code, per positive."""
    zeros = [gt.new_zeros(len(gt), dtype=torch.long) for gt in gt_codes]
    ours, theirs = matched(codes, gt_codes, assigned)
    count = mean_over_ranks(torch.tensor(float(len(ours)), device=codes.device)).clamp(min=1)
    away = ((ours - theirs).abs() * code_weights).sum() / count
    return classification_loss(logits, zeros, assigned, over_ranks=False), away + codes.sum() * 0.0


def match_boxes(
    logits: Tensor,
    boxes: Tensor,
    gt_boxes: Sequence[Tensor],
    gt_labels: Sequence[Tensor],
    sizes: Sequence[Tensor],
    weights: tuple[float, float, float],
    where: str,
) -> list[Tensor]:
    """Assignment of box queries: boxes [B, Q, 4] normalised cxcywh; gt_boxes [n, 4] xyxy px; sizes: [4] of each image
    (width, height, width, height) px; weights of classification, L1 and GIoU.
    """
    found = []
    for b, (own, code, gt, labels, size) in enumerate(zip(logits, boxes.detach().float(), gt_boxes, gt_labels, sizes)):
        gt = gt.float()
        costs = {
            "classification": weights[0] * focal_cost(own, labels),
            "box": weights[1] * torch.cdist(code, box_convert(gt / size, "xyxy", "cxcywh"), p=1),
            "overlap": -weights[2] * generalized_box_iou(box_convert(code, "cxcywh", "xyxy") * size, gt),
        }
        found.append(match(costs, f"{where}, sample {b}"))
    return found


def box_losses(
    logits: Tensor,
    boxes: Tensor,
    gt_boxes: Sequence[Tensor],
    gt_labels: Sequence[Tensor],
    sizes: Sequence[Tensor],
    assigned: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Unweighted focal, L1 (normalised cxcywh, summed) and GIoU loss per positive; arguments as ``match_boxes``."""
    cls = classification_loss(logits, gt_labels, assigned, over_ranks=True)
    scale = [size.expand(len(gt), 4) for gt, size in zip(gt_boxes, sizes)]
    ours, theirs = matched(boxes, gt_boxes, assigned)
    _, size = matched(boxes, scale, assigned)
    count = mean_over_ranks(torch.tensor(float(len(ours)), device=boxes.device)).clamp(min=1)
    away = (ours - box_convert(theirs / size, "xyxy", "cxcywh")).abs().sum() / count
    overlap = generalized_box_iou_loss(box_convert(ours, "cxcywh", "xyxy") * size, theirs, reduction="sum") / count
    keep = boxes.sum() * 0.0
    return cls, away + keep, overlap + keep


def edge_targets(
    adjacency: Sequence[Tensor], rows: Sequence[Tensor], columns: Sequence[Tensor], shape: tuple[int, int]
) -> Tensor:
    """[B, n, m] of 0 and 1: the edge of the labels to which a pair of queries is assigned; none for the others."""
    target = torch.zeros(len(adjacency), *shape, device=rows[0].device)
    for b, (edges, row, column) in enumerate(zip(adjacency, rows, columns)):
        i, j = ((to != UNMATCHED).nonzero().flatten() for to in (row, column))
        target[b, i[:, None], j] = edges.to(target)[row[i][:, None], column[j]]
    return target


def edge_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Focal loss of edges, mean over all pairs of all samples (upstream writes an edge as class 0 of one class)."""
    return sigmoid_focal_loss(logits, target).mean().nan_to_num()
