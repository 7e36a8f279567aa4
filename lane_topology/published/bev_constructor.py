"""The BEV map of OpenLane-V2's baselines, built in the EGO frame, with the published keys.

Source: BEVFormer, arXiv 2203.17270, as OpenLane-V2 (arXiv 2304.10440) uses it: three layers, 100 x 200 cells, no
history. Published weights depend on two quirks, kept here: temporal self-attention projects its values twice
(docs/quirks.md#values-projected-twice), and the CAN-bus numbers are absolute world values (``use_can_bus``,
docs/quirks.md#absolute-can-bus), so that a map depends on the city it was driven in.

Shapes: B batch, N cameras, C channels, num_y x num_x BEV cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ...bev.map.attention import TemporalSelfAttention
from ...bev.published.recurrent_map import RecurrentBevMap
from ...core.registries import MODELS

OPENLANE_RANGE = (-51.2, -25.6, -2.3, 51.2, 25.6, 1.7)
"""(x_min, y_min, z_min, x_max, y_max, z_max) metres of the EGO frame."""


class TwiceProjectedSelfAttention(TemporalSelfAttention):
    """Temporal self-attention that projects its values twice, as the published lane weights were trained."""

    def _values(self, value: Tensor) -> Tensor:
        return super()._values(self.value_proj(value))


@MODELS.register_module()
class BevConstructor(RecurrentBevMap):
    """From the pyramid maps of N cameras to a BEV map of the EGO frame; arguments as RecurrentBevMap.

    use_can_bus: add the CAN-bus signal to every query, as the published models do (their keys need it), off for new
    models; rotate_center matters only with a previous map, which only the parity tests have.
    """

    def __init__(
        self,
        pc_range: Sequence[float] = OPENLANE_RANGE,
        bev_size: tuple[int, int] = (100, 200),
        num_cams: int = 7,
        num_layers: int = 3,
        use_can_bus: bool = False,
        embed_dims: int = 256,
        num_heads: int = 8,
        dropout: float = 0.1,
        **bev_map: Any,
    ) -> None:
        layer = dict(embed_dims=embed_dims, num_heads=num_heads, dropout=dropout)
        super().__init__(
            pc_range=pc_range, bev_size=bev_size, num_cams=num_cams, num_layers=num_layers, **layer, **bev_map
        )
        for encoder_layer in self.encoder.layers:
            attention = TwiceProjectedSelfAttention(**layer)
            attention.init_weights()
            attentions: Any = encoder_layer.attentions
            attentions[0] = attention
        if not use_can_bus:
            self.can_bus_mlp = None

    def forward(  # type: ignore[override]  # one frame after the other, not a clip
        self,
        levels: Sequence[Tensor],
        image_from_ego: Tensor,
        image_size_px: Tensor,
        padded_size: tuple[int, int],
        can_bus: Tensor | None = None,
        previous: Tensor | None = None,
        camera_ids: Sequence[int] | None = None,
    ) -> Tensor:
        """The map [B, C, num_y, num_x].

        levels: [B, N, C, h, w], finest first; image_from_ego [B, N, 4, 4]; image_size_px [B, N, 2] (height, width)
        inside padded_size (height, width); can_bus [B, 18], needed with ``use_can_bus``: [0:3] position, [3:7]
        quaternion, [-2] yaw in radians, [-1] in degrees, all of the world; previous [B, C, num_y, num_x]: the last
        frame's map; camera_ids: see BevMap. Raises ConfigError for more cameras than embeddings, ValueError where
        can_bus is missing.
        """
        if self.can_bus_mlp is not None and can_bus is None:
            raise ValueError("a model with use_can_bus needs the CAN-bus numbers of each sample")
        return self.encode_recurrent(levels, image_from_ego, image_size_px, padded_size, can_bus, previous, camera_ids)
