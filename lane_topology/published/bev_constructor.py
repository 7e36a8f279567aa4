"""The BEV map of OpenLane-V2's baselines, built in the EGO frame, with the published keys.

Source: BEVFormer, arXiv 2203.17270, as OpenLane-V2 uses it (spec/lane_topology.md section 2): three layers, 100 x 200
cells, no history. Published weights depend on two quirks, kept here: temporal self-attention projects its values twice,
and the CAN-bus numbers are absolute world values (``use_can_bus``), so that a map depends on the city it was driven in.

Shapes: B batch, N cameras, C channels, H = num_y * num_x BEV cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...bev.boxes.head import LearnedPositionalEncoding
from ...bev.map.attention import DeformableAttention, SpatialCrossAttention, TemporalSelfAttention
from ...bev.map.encoder import BevEncoder
from ...bev.map.temporal import ego_shift_v1, rotate_bev_v1
from ...geometry import BevGrid

OPENLANE_RANGE = (-51.2, -25.6, -2.3, 51.2, 25.6, 1.7)
"""(x_min, y_min, z_min, x_max, y_max, z_max) metres of the EGO frame."""


class TwiceProjectedSelfAttention(TemporalSelfAttention):
    """Temporal self-attention that projects its values twice, as the published lane weights were trained."""

    def _values(self, value: Tensor) -> Tensor:
        return super()._values(self.value_proj(value))


@MODELS.register_module()
class BevConstructor(nn.Module):
    """From the pyramid maps of N cameras to a BEV map of the EGO frame.

    point_range: metres; bev_size: (num_y, num_x) cells; use_can_bus: add the CAN-bus signal to every query, as the
    published models do (their keys need it), off for new models; rotate_center: cell (x, y) about which a previous map
    is rotated (only the parity tests have one).
    """

    def __init__(
        self,
        point_range: Sequence[float] = OPENLANE_RANGE,
        bev_size: tuple[int, int] = (100, 200),
        embed_dims: int = 256,
        num_heads: int = 8,
        num_cams: int = 7,
        num_levels: int = 4,
        num_layers: int = 3,
        ffn_dims: int = 512,
        num_points_in_pillar: int = 4,
        num_points: int = 8,
        dropout: float = 0.1,
        use_can_bus: bool = False,
        rotate_center: tuple[int, int] = (100, 100),
    ) -> None:
        super().__init__()
        x_min, y_min, z_min, x_max, y_max, z_max = self.point_range = tuple(map(float, point_range))
        num_y, num_x = bev_size
        self.grid = BevGrid(x_min, y_min, x_max, y_max, num_x, num_y)
        self.rotate_center = tuple(rotate_center)
        self.level_embeds = nn.Parameter(torch.randn(num_levels, embed_dims))
        self.cams_embeds = nn.Parameter(torch.randn(num_cams, embed_dims))
        layer = dict(embed_dims=embed_dims, num_heads=num_heads, dropout=dropout)
        self.encoder = BevEncoder(
            self.grid,
            (z_min, z_max),
            num_layers,
            num_points_in_pillar,
            num_levels=num_levels,
            num_points=num_points,
            ffn_dims=ffn_dims,
            **layer,
        )
        for parameter in self.encoder.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for encoder_layer in self.encoder.layers:
            encoder_layer.attentions[0] = TwiceProjectedSelfAttention(**layer)
        for module in self.encoder.modules():
            if isinstance(module, (DeformableAttention, SpatialCrossAttention)):
                module.init_weights()
        self.positional_encoding = LearnedPositionalEncoding(embed_dims // 2, num_y, num_x)
        self.bev_embedding = nn.Embedding(num_y * num_x, embed_dims)
        self.can_bus_mlp: nn.Sequential | None = None
        if use_can_bus:
            self.can_bus_mlp = nn.Sequential(
                nn.Linear(18, embed_dims // 2), nn.ReLU(), nn.Linear(embed_dims // 2, embed_dims), nn.ReLU()
            )
            self.can_bus_mlp.add_module("norm", nn.LayerNorm(embed_dims))

    def forward(
        self,
        levels: Sequence[Tensor],
        image_from_ego: Tensor,
        image_size_px: Tensor,
        padded_size: tuple[int, int],
        can_bus: Tensor | None = None,
        previous: Tensor | None = None,
    ) -> Tensor:
        """The map [B, H, C].

        levels: [B, N, C, h, w], finest first; image_from_ego [B, N, 4, 4]; image_size_px [B, N, 2] (height, width)
        inside padded_size (height, width); can_bus [B, 18], needed with ``use_can_bus``: [0:3] position, [3:7]
        quaternion, [-2] yaw in radians, [-1] in degrees, all of the world; previous [B, H, C]: the last frame's map.
        Raises ValueError for more cameras than embeddings, and where can_bus is missing.
        """
        num_cams = levels[0].shape[1]
        if num_cams > len(self.cams_embeds):
            raise ValueError(f"{num_cams} cameras, but the model has embeddings for {len(self.cams_embeds)} (num_cams)")
        tokens = torch.cat(
            [
                level.flatten(3).transpose(2, 3) + (self.cams_embeds[:num_cams, None] + embed).to(level.dtype)
                for level, embed in zip(levels, self.level_embeds)
            ],
            2,
        )  # [B, N, S, C]
        query = self.bev_embedding.weight.expand(len(tokens), -1, -1)
        if self.can_bus_mlp is not None:
            if can_bus is None:
                raise ValueError("a model with use_can_bus needs the CAN-bus numbers of each sample")
            query = query + self.can_bus_mlp(can_bus.to(query.dtype))[:, None]
        shift = None
        if previous is not None and can_bus is not None:
            previous = rotate_bev_v1(previous, can_bus[:, -1], self.grid, self.rotate_center)
            shift = ego_shift_v1(can_bus, self.grid)
        return self.encoder(
            query,
            self.positional_encoding().expand_as(query),
            tokens,
            [tuple(level.shape[-2:]) for level in levels],
            image_from_ego,
            padded_size,
            image_size_px,
            previous,
            shift,
        )
