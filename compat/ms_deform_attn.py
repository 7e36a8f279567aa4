"""Multi-scale deformable attention under the names and signatures of mmcv, Deformable DETR and detrex.

    from mmcv.ops import MultiScaleDeformableAttention
        ->  from drivestack.compat.ms_deform_attn import MultiScaleDeformableAttention
    from models.ops.modules import MSDeformAttn              (Deformable DETR and its descendants)
        ->  from drivestack.compat.ms_deform_attn import MSDeformAttn
    from detrex.layers import MultiScaleDeformableAttention
        ->  from drivestack.compat.ms_deform_attn import DetrexMultiScaleDeformableAttention as ...

Sources: Deformable DETR, arXiv 2010.04159; the signatures are those of mmcv, Deformable-DETR and detrex (Apache 2.0),
the code is our own. Differences are listed in docs/compat.md.

Shapes: B batch, Q queries, S tokens of all levels, C channels, M heads, D channels of a head, L levels, P points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..backbone.cpu.linear import run_linear
from ..bev.map.attention import star_offsets
from ..ops import ms_deform_attn, ms_deform_attn_fused

Shapes = Tensor | Sequence[Sequence[int]]


def multi_scale_deformable_attn_pytorch(
    value: Tensor, value_spatial_shapes: Shapes, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """``value`` [B, S, M, D], locations [B, Q, M, L, P, 2] in [0, 1], weights [B, Q, M, L, P] -> [B, Q, M * D].

    mmcv's name for its slow path; here it uses the kernels. ``value_spatial_shapes`` (height, width) per level: a
    tensor [L, 2] or a list (a tensor on a GPU costs a synchronisation). Raises as `drivestack.ops.ms_deform_attn` does.
    """
    return ms_deform_attn(value, value_spatial_shapes, sampling_locations, attention_weights)


ms_deform_attn_core_pytorch = multi_scale_deformable_attn_pytorch  # the name in Deformable DETR


class MultiScaleDeformableAttnFunction:
    """Replaces the autograd function of mmcv and detrex; the gradients come with the operator."""

    @staticmethod
    def apply(
        value: Tensor,
        value_spatial_shapes: Shapes,
        value_level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int = 64,
    ) -> Tensor:
        """As `multi_scale_deformable_attn_pytorch`. The start index follows from the shapes and `im2col_step` changes
        no number: neither is read."""
        return ms_deform_attn(value, value_spatial_shapes, sampling_locations, attention_weights)


MSDeformAttnFunction = MultiScaleDeformableAttnFunction  # the name in Deformable DETR


class _DeformableAttention(nn.Module):
    """The four projections, with the state-dict names that all of the originals share."""

    def __init__(self, channels: int, num_heads: int, num_levels: int, num_points: int, value_channels: int) -> None:
        super().__init__()
        for total, name in ((channels, "embedding"), (value_channels, "values")):
            if num_heads < 1 or total % num_heads:
                raise ValueError(f"{total} channels of the {name} are not a multiple of {num_heads} heads")
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(channels, samples * 2)
        self.attention_weights = nn.Linear(channels, samples)
        self.value_proj = nn.Linear(channels, value_channels)
        self.output_proj = nn.Linear(value_channels, channels)
        self.init_weights()

    def init_weights(self) -> None:
        """Uniform attention along a star of fixed offsets; xavier projections."""
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(star_offsets(self.num_heads, self.num_levels, self.num_points))
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def _attend(
        self, query: Tensor, value: Tensor, reference_points: Tensor, shapes: Shapes, padding: Tensor | None
    ) -> Tensor:
        """``query`` [B, Q, C], ``value`` [B, S, C], references [B, Q, L, 2 or 4], ``padding`` [B, S] -> [B, Q, C].

        Reference points of two numbers are (x, y); the offsets are in cells of the level. Of four: boxes (x, y, width,
        height); an offset of P cells reaches half the box.
        """
        shapes = shapes.tolist() if isinstance(shapes, Tensor) else shapes
        value = run_linear(self.value_proj, value)
        if padding is not None:
            value = value.masked_fill(padding[..., None], 0.0)
        value = value.unflatten(-1, (self.num_heads, -1))  # [B, S, M, D]
        layout = (self.num_heads, self.num_levels, self.num_points)
        offsets = run_linear(self.sampling_offsets, query).unflatten(-1, (*layout, 2))
        logits = run_linear(self.attention_weights, query).unflatten(-1, layout)
        numbers = reference_points.shape[-1]
        if numbers not in (2, 4):
            raise ValueError(f"reference_points must have 2 or 4 numbers each, got {list(reference_points.shape)}")
        if numbers == 4:
            size = torch.tensor([(w, h) for h, w in shapes], dtype=reference_points.dtype, device=value.device)
            reach = reference_points[..., 2:] * size * (0.5 / self.num_points)  # cells per unit of offset
            offsets = offsets * reach[:, :, None, :, None]
        points = reference_points[..., :2].unsqueeze(3)  # [B, Q, L, 1, 2]
        return run_linear(self.output_proj, ms_deform_attn_fused(value, shapes, points, offsets, logits))


class MSDeformAttn(_DeformableAttention):
    """The layer of Deformable DETR (and DINO, Mask2Former, DAB-DETR, ... that carry a copy of it).

    Raises:
        ValueError: ``d_model`` is not a multiple of ``n_heads``.
    """

    def __init__(self, d_model: int = 256, n_levels: int = 4, n_heads: int = 8, n_points: int = 4) -> None:
        super().__init__(d_model, n_heads, n_levels, n_points, d_model)
        self.d_model, self.n_levels, self.n_heads, self.n_points = d_model, n_levels, n_heads, n_points

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        input_flatten: Tensor,
        input_spatial_shapes: Shapes,
        input_level_start_index: Tensor | None = None,
        input_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """``query`` [B, Q, C], ``reference_points`` [B, Q, L, 2 or 4], ``input_flatten`` [B, S, C] -> [B, Q, C].

        ``input_spatial_shapes`` (height, width) per level; ``input_padding_mask`` [B, S] bool, true where to be
        ignored. ``input_level_start_index`` follows from the shapes and is not read.
        """
        return self._attend(query, input_flatten, reference_points, input_spatial_shapes, input_padding_mask)


class MultiScaleDeformableAttention(_DeformableAttention):
    """The layer of mmcv, with residual and dropout.

    Args:
        embed_dims: C. num_heads, num_levels, num_points: M, L, P.
        im2col_step: changes no number, not read.
        dropout: of the output, before the residual.
        batch_first: queries and values come as [B, Q, C]; else as [Q, B, C].
        norm_cfg, init_cfg: kept as attributes for mmcv's builders, as there without effect here.
        value_proj_ratio: channels of the projected values by C.

    Raises:
        ValueError: ``embed_dims`` is not a multiple of ``num_heads``.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 4,
        im2col_step: int = 64,
        dropout: float = 0.1,
        batch_first: bool = False,
        norm_cfg: dict | None = None,
        init_cfg: dict | None = None,
        value_proj_ratio: float = 1.0,
    ) -> None:
        super().__init__(embed_dims, num_heads, num_levels, num_points, int(embed_dims * value_proj_ratio))
        self.embed_dims, self.im2col_step, self.batch_first = embed_dims, im2col_step, batch_first
        self.norm_cfg, self.init_cfg = norm_cfg, init_cfg
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        reference_points: Tensor | None = None,
        spatial_shapes: Shapes | None = None,
        level_start_index: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """``query`` [Q, B, C] (or [B, Q, C] with batch_first) -> the same shape, ``identity`` added.

        ``value`` [S, B, C]: the query if None. ``identity``: the query without ``query_pos`` if None.
        ``key_padding_mask`` [B, S] bool, true where to be ignored. ``reference_points`` [B, Q, L, 2 or 4] in [0, 1].
        ``spatial_shapes`` (height, width) per level. ``key``, ``level_start_index`` and further arguments are not read.

        Raises:
            ValueError: no reference points or shapes, or shapes that do not fit.
        """
        if reference_points is None or spatial_shapes is None:
            raise ValueError("MultiScaleDeformableAttention needs reference_points and spatial_shapes")
        value = query if value is None else value
        identity = query if identity is None else identity
        query = query if query_pos is None else query + query_pos
        if not self.batch_first:
            query, value = query.transpose(0, 1), value.transpose(0, 1)
        output = self._attend(query, value, reference_points, spatial_shapes, key_padding_mask)
        output = output if self.batch_first else output.transpose(0, 1)
        return identity + self.dropout(output)


class DetrexMultiScaleDeformableAttention(MultiScaleDeformableAttention):
    """The layer of detrex: mmcv's with other names of arguments (``embed_dim``, ``img2col_step``)."""

    def __init__(
        self,
        embed_dim: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 4,
        img2col_step: int = 64,
        dropout: float = 0.1,
        batch_first: bool = False,
    ) -> None:
        super().__init__(embed_dim, num_heads, num_levels, num_points, img2col_step, dropout, batch_first)
        self.embed_dim = embed_dim
