"""BEV encoder of BEVFormer: a grid of queries, filled from the cameras by projecting a pillar of points per cell.

Source: BEVFormer, arXiv 2203.17270, section 3; BEVFormer v2, arXiv 2211.10439, section 3.

Shapes: B batch, N cameras, Q = num_y * num_x BEV cells, D points of a pillar, C channels, S tokens of all levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...backbone.cpu.linear import run_linear
from ...backbone.cpu.plain import is_ordinary, is_plain
from ...backbone.internimage.layers import LayerNorm
from ...core.errors import ConfigError
from ...geometry import BevGrid, Lens
from .attention import Shapes, SpatialCrossAttention, TemporalSelfAttention

MIN_DEPTH_M = 1e-5
"""Points at or behind this depth are not visible (upstream's bound)."""


def pillar_points(grid: BevGrid, z_range: tuple[float, float], num_points: int) -> Tensor:
    """Metric points [Q, D, 3] of the BEV frame: over each cell centre, D heights from half a metre above the bottom
    of ``z_range`` to half a metre below its top. Raises ValueError where ``z_range`` is not higher than 1 m.
    """
    height = z_range[1] - z_range[0]
    if height <= 1:
        raise ValueError(f"z_range {z_range} must span more than 1 m: the pillar keeps half a metre from either end")
    xy = cell_centres_normalised(grid) * torch.tensor([grid.x_max - grid.x_min, grid.y_max - grid.y_min])
    xy = xy + torch.tensor([grid.x_min, grid.y_min])
    z = torch.linspace(0.5, height - 0.5, num_points) / height * height + z_range[0]
    return torch.cat([xy[:, None].expand(-1, num_points, -1), z.view(1, -1, 1).expand(len(xy), -1, -1)], -1)


def cell_centres_normalised(grid: BevGrid) -> Tensor:
    """Cell centres [Q, 2] as (x, y) fractions of the grid, float32."""
    x = torch.linspace(0.5, grid.num_x - 0.5, grid.num_x) / grid.num_x
    y = torch.linspace(0.5, grid.num_y - 0.5, grid.num_y) / grid.num_y
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1)


def project_to_images(
    points_m: Tensor,
    image_from_bev: Tensor,
    padded_size: tuple[int, int],
    image_size_px: Tensor,
    lenses: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Projects BEV points into every camera; always in float32, without matrix products (no TF32).

    ``points_m`` [Q, D, 3], ``image_from_bev`` [B, N, 4, 4], ``padded_size`` (height, width) in pixels of the tensor
    that went through the backbone, ``image_size_px`` [B, N, 2] (height, width) of each image inside it; ``lenses``
    [B, N, ROW], see Batch.
    Returns (u, v) [B, N, Q, D, 2] as fractions of the padded size, and [B, N, Q, D] bool: in front of the camera and
    strictly inside its own image (docs/quirks.md#one-image-size-for-all-cameras).
    """
    with torch.autocast(points_m.device.type, enabled=False):
        x, y, z = points_m.float().unbind(-1)  # [Q, D]
        m = image_from_bev.float()[..., None, None]  # [B, N, 4, 4, 1, 1]
        px, py, depth = (m[:, :, i, 0] * x + m[:, :, i, 1] * y + m[:, :, i, 2] * z + m[:, :, i, 3] for i in range(3))
        in_front = depth > MIN_DEPTH_M  # [B, N, Q, D]
        depth = depth.clamp(min=MIN_DEPTH_M)
        u, v = px / depth, py / depth
        if lenses is not None:
            _through_lenses(torch.stack([x, y, z], -1), image_from_bev, lenses, (u, v, in_front))
        u, v = u / padded_size[1], v / padded_size[0]
        sizes = image_size_px.float()[..., None, None]  # [B, N, 2, 1, 1]
        limit_v, limit_u = sizes[:, :, 0] / padded_size[0], sizes[:, :, 1] / padded_size[1]
        visible = in_front & (u > 0) & (u < limit_u) & (v > 0) & (v < limit_v)
        return torch.stack([u, v], -1), visible


def _through_lenses(
    points_m: Tensor, camera_from_bev: Tensor, lenses: Tensor, out: tuple[Tensor, Tensor, Tensor]
) -> None:
    """Writes pixels u, v and what is seen [B, N, Q, D] of the cameras with a lens.

    Raises ConfigError while a model is exported: its graph has one path, that of pinholes.
    """
    if torch.compiler.is_exporting():
        raise ConfigError(
            "an exported model projects pinholes alone, and a camera has a lens: export with image settings "
            "lens='undistort', and undistort the images that the exported model gets"
        )
    flat = points_m.flatten(0, -2)  # [Q * D, 3]
    for sample, cameras in enumerate(lenses.tolist()):
        for camera, row in enumerate(cameras):
            if (lens := Lens.of_row(row)) is not None:
                pose = camera_from_bev[sample, camera].float()
                where, pixels, seen = _through_lens(flat, pose, lens, row[2:8])
                for target, values in zip(out, (pixels[:, 0], pixels[:, 1], seen)):
                    target[sample, camera].zero_().view(-1)[where] = values


def _through_lens(
    points_m: Tensor, camera_from_bev: Tensor, lens: Lens, affine: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Indices [k] of the points [P, 3] within the lens's largest angle, their pixels [k, 2] and which are seen [k].

    Only these, of a pillar grid a sixth or so, go through the lens's formula. affine: first two rows of the matrix.
    """
    m = camera_from_bev
    z = m[2, 0] * points_m[:, 0] + m[2, 1] * points_m[:, 1] + m[2, 2] * points_m[:, 2] + m[2, 3]
    where = torch.arange(len(z), device=z.device)
    if lens.limit_rad < math.pi / 2:
        where = (z > MIN_DEPTH_M).nonzero()[:, 0]
        points_m, z = points_m[where], z[where]
    x, y = (m[i, 0] * points_m[:, 0] + m[i, 1] * points_m[:, 1] + m[i, 2] * points_m[:, 2] + m[i, 3] for i in (0, 1))
    within = z > math.cos(lens.limit_rad) * torch.sqrt(x * x + y * y + z * z)
    plane, seen = lens.plane(torch.stack([x, y, z], -1)[within])
    a, b, (fx, skew, cx, e, fy, cy) = plane[:, 0], plane[:, 1], affine
    return where[within], torch.stack([fx * a + skew * b + cx, e * a + fy * b + cy], 1), seen


class FeedForward(nn.Module):
    """Two linear layers with a residual. Keys ``layers.0.0`` and ``layers.1`` as published."""

    def __init__(self, embed_dims: int, ffn_dims: int, dropout: float = 0.1) -> None:
        super().__init__()
        first = nn.Sequential(nn.Linear(embed_dims, ffn_dims), nn.ReLU(inplace=True), nn.Dropout(dropout))
        self.layers = nn.Sequential(first, nn.Linear(ffn_dims, embed_dims), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        as_built = is_plain(self.layers, nn.Sequential) and is_plain(self.layers[0], nn.Sequential)
        if not (as_built and len(self.layers) == len(self.layers[0]) == 3 and is_ordinary(x)):
            return x + self.layers(x)
        first, contract, last_drop = self.layers
        return x + last_drop(run_linear(contract, first[2](run_linear(first[0], x, first[1]))))


class BevEncoderLayer(nn.Module):
    """Temporal self-attention, spatial cross-attention, feed-forward, each followed by a layer norm."""

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 8,
        num_points_temporal: int = 4,
        ffn_dims: int = 512,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(
            [
                TemporalSelfAttention(embed_dims, num_heads, num_points_temporal, dropout),
                SpatialCrossAttention(embed_dims, num_heads, num_levels, num_points, dropout),
            ]
        )
        self.ffns = nn.ModuleList([FeedForward(embed_dims, ffn_dims, dropout)])
        self.norms = nn.ModuleList(LayerNorm(embed_dims) for _ in range(3))

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        value: Tensor,
        spatial_shapes: Shapes,
        reference_points: Tensor,
        visible: Tensor,
        bev_shape: tuple[int, int],
        reference_2d: Tensor,
        previous: Tensor | None = None,
        current: Tensor | None = None,
    ) -> Tensor:
        """``query``, ``query_pos``, ``previous``, ``current`` [B, Q, C], ``value`` [B, N, S, C], ``reference_points``
        [B, N, Q, D, 2], ``visible`` [B, N, Q], ``reference_2d`` [B or 1, Q, 2, 2] -> [B, Q, C].
        """
        query = self.norms[0](self.attentions[0](query, bev_shape, reference_2d, query_pos, previous, current))
        query = self.norms[1](self.attentions[1](query, value, spatial_shapes, reference_points, visible))
        return self.norms[2](self.ffns[0](query))


class BevEncoder(nn.Module):
    """Layers that turn BEV queries and image tokens into a BEV map on ``grid`` of the current BEV frame.

    ``checkpoint_layers`` recomputes each layer in the backward pass instead of keeping its activations.
    """

    def __init__(
        self,
        grid: BevGrid,
        z_range: tuple[float, float],
        num_layers: int = 6,
        num_points_in_pillar: int = 4,
        checkpoint_layers: bool = False,
        shift_current: bool = False,
        **layer: object,
    ) -> None:
        """``shift_current``: the ego motion displaces the current map's reference points too, as the occupancy
        challenge's weights were trained (docs/quirks.md#shift-of-both-grids); ``layer``: arguments of
        ``BevEncoderLayer``.
        """
        super().__init__()
        self.grid = grid
        self.shift_current = shift_current
        self.checkpoint_layers = checkpoint_layers
        self.layers = nn.ModuleList(BevEncoderLayer(**layer) for _ in range(num_layers))
        self.register_buffer("pillars", pillar_points(grid, z_range, num_points_in_pillar), persistent=False)
        self.register_buffer("cells", cell_centres_normalised(grid), persistent=False)

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        value: Tensor,
        spatial_shapes: Shapes,
        image_from_bev: Tensor,
        padded_size: tuple[int, int],
        image_size_px: Tensor,
        previous: Tensor | None = None,
        shift: Tensor | None = None,
        lenses: Tensor | None = None,
    ) -> Tensor:
        """BEV features [B, Q, C] of one frame.

        ``query``, ``query_pos`` [B, Q, C]; ``value`` [B, N, S, C] image tokens, levels of ``spatial_shapes`` (h, w) one
        after the other; ``image_from_bev`` [B, N, 4, 4]; sizes as in ``project_to_images``. Only BEVFormer v1 has
        ``previous`` [B, Q, C], the last frame's BEV, and ``shift`` [B, 2], the (x, y) fraction of the grid by which it
        is displaced. ``lenses`` [B, N, ROW], see Batch.
        """
        uv, visible = project_to_images(self.pillars, image_from_bev, padded_size, image_size_px, lenses)
        visible = visible.any(-1)  # [B, N, Q]: some point of the pillar
        reference_2d = self.cells[None, :, None].expand(1, -1, 2, -1)  # [1, Q, 2, 2]
        current = None
        if previous is not None:
            # every layer gets the initial queries as the current map: docs/quirks.md#initial-queries-as-the-current-map
            current = query
            if shift is not None:
                displaced = self.cells + shift[:, None].to(self.cells.dtype)  # [B, Q, 2]
                own = displaced if self.shift_current else self.cells.expand_as(displaced)
                reference_2d = torch.stack([displaced, own], 2)
        bev_shape = (self.grid.num_y, self.grid.num_x)
        for layer in self.layers:
            where = (spatial_shapes, uv, visible, bev_shape, reference_2d)
            arguments = (query, query_pos, value, *where, previous, current)
            if self.checkpoint_layers and torch.is_grad_enabled():
                query = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                query = layer(*arguments)
        return query
