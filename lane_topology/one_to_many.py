"""A second group of lane queries, in training only, in which several stand for the same lane.

One-to-one matching gives the decoder few positives. The group goes through the same decoder, on its own, and its loss
repeats every label: more queries learn score and curve. Nothing of it is computed at inference.
Source: MapTRv2, arXiv 2308.05736; H-DETR, arXiv 2207.13080.

Shapes: B batch, Q lane queries, P proposals, C channels, K control points.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def random_curves(count: int, lane_range: Sequence[float], num_control: int) -> Tensor:
    """[count, K, 3], fractions of ``lane_range``: straight lines of a fifth of the range, anywhere in it, in any
    direction."""
    middle, angle = torch.rand(count, 1, 3), torch.rand(count, 1) * 2 * torch.pi
    middle[..., 2] = 0.5
    size = torch.tensor(lane_range[3:]) - torch.tensor(lane_range[:3])
    reach = torch.linspace(-0.1, 0.1, num_control) * size[0]
    way = torch.stack([angle.cos() * reach, angle.sin() * reach, torch.zeros_like(reach).expand(count, -1)], -1)
    return (middle + way / size).clamp(0, 1)


class OneToMany(nn.Module):
    """The group's own queries, beside which it has the dense guesses.

    channels, lane_range, num_control: as in LaneTopologyHead; num_queries: learned ones; repeats: how often each label
    counts (lane_losses.repeated).
    """

    def __init__(
        self, channels: int, lane_range: Sequence[float], num_control: int, num_queries: int = 60, repeats: int = 4
    ) -> None:
        super().__init__()
        self.repeats = repeats
        self.query = nn.Embedding(num_queries, channels)
        self.first_curves = nn.Parameter(random_curves(num_queries, lane_range, num_control))
        self.register_buffer("low", torch.tensor(lane_range[:3]), persistent=False)
        self.register_buffer("size", torch.tensor(lane_range[3:]) - self.low, persistent=False)

    def forward(self, guesses: Tensor, at_guesses: Tensor) -> tuple[Tensor, Tensor]:
        """Queries [B, Q, C] and first curves [B, Q, K, 3] in metres, from dense guesses [B, P, K, 3] and their queries
        [B, P, C]."""
        count = len(guesses)
        learned = self.first_curves * self.size + self.low
        query = torch.cat([self.query.weight.expand(count, -1, -1), at_guesses], 1)
        return query, torch.cat([learned.expand(count, -1, -1, -1), guesses], 1)
