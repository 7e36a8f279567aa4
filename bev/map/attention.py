"""Deformable attention of BEVFormer: over the BEV map itself, from the BEV into the camera images, and of the decoder.

Source: BEVFormer, arXiv 2203.17270, sections 3.3 and 3.4; Deformable DETR, arXiv 2010.04159 (offset initialisation).
State-dict keys are those of the published weights.

Shapes: B batch, N cameras, Q queries (BEV cells or objects), C channels, M heads,
L maps that are sampled (feature levels, or the two frames of temporal attention), P points, D points of a BEV pillar,
S tokens of all maps together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...backbone.cpu.linear import PackedLinear, joinable, run_linear
from ...ops import ms_deform_attn_fused, spatial_cross_attention

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
        self.offsets_and_logits: PackedLinear | None = None
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

    def join_projections(self) -> None:
        """For inference, see `backbone.cpu.inference`: one product gives offsets and logits, read in place."""
        if self.offsets_and_logits is None and joinable(self.sampling_offsets, self.attention_weights):
            self.offsets_and_logits = PackedLinear(self.sampling_offsets, self.attention_weights)
            del self.sampling_offsets, self.attention_weights

    def _predict(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Offsets in cells [B, Q, M, L, P, 2] and attention logits [B, Q, M, L, P] of queries [B, Q, C]."""
        layout = (self.num_heads, self.num_maps, self.num_points)
        if self.offsets_and_logits is None:
            offsets, logits = run_linear(self.sampling_offsets, query), run_linear(self.attention_weights, query)
        else:
            samples = math.prod(layout)
            offsets, logits = run_linear(self.offsets_and_logits, query).split((2 * samples, samples), -1)
        return offsets.unflatten(-1, (*layout, 2)), logits.unflatten(-1, layout)

    def _values(self, value: Tensor) -> Tensor:
        """Projected values of the heads: [..., S, C] -> [..., S, M, C / M]."""
        return run_linear(self.value_proj, value).unflatten(-1, (self.num_heads, -1))

    def _project(self, output: Tensor, identity: Tensor) -> Tensor:
        return identity + self.dropout(run_linear(self.output_proj, output))


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
        reference = reference_points[:, :, None, None]  # [B, Q, 1, 1, 2]
        return self._project(
            ms_deform_attn_fused(self._values(value), spatial_shapes, reference, offsets, logits), query
        )


class TemporalSelfAttention(DeformableAttention):
    """Each BEV cell looks around itself in the previous BEV and in the current one; the two answers are averaged.

    Without a previous BEV (always so in BEVFormer v2) both are the query. Upstream predicts the offsets of sample b
    from row b of the interleaved (previous, current) stack, which is sample 0's current map for b = 1; here it is
    always sample b's previous map, the same at batch size 1 (docs/quirks.md#rows-of-another-sample).
    """

    def __init__(self, embed_dims: int = 256, num_heads: int = 8, num_points: int = 4, dropout: float = 0.1) -> None:
        super().__init__(embed_dims, num_heads, 2, num_points, query_dims=2 * embed_dims, dropout=dropout)

    @staticmethod
    def offset_context(previous: Tensor, current: Tensor) -> Tensor:
        """The map [B, Q, C] that is concatenated with the query when offsets and weights are predicted."""
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
        # without a previous map both levels are the same tokens
        value = query if alone else torch.cat((previous, current), 1)
        output = ms_deform_attn_fused(
            self._values(value),
            [bev_shape] * 2,
            reference_points.unsqueeze(3),  # [B or 1, Q, 2, 1, 2]
            offsets,
            logits,
            level_mean=True,
            level_starts=(0, 0 if alone else query.shape[1]),
        )
        return self._project(output, query)


class MSDeformableAttention3D(DeformableAttention):
    """BEV queries look at the cameras' feature levels around the projections of their pillar points.

    ``num_points`` counts all the points of one head and level, not those per pillar point: point p belongs to pillar
    point p % D (docs/quirks.md#num-points-is-a-total). No output projection and no residual: ``SpatialCrossAttention``
    has them.
    """

    def __init__(self, embed_dims: int = 256, num_heads: int = 8, num_levels: int = 4, num_points: int = 8) -> None:
        super().__init__(embed_dims, num_heads, num_levels, num_points, dropout=None)

    def forward(
        self, query: Tensor, value: Tensor, spatial_shapes: Shapes, reference_points: Tensor, visible: Tensor
    ) -> Tensor:
        """``query`` [B, Q, C], ``value`` [B, N, S, C], ``reference_points`` [B, N, Q, D, 2] and ``visible`` [B, N, Q]
        -> the mean [B, Q, C] over the cameras that see a query, zero where none does.

        Raises ValueError where ``num_points`` is not a multiple of D.
        """
        num_pillar = reference_points.shape[3]
        if self.num_points % num_pillar:
            raise ValueError(f"num_points {self.num_points} is not a multiple of the {num_pillar} points of a pillar")
        return spatial_cross_attention(
            self._values(value), spatial_shapes, reference_points, visible, *self._predict(query)
        )


class SpatialCrossAttention(nn.Module):
    """BEV queries gather features from the cameras in which their pillar points lie, and average over these cameras.

    Each sample has its own cameras per query; upstream takes sample 0's for the whole batch, the same at batch
    size 1 (docs/quirks.md#camera-lists-of-sample-0). Any number and order of cameras.
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
        reference_points: Tensor,
        visible: Tensor,
        identity: Tensor | None = None,
    ) -> Tensor:
        """``query`` [B, Q, C], ``value`` [B, N, S, C], ``reference_points`` [B, N, Q, D, 2] normalised by the image,
        ``visible`` [B, N, Q] bool: whether the camera sees any of them. Returns [B, Q, C] with ``identity`` (default:
        the query) added.
        """
        answer = self.deformable_attention(query, value, spatial_shapes, reference_points, visible)
        return (query if identity is None else identity) + self.dropout(run_linear(self.output_proj, answer))
