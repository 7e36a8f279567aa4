"""Topology: which lane connects to which, and which traffic element governs which lane.

Sources: TopoMLP, arXiv 2310.06753 (the lane's position beside its feature); TopoLogic, arXiv 2405.14747 (the distance
from one lane's end to the other's start, through a learned falling curve, added to the score of the features).

Shapes: B batch, Q lanes, E elements, C channels, H hidden channels, K control points.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PairScore(nn.Module):
    """A logit for each pair: the first layer on (row, column) concatenated, which is a sum of two, then one more."""

    def __init__(self, channels: int, hidden: int, extra: int = 0, prior_logit: float = -2.0) -> None:
        super().__init__()
        self.row, self.column = nn.Linear(channels, hidden), nn.Linear(channels, hidden)
        self.extra = nn.Linear(extra, hidden) if extra else None
        self.inner, self.outer = nn.Linear(hidden, hidden), nn.Linear(hidden, 1)
        nn.init.constant_(self.outer.bias, prior_logit)

    def forward(self, rows: Tensor, columns: Tensor, extra: Tensor | None = None) -> Tensor:
        """[B, n, m] from rows [B, n, C], columns [B, m, C] and features of each pair [B, n, m, extra]."""
        hidden = self.row(rows)[:, :, None] + self.column(columns)[:, None]
        if extra is not None:
            assert self.extra is not None, "made without extra"
            hidden = hidden + self.extra(extra.to(hidden.dtype))
        return self.outer(F.relu(self.inner(F.relu(hidden))))[..., 0].float()


def joint_geometry(controls: Tensor) -> tuple[Tensor, Tensor]:
    """How the end of lane i meets the start of lane j: distances [B, Q, Q] in metres, and features [B, Q, Q, 6].

    Features: nearness at three scales, the way to go along and across the heading at the end (tanh of tens of metres),
    and the cosine of the turn.
    """
    start, end = controls[..., 0, :2], controls[..., -1, :2]  # [B, Q, 2]
    leaving = F.normalize(end - controls[..., -2, :2], dim=-1, eps=1e-3)
    entering = F.normalize(controls[..., 1, :2] - start, dim=-1, eps=1e-3)
    gap = start[:, None] - end[:, :, None]  # [B, i, j, 2]
    distance = gap.norm(dim=-1)
    heading = leaving[:, :, None]
    along = (gap * heading).sum(-1)
    across = gap[..., 1] * heading[..., 0] - gap[..., 0] * heading[..., 1]
    turn = (heading * entering[:, None]).sum(-1)
    near = [torch.exp(-distance / scale) for scale in (1.0, 3.0, 10.0)]
    return distance, torch.stack([*near, torch.tanh(along / 10), torch.tanh(across / 10), turn], -1)


class LaneRelation(nn.Module):
    """Logits of "lane i leads into lane j": features and positions through an MLP, plus a learned curve of the gap."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.pairs = PairScore(channels, hidden, extra=6, prior_logit=-4.0)
        # height, log reach in metres and log steepness of the curve: touching lanes begin near even odds
        self.prior = nn.Parameter(torch.tensor([4.0, 1.0, 0.0]))

    def forward(self, lanes: Tensor, controls: Tensor) -> Tensor:
        """[B, Q, Q] from lane embeddings [B, Q, C] (feature and position) and control points [B, Q, K, 3].

        The curves are detached: the topology loss must not change the geometry of the lanes.
        """
        distance, geometry = joint_geometry(controls.detach())
        height, reach, steepness = self.prior.float().unbind()
        # the bound keeps the power's gradient finite at distance 0
        ratio = (distance / reach.exp()).clamp(min=1e-4)
        return self.pairs(lanes, lanes, geometry) + height * torch.exp(-(ratio ** steepness.exp()))


class LaneElementRelation(nn.Module):
    """Logits of "element j governs lane i" from both features, the lane's position, and the element's box and kind."""

    def __init__(self, channels: int, element_channels: int, num_attributes: int, hidden: int) -> None:
        super().__init__()
        self.element = nn.Linear(element_channels, channels)
        self.kind = nn.Linear(num_attributes, channels, bias=False)
        self.box = nn.Sequential(nn.Linear(4, channels), nn.ReLU(), nn.Linear(channels, channels))
        self.pairs = PairScore(channels, hidden)

    def forward(self, lanes: Tensor, features: Tensor, attributes: Tensor, boxes: Tensor) -> Tensor:
        """[B, Q, E] from lane embeddings [B, Q, C], element features [B, E, element_channels], attribute probabilities
        [B, E, A] and boxes [B, E, 4] as fractions (x1, y1, x2, y2) of the image.
        """
        shape = torch.cat([(boxes[..., :2] + boxes[..., 2:]) - 1, 10 * (boxes[..., 2:] - boxes[..., :2])], -1)
        elements = self.element(features) + self.kind(attributes.to(features.dtype)) + self.box(shape)
        return self.pairs(lanes, elements)
