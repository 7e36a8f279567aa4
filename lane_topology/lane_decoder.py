"""Lane queries that attend to the BEV map along their current curve, and refine its control points layer by layer.

Sources: Deformable DETR, arXiv 2010.04159 (iterative refinement); the reference points of a query are those of its
whole curve rather than one anchor (as MapTRv2's decoupled points, arXiv 2308.05736).

Shapes: B batch, Q lane queries, C channels, K control points, R points of a curve, S BEV cells, layers first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..backbone.internimage.layers import LayerNorm
from ..bev.boxes.decoder import GroupSelfAttention
from ..bev.boxes.proposals import sine_embedding
from ..bev.map.attention import DeformableAttention, star_offsets
from ..bev.map.encoder import FeedForward
from ..ops import ms_deform_attn_fused
from .curves import sample_curves


class CurveAttention(DeformableAttention):
    """Deformable attention around R points along a curve; point p of a head belongs to curve point p % R."""

    def __init__(
        self, embed_dims: int, num_heads: int, num_along: int, points_each: int = 2, dropout: float = 0.0
    ) -> None:
        self.num_along, self.points_each = num_along, points_each
        super().__init__(embed_dims, num_heads, 1, num_along * points_each, dropout=dropout)

    def init_weights(self) -> None:
        super().init_weights()
        star = star_offsets(self.num_heads, 1, self.points_each).view(self.num_heads, self.points_each, 1, 2)
        with torch.no_grad():  # half a cell, one cell, ... away from each curve point
            self.sampling_offsets.bias.copy_((star / 2).expand(-1, -1, self.num_along, -1).flatten())

    def forward(self, query: Tensor, query_pos: Tensor, value: Tensor, shape: tuple[int, int], curve: Tensor) -> Tensor:
        """``query``, ``query_pos`` [B, Q, C]; ``value`` [B, S, C] of a (num_y, num_x) map; ``curve`` [B, Q, R, 2],
        (x, y) fractions of the map. Returns [B, Q, C] with the query added.
        """
        offsets, logits = self._predict(query + query_pos)
        answer = ms_deform_attn_fused(self._values(value), [shape], curve[:, :, None].float(), offsets, logits)
        return self._project(answer, query)


class LaneDecoderLayer(nn.Module):
    """Self-attention, attention along the curve, feed-forward, each followed by a norm; then score and movement."""

    def __init__(
        self, channels: int, num_heads: int, num_along: int, ffn_dims: int, num_control: int, dropout: float
    ) -> None:
        super().__init__()
        self.self_attention = GroupSelfAttention(channels, num_heads, dropout)
        self.curve_attention = CurveAttention(channels, num_heads, num_along, dropout=dropout)
        self.ffn = FeedForward(channels, ffn_dims, dropout)
        self.norms = nn.ModuleList(LayerNorm(channels) for _ in range(3))
        self.score = nn.Sequential(
            nn.Linear(channels, channels), nn.LayerNorm(channels), nn.ReLU(), nn.Linear(channels, 1)
        )
        self.move = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, 3 * num_control))
        nn.init.constant_(self.score[-1].bias, -2.19722458)
        nn.init.zeros_(self.move[-1].weight)  # starts with the curve it was given
        nn.init.zeros_(self.move[-1].bias)

    def forward(
        self, query: Tensor, query_pos: Tensor, value: Tensor, shape: tuple[int, int], curve: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """States [B, Q, C], score logits [B, Q] and raw movements [B, Q, 3 K]; arguments as CurveAttention."""
        query = self.norms[0](self.self_attention(query, query_pos))
        query = self.norms[1](self.curve_attention(query, query_pos, value, shape, curve))
        query = self.norms[2](self.ffn(query))
        return query, self.score(query)[..., 0].float(), self.move(query).float()


class LaneDecoder(nn.Module):
    """Layers on queries and their curves.

    lane_range: (x_min, y_min, z_min, x_max, y_max, z_max) metres; x and y are those of the map.
    step_m: metres per unit of a layer's movement.
    """

    def __init__(
        self,
        lane_range: tuple[float, ...],
        channels: int = 256,
        num_layers: int = 6,
        num_heads: int = 8,
        num_along: int = 5,
        ffn_dims: int = 512,
        num_control: int = 5,
        step_m: float = 4.0,
        dropout: float = 0.0,
        num_feats: int = 16,
    ) -> None:
        super().__init__()
        self.num_along, self.num_control, self.step_m, self.num_feats = num_along, num_control, step_m, num_feats
        layer = (channels, num_heads, num_along, ffn_dims, num_control, dropout)
        self.layers = nn.ModuleList(LaneDecoderLayer(*layer) for _ in range(num_layers))
        self.position = nn.Sequential(
            nn.Linear(3 * num_feats * num_control, channels), nn.ReLU(), nn.Linear(channels, channels)
        )
        self.register_buffer("low", torch.tensor(lane_range[:3]), persistent=False)
        self.register_buffer("size", torch.tensor(lane_range[3:]) - self.low, persistent=False)

    def embed(self, controls: Tensor) -> Tensor:
        """[..., C]: where a lane with control points [..., K, 3] lies, for queries and for the topology."""
        return self.position(sine_embedding((controls - self.low) / self.size, self.num_feats).flatten(-2))

    def forward(self, query: Tensor, controls: Tensor, bev: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Last states [B, Q, C], score logits [layers, B, Q] and control points [layers, B, Q, K, 3] in metres.

        ``query`` [B, Q, C]; ``controls`` [B, Q, K, 3] first guesses, metres; ``bev`` [B, C, num_y, num_x].
        A layer's loss moves that layer only: curves carry no gradient into the next one, as in Deformable DETR.
        """
        shape, value = (bev.shape[2], bev.shape[3]), bev.flatten(2).transpose(1, 2)
        scores, curves = [], []
        for layer in self.layers:
            along = (sample_curves(controls, self.num_along)[..., :2] - self.low[:2]) / self.size[:2]
            query, score, move = layer(query, self.embed(controls), value, shape, along.detach())
            moved = controls + move.unflatten(-1, (self.num_control, 3)) * self.step_m
            scores.append(score)
            curves.append(moved)
            controls = moved.detach()
        return query, torch.stack(scores), torch.stack(curves)
