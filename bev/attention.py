"""Deformable attention of BEVFormer: over the BEV map itself, from the BEV into the camera images, and of the decoder.

Source: BEVFormer, arXiv 2203.17270, sections 3.3 and 3.4; Deformable DETR, arXiv 2010.04159 (offset initialisation).
State-dict keys are those of the published weights (spec/bevformer.md sections 5, 6, 9 and 10).

Shapes: B batch, N cameras, Q queries (BEV cells or objects), K most queries that any camera sees, C channels, M heads,
L maps that are sampled (feature levels, or the two frames of temporal attention), P points, D points of a BEV pillar,
S tokens of all maps together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..ops import ms_deform_attn, softmax_rows

Shapes = Sequence[tuple[int, int]]
"""(height, width) of each map, in the order in which their tokens are concatenated."""


def star_offsets(num_heads: int, num_maps: int, num_points: int) -> Tensor:
    """Initial sampling offsets [M * L * P * 2]: head m looks along angle 2 pi m / M, its point p lies p + 1 cells away.

    The directions have maximum norm 1 (Deformable DETR, appendix A.4).
    """
    angle = torch.arange(num_heads) * (2 * math.pi / num_heads)
    direction = torch.stack([angle.cos(), angle.sin()], -1)  # [M, 2]
    direction = direction / direction.abs().amax(-1, keepdim=True)
    distance = torch.arange(1, num_points + 1).view(1, 1, num_points, 1)
    return (direction[:, None, None] * distance).expand(-1, num_maps, -1, -1).flatten()


class DeformableAttention(nn.Module):
    """What all the attentions here share: offsets and weights predicted from the query, projections of the values.

    Raises ValueError where ``embed_dims`` cannot be split into ``num_heads``.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        num_maps: int,
        num_points: int,
        query_dims: int | None = None,
        dropout: float | None = 0.1,
    ) -> None:
        """``dropout`` None: no output projection, no residual (the caller has them)."""
        super().__init__()
        if embed_dims % num_heads:
            raise ValueError(f"embed_dims {embed_dims} is not a multiple of num_heads {num_heads}")
        self.num_heads, self.num_maps, self.num_points = num_heads, num_maps, num_points
        samples = num_heads * num_maps * num_points
        self.sampling_offsets = nn.Linear(query_dims or embed_dims, samples * 2)
        self.attention_weights = nn.Linear(query_dims or embed_dims, samples)
        self.value_proj = nn.Linear(embed_dims, embed_dims)
        if dropout is not None:
            self.output_proj = nn.Linear(embed_dims, embed_dims)
            self.dropout = nn.Dropout(dropout)
        self.init_weights()

    def init_weights(self) -> None:
        """Uniform attention along a star of fixed offsets; Xavier projections."""
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(star_offsets(self.num_heads, self.num_maps, self.num_points))
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for name in ("value_proj", "output_proj"):
            if hasattr(self, name):
                nn.init.xavier_uniform_(getattr(self, name).weight)
                nn.init.zeros_(getattr(self, name).bias)

    def _predict(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Offsets in cells [B, Q, M, L, P, 2] and attention logits [B, Q, M, L, P] of queries [B, Q, C]."""
        layout = (*query.shape[:2], self.num_heads, self.num_maps, self.num_points)
        offsets, logits = self.sampling_offsets(query), self.attention_weights(query)
        if (
            offsets.dtype != torch.float64
        ):  # never below float32: in half precision a 200-cell map has steps of 0.1 cells
            offsets, logits = offsets.float(), logits.float()
        return offsets.view(*layout, 2), logits.view(layout)

    def _sample(self, value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
        """Projects values [B, S, C], sums them up at locations [B, Q, M, L, P, 2] with weights: [B, Q, C]."""
        value = self.value_proj(value)
        heads = value.view(*value.shape[:2], self.num_heads, -1)  # [B, S, M, C / M]
        return ms_deform_attn(heads, list(shapes), locations, weights)

    def _project(self, output: Tensor, identity: Tensor) -> Tensor:
        return identity + self.dropout(self.output_proj(output))


def cells_to_fractions(offsets: Tensor, shapes: Shapes) -> Tensor:
    """Offsets in cells [..., L, P, 2] (x, y) as fractions of the width and height of their map."""
    size = torch.tensor([(w, h) for h, w in shapes], dtype=offsets.dtype, device=offsets.device)  # [L, 2]
    size = size[:, None].expand(offsets.shape[-3:])
    # one long inner axis: dividing by [L, 1, 2] directly is ten times slower on a CPU
    return (offsets.flatten(-3) / size.flatten()).view(offsets.shape)


class BevDeformableAttention(DeformableAttention):
    """Object queries look at the BEV map around their reference points (decoder cross-attention)."""

    def __init__(self, embed_dims: int = 256, num_heads: int = 8, num_points: int = 4, dropout: float = 0.1) -> None:
        super().__init__(embed_dims, num_heads, num_maps=1, num_points=num_points, dropout=dropout)

    def forward(
        self,
        query: Tensor,
        value: Tensor,
        spatial_shapes: Shapes,
        reference_points: Tensor,
        query_pos: Tensor | None = None,
    ) -> Tensor:
        """``query``, ``query_pos`` [B, Q, C]; ``value`` [B, S, C]; ``reference_points`` [B, Q, 2] (x, y) in [0, 1].

        Returns [B, Q, C] with the query itself (without its position) added.
        """
        offsets, logits = self._predict(query if query_pos is None else query + query_pos)
        weights = softmax_rows(logits.flatten(3)).view(logits.shape)
        locations = reference_points[:, :, None, None, None] + cells_to_fractions(offsets, spatial_shapes)
        return self._project(self._sample(value, spatial_shapes, locations, weights), query)


class TemporalSelfAttention(DeformableAttention):
    """Each BEV cell looks around itself in the previous BEV and in the current one; the two answers are averaged.

    Without a previous BEV (always so in BEVFormer v2) both are the query. Upstream predicts the offsets of sample b
    from row b of the interleaved (previous, current) stack, which is sample 0's current map for b = 1 (bug Q2); here it
    is always sample b's previous map, the same at batch size 1.
    """

    def __init__(self, embed_dims: int = 256, num_heads: int = 8, num_points: int = 4, dropout: float = 0.1) -> None:
        super().__init__(embed_dims, num_heads, 2, num_points, query_dims=2 * embed_dims, dropout=dropout)

    @staticmethod
    def offset_context(previous: Tensor, current: Tensor) -> Tensor:
        """The map [B, Q, C] that stands beside the query when offsets and weights are predicted."""
        return previous

    def forward(
        self,
        query: Tensor,
        bev_shape: tuple[int, int],
        reference_points: Tensor,
        query_pos: Tensor | None = None,
        previous: Tensor | None = None,
        current: Tensor | None = None,
    ) -> Tensor:
        """``query``, ``query_pos``, ``previous``, ``current`` [B, Q, C] with Q = num_y * num_x of ``bev_shape``.

        ``reference_points`` [B or 1, Q, 2, 2]: where each cell looks, (x, y) in [0, 1], in the previous and in the
        current map. Without ``previous`` both maps are the query; ``current`` defaults to the query.
        Returns [B, Q, C] with the query added.
        """
        alone = previous is None
        previous = query if alone else previous
        current = query if current is None else current
        positioned = query if query_pos is None else query + query_pos
        offsets, logits = self._predict(torch.cat([self.offset_context(previous, current), positioned], -1))
        weights = softmax_rows(logits) * 0.5  # softmax per map, then the mean of both
        reference = reference_points[:, :, None, :, None]  # [B, Q, 1, 2, 1, 2]
        locations = reference + cells_to_fractions(offsets, [bev_shape] * 2)
        if alone:  # one map, sampled at the points of both: the same sum without a second copy of the map
            locations, weights = locations.flatten(3, 4).unsqueeze(3), weights.flatten(3).unsqueeze(3)
            output = self._sample(query, [bev_shape], locations, weights)
        else:
            output = self._sample(torch.cat([previous, current], 1), [bev_shape] * 2, locations, weights)
        return self._project(output, query)


class MSDeformableAttention3D(DeformableAttention):
    """BEV queries look at one camera's feature levels around the projections of their pillar points.

    ``num_points`` counts all the points of one head and level, not those per pillar point (Q5): point p belongs to
    pillar point p % D. No output projection and no residual: ``SpatialCrossAttention`` has them.
    """

    def __init__(self, embed_dims: int = 256, num_heads: int = 8, num_levels: int = 4, num_points: int = 8) -> None:
        super().__init__(embed_dims, num_heads, num_levels, num_points, dropout=None)

    def forward(self, query: Tensor, value: Tensor, spatial_shapes: Shapes, reference_points: Tensor) -> Tensor:
        """``query`` [B, Q, C], ``value`` [B, S, C], ``reference_points`` [B, Q, D, 2] -> [B, Q, C].

        Raises ValueError where ``num_points`` is not a multiple of D.
        """
        num_pillar = reference_points.shape[2]
        if self.num_points % num_pillar:
            raise ValueError(f"num_points {self.num_points} is not a multiple of the {num_pillar} points of a pillar")
        offsets, logits = self._predict(query)
        weights = softmax_rows(logits.flatten(3)).view(logits.shape)
        offsets = cells_to_fractions(offsets, spatial_shapes)
        offsets = offsets.unflatten(4, (-1, num_pillar))  # [B, Q, M, L, P / D, D, 2]
        locations = (offsets + reference_points[:, :, None, None, None]).flatten(4, 5)
        return self._sample(value, spatial_shapes, locations, weights)


class SeenQueries(NamedTuple):
    """Which queries each camera sees, as padded lists: made once per frame, used by every layer."""

    index: Tensor
    """[B, N, K] long: query ids, ascending; 0 in the padding."""
    valid: Tensor
    """[B, N, K] bool: False in the padding."""
    reference_points: Tensor
    """[B, N, K, D, 2] of these queries."""
    num_cameras: Tensor
    """[B, Q, 1]: by how many cameras a query is seen, at least 1."""


def seen_queries(visible: Tensor, reference_points: Tensor) -> SeenQueries:
    """Lists the queries with at least one visible pillar point, per sample and camera.

    ``visible`` [B, N, Q, D] bool, ``reference_points`` [B, N, Q, D, 2]. One device synchronisation (the list length).
    """
    seen = visible.any(-1)  # [B, N, Q]
    count = seen.sum(-1, keepdim=True)
    longest = max(int(count.max()), 1) if count.numel() else 1
    # every seen query goes to the slot of its rank, all others to a slot behind the list that is cut off
    slot = torch.where(seen, seen.cumsum(-1) - 1, longest)
    query_id = torch.arange(seen.shape[-1], device=seen.device).expand_as(slot)
    index = slot.new_zeros(*seen.shape[:2], longest + 1).scatter_(-1, slot, query_id)[..., :longest]
    valid = torch.arange(longest, device=seen.device) < count
    picked = index[..., None, None].expand(-1, -1, -1, *reference_points.shape[3:])
    cameras = seen.sum(1)[..., None].clamp(min=1)
    return SeenQueries(index, valid, reference_points.gather(2, picked), cameras.to(reference_points.dtype))


class SpatialCrossAttention(nn.Module):
    """BEV queries gather features from the cameras in which their pillar points lie, and average over these cameras.

    The lists of seen queries are made per sample; upstream takes sample 0's lists for the whole batch (bug Q1), the
    same at batch size 1. Any number and order of cameras.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 8,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.deformable_attention = MSDeformableAttention3D(embed_dims, num_heads, num_levels, num_points)
        self.output_proj = nn.Linear(embed_dims, embed_dims)
        self.dropout = nn.Dropout(dropout)
        self.init_weights()

    def init_weights(self) -> None:
        nn.init.xavier_uniform_(self.output_proj.weight)
        nn.init.zeros_(self.output_proj.bias)

    def forward(
        self,
        query: Tensor,
        value: Tensor,
        spatial_shapes: Shapes,
        reference_points: Tensor | None = None,
        visible: Tensor | None = None,
        identity: Tensor | None = None,
        seen: SeenQueries | None = None,
    ) -> Tensor:
        """``query`` [B, Q, C], ``value`` [B, N, S, C], ``reference_points`` [B, N, Q, D, 2] normalised by the image,
        ``visible`` [B, N, Q, D] bool; or ``seen`` instead of the last two. Returns [B, Q, C] with ``identity``
        (default: the query) added.
        """
        seen = seen_queries(visible, reference_points) if seen is None else seen
        batch, num_queries, channels = query.shape
        num_cameras, longest = seen.index.shape[1:]
        # rows of the flattened queries [B * Q, C]
        rows = seen.index + num_queries * torch.arange(batch, device=query.device)[:, None, None]
        picked = query.flatten(0, 1).gather(0, rows.flatten()[:, None].expand(-1, channels))
        answers = self.deformable_attention(
            picked.view(batch * num_cameras, longest, channels),
            value.flatten(0, 1),
            spatial_shapes,
            seen.reference_points.flatten(0, 1),
        )
        # padding is summed into one extra row that is cut off
        target = torch.where(seen.valid, rows, batch * num_queries).flatten()[:, None].expand(-1, channels)
        total = answers.new_zeros(batch * num_queries + 1, channels).scatter_add(0, target, answers.flatten(0, 1))
        mean = total[:-1].view_as(query) / seen.num_cameras.to(total.dtype)
        return (query if identity is None else identity) + self.dropout(self.output_proj(mean))
