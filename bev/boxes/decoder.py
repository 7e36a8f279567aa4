"""Object decoder of BEVFormer: queries attend to one another, look at the BEV map, and refine their reference points.

Source: Deformable DETR, arXiv 2010.04159 (iterative refinement); Group DETR, arXiv 2207.13085 (groups in training);
BEVFormer v2, arXiv 2211.10439.

Shapes: B batch, Q object queries of all groups, G groups, C channels, H = num_y * num_x BEV cells, R layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from ...backbone.internimage.layers import LayerNorm
from ..map.attention import BevDeformableAttention, Shapes
from ..map.encoder import FeedForward


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of x in [0, 1], finite at both ends."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


class GroupSelfAttention(nn.Module):
    """Multi-head self-attention inside each of several equal groups of queries."""

    def __init__(self, embed_dims: int = 256, num_heads: int = 8, dropout: float = 0.1) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(embed_dims, num_heads, dropout=dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, query: Tensor, query_pos: Tensor | None = None, groups: int = 1, valid: Tensor | None = None
    ) -> Tensor:
        """``query``, ``query_pos`` [B, Q, C] with the groups one after the other along Q; the query is added.

        ``valid`` [B, Q / groups] bool, the same in each group: where it is False, queries are padding, not attended to.
        Raises ValueError where Q is not a multiple of ``groups``.
        """
        batch, num_queries, channels = query.shape
        if num_queries % groups:
            raise ValueError(f"{num_queries} object queries cannot be split into {groups} equal groups")
        folded = (batch * groups, num_queries // groups, channels)
        value = query.reshape(folded)
        positioned = value if query_pos is None else (query + query_pos).reshape(folded)
        padding = None if valid is None else ~valid.repeat_interleave(groups, 0)  # [B * G, Q / G]
        # bfloat16 attention takes three times as long as float32 in the backward pass of a CPU without AMX
        with torch.autocast("cpu", enabled=False) if query.is_cpu and query.dtype == torch.float32 else nullcontext():
            answer = self.attn(positioned, positioned, value, key_padding_mask=padding, need_weights=False)[0]
        return query + self.dropout(answer.reshape(query.shape))


class DecoderLayer(nn.Module):
    """Group self-attention, BEV cross-attention, feed-forward, each followed by a layer norm."""

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        num_points: int = 4,
        ffn_dims: int = 512,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(
            [
                GroupSelfAttention(embed_dims, num_heads, dropout),
                BevDeformableAttention(embed_dims, num_heads, num_points, dropout),
            ]
        )
        self.ffns = nn.ModuleList([FeedForward(embed_dims, ffn_dims, dropout)])
        self.norms = nn.ModuleList(LayerNorm(embed_dims) for _ in range(3))

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        bev: Tensor,
        bev_shapes: Shapes,
        reference_xy: Tensor,
        groups: int,
        valid: Tensor | None,
    ) -> Tensor:
        query = self.norms[0](self.attentions[0](query, query_pos, groups, valid))
        query = self.norms[1](self.attentions[1](query, bev, bev_shapes, reference_xy, query_pos))
        return self.norms[2](self.ffns[0](query))


class ObjectDecoder(nn.Module):
    """Layers with iterative refinement of the reference points."""

    def __init__(self, num_layers: int = 6, **layer: object) -> None:
        """``layer``: arguments of ``DecoderLayer``."""
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(**layer) for _ in range(num_layers))

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        reference_points: Tensor,
        bev: Tensor,
        bev_shape: tuple[int, int],
        reg_branches: Sequence[Callable[[Tensor], Tensor]] | None = None,
        groups: int = 1,
        valid: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Hidden states [R, B, Q, C] after each layer and reference points [R + 1, B, Q, 3], the given ones first.

        ``query``, ``query_pos`` [B, Q, C]; ``reference_points`` [B, Q, 3], fractions of the point range;
        ``bev`` [B, H, C] on a (num_y, num_x) grid. ``reg_branches[r]`` maps the state of layer r to box codes whose
        slots 0, 1 and 4 are offsets of x, y, z before the sigmoid. Refined points carry no gradient. ``valid`` as in
        ``GroupSelfAttention``.
        """
        states, references = [], [reference_points]
        for i, layer in enumerate(self.layers):
            query = layer(query, query_pos, bev, [bev_shape], references[-1][..., :2], groups, valid)
            reference = references[-1]
            if reg_branches is not None:
                with torch.no_grad():
                    delta = reg_branches[i](query)[..., [0, 1, 4]].float()
                    reference = (delta + inverse_sigmoid(reference.float())).sigmoid()
            states.append(query)
            references.append(reference)
        return torch.stack(states), torch.stack(references)
