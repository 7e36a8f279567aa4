"""What lane queries learn from labelled lanes: one-to-one matching, losses of score and curve, and of edges.

Source: DETR, arXiv 2005.12872; the one-to-many group: MapTRv2, arXiv 2308.05736, H-DETR, arXiv 2207.13080.

Shapes: B batch, Q lane queries, E elements, K control points, n labelled lanes of one sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..bev.boxes.losses import mean_over_ranks, sigmoid_focal_loss
from ..bev.boxes.matching import UNMATCHED, focal_cost
from ..core.labels import LaneTargets
from .curves import sample_curves
from .matching import match


class LaneLosses:
    """num_points: at which curves are compared; weights: of ``cls`` and ``points`` in the matching."""

    def __init__(self, num_points: int, weights: Mapping[str, float]) -> None:
        self.num_points, self.weights = num_points, weights

    @torch.no_grad()
    def gaps(self, curves: Tensor, labels: Tensor) -> Tensor:
        """[Q, n]: mean distance per axis between the points of curves and labels, metres."""
        ours, theirs = (sample_curves(c.detach().float(), self.num_points).flatten(1) for c in (curves, labels))
        return torch.cdist(ours, theirs, p=1) / ours.shape[1]

    def assign(
        self, logits: Tensor, curves: Tensor, labels: Sequence[Tensor | None], where: str
    ) -> list[Tensor | None]:
        """Label of each query, B x [Q], None for a sample without labels; logits [B, Q], curves [B, Q, K, 3].

        Raises FloatingPointError, with ``where``, if the matching meets numbers that are not finite.
        """
        return [
            None if own is None else self._match(logits[b], curves[b], own, f"{where}, sample {b}")
            for b, own in enumerate(labels)
        ]

    def _match(self, logits: Tensor, curves: Tensor, labels: Tensor, where: str) -> Tensor:
        zeros = torch.zeros(len(labels), dtype=torch.long, device=logits.device)
        costs = {
            "classification": focal_cost(logits[:, None], zeros) * self.weights["cls"],
            "point": self.gaps(curves, labels) * 3 * self.weights["points"],
        }
        return match(costs, where)

    def terms(
        self, logits: Tensor, curves: Tensor, labels: Sequence[Tensor | None], assigned: Sequence[Tensor | None]
    ) -> dict[str, Tensor]:
        """``cls``, ``points`` and ``control`` of one layer, for the labels [n, K, 3] that ``assign`` found."""
        known = torch.tensor([own is not None for own in labels], device=logits.device)
        positive = torch.zeros_like(logits)
        target = torch.zeros_like(curves)
        for b, (own, to) in enumerate(zip(labels, assigned)):
            if own is not None and to is not None and len(own):
                found = (to != UNMATCHED).nonzero().flatten()
                positive[b, found] = 1
                target[b, found] = own[to[found]]
        count = mean_over_ranks(positive.sum()).clamp(min=1)
        away = (curves - target) * positive[..., None, None]
        apart = sample_curves(away, self.num_points)  # curves are linear in their control points
        return {
            "cls": (sigmoid_focal_loss(logits, positive) * known[:, None]).sum() / count,
            "points": apart.abs().sum(-1).mean(-1).sum() / count,
            "control": away.abs().sum(-1).mean(-1).sum() / count,
        }

    def stands_for(self, assigned: Tensor, curves: Tensor, labels: Tensor, near_m: float) -> Tensor:
        """[Q]: the label that a query is matched to or, without one, lies within ``near_m`` of; UNMATCHED for none."""
        if not len(labels):
            return assigned
        gap, nearest = self.gaps(curves, labels).min(1)
        return torch.where((assigned == UNMATCHED) & (gap < near_m), nearest, assigned)


def edge_terms(
    lane_lane: Tensor, lane_element: Tensor, targets: Sequence[LaneTargets | None], stands_for: Sequence[Tensor | None]
) -> dict[str, Tensor]:
    """Focal losses ``topology`` and ``element_relation`` of the edges between queries that stand for a label, from
    logits [B, Q, Q] and [B, Q, E].

    Other queries have no edges to learn: neither a wrong lane's nor a duplicate's are counted by the metric.
    """
    between, governs = torch.zeros_like(lane_lane), torch.zeros_like(lane_element)
    between_counts, governs_counts = torch.zeros_like(between), torch.zeros_like(governs)
    for b, (own, to) in enumerate(zip(targets, stands_for)):
        if own is None or to is None:
            continue
        rows = (to != UNMATCHED).nonzero().flatten()
        lane = to[rows]
        between[b, rows[:, None], rows] = own.lane_lane[lane[:, None], lane].to(between)
        between_counts[b, rows[:, None], rows] = 1
        k = own.lane_element.shape[1]
        governs[b, rows, :k] = own.lane_element[lane].to(governs)
        governs_counts[b, rows, :k] = 1
    return {
        name: (sigmoid_focal_loss(logits, truth, alpha=0.5) * counts).sum()
        / mean_over_ranks((truth * counts).sum()).clamp(min=1)
        for name, logits, truth, counts in (
            ("topology", lane_lane, between, between_counts),
            ("element_relation", lane_element, governs, governs_counts),
        )
    }


def repeated(labels: Sequence[Tensor | None], repeats: int, num_queries: int) -> list[Tensor | None]:
    """Every label [n, K, 3] ``repeats`` times, fewer where more than half of the queries would stand for a lane."""
    return [
        None if own is None else own.repeat(max(1, min(repeats, num_queries // (2 * max(len(own), 1)))), 1, 1)
        for own in labels
    ]
