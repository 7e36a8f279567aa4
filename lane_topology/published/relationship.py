"""The topology heads of OpenLane-V2's baselines: a score for each pair of queries.

State-dict keys are those of the published models. Shapes: B batch, Q row queries, E column queries, C channels.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from ...core.registries import MODELS


class Mlp(nn.Module):
    """Linear layers with ReLU between them, keys ``layers.0`` to ``layers.2``."""

    def __init__(self, in_channels: int, hidden: int, out_channels: int, num_layers: int = 3) -> None:
        super().__init__()
        sizes = [in_channels, *[hidden] * (num_layers - 1), out_channels]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


def pairs(rows: Tensor, columns: Tensor) -> Tensor:
    """[B, Q, E, C + C]: every row beside every column."""
    shape = (-1, rows.shape[1], columns.shape[1], -1)
    return torch.cat([rows[:, :, None].expand(*shape), columns[:, None].expand(*shape)], -1)


@MODELS.register_module()
class RelationshipHead(nn.Module):
    """Logits [B, Q, E] from the states of row queries [B, Q, C] and column queries [B, E, C]."""

    def __init__(self, embed_dims: int = 256, pair_dims: int = 128, hidden: int = 256) -> None:
        super().__init__()
        self.MLP_o1 = Mlp(embed_dims, embed_dims, pair_dims)
        self.MLP_o2 = Mlp(embed_dims, embed_dims, pair_dims)
        self.classifier = Mlp(2 * pair_dims, hidden, 1)

    def forward(self, rows: Tensor, columns: Tensor) -> Tensor:
        return self.classifier(pairs(self.MLP_o1(rows), self.MLP_o2(columns)))[..., 0]


@MODELS.register_module()
class TopologyHead(nn.Module):
    """Of the small baseline: the raw states of both queries through one MLP.

    Upstream applies a sigmoid to the output and then trains it with a loss that applies another one, so the loss only
    sees probabilities in (0.5, 0.73); ``double_sigmoid`` keeps that for the published weights, whose scores are those
    of the first sigmoid (docs/quirks.md#sigmoid-applied-twice). Without it the loss gets the logits.
    """

    def __init__(self, embed_dims: int = 64, hidden: int = 128, double_sigmoid: bool = False) -> None:
        super().__init__()
        self.double_sigmoid = double_sigmoid
        self.mlp = Mlp(2 * embed_dims, hidden, 1)

    def forward(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Logits [B, Q, E]."""
        return self.mlp(pairs(rows, columns))[..., 0]

    def loss_logits(self, logits: Tensor) -> Tensor:
        """The input of the focal loss."""
        return logits.sigmoid() if self.double_sigmoid else logits
