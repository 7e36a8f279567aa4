"""BEVFormer v1's BEV map: the previous frame's map enters the temporal self-attention of every layer.

Source: BEVFormer, arXiv 2203.17270; behaviour of the release.

Shapes: B batch, N cameras, C channels, num_y x num_x BEV cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ...core.registries import MODELS
from ..map.bev_map import BevMap
from .ego_motion import ego_shift, rotate_bev


@MODELS.register_module()
class RecurrentBevMap(BevMap):
    """Arguments as BevMap; rotate_center: cell (x, y) about which the previous map is rotated, see ``rotate_bev``."""

    def __init__(self, rotate_center: tuple[int, int] = (100, 100), **bev_map: Any) -> None:
        super().__init__(**bev_map)
        self.rotate_center = tuple(rotate_center)
        dims = self.embed_dims
        self.can_bus_mlp: nn.Sequential | None = nn.Sequential(
            nn.Linear(18, dims // 2), nn.ReLU(inplace=True), nn.Linear(dims // 2, dims), nn.ReLU(inplace=True)
        )
        self.can_bus_mlp.add_module("norm", nn.LayerNorm(dims))
        for layer in (self.can_bus_mlp[0], self.can_bus_mlp[2]):
            nn.init.xavier_uniform_(layer.weight)

    def init_weights(self) -> None:
        super().init_weights()
        nn.init.normal_(self.level_embeds)  # v1 alone keeps the normal embeddings
        nn.init.normal_(self.cams_embeds)

    def encode_recurrent(
        self,
        feats: Sequence[Tensor],
        image_from_own: Tensor,
        image_size_px: Tensor,
        padded_size: tuple[int, int],
        can_bus: Tensor | None,
        previous: Tensor | None = None,
        camera_ids: Sequence[int] | None = None,
    ) -> Tensor:
        """The map [B, C, num_y, num_x] of one frame, given that of the frame before (None at the start of a scene).

        ``image_from_own`` [B, N, 4, 4] from the frame's own frame of the map; ``can_bus`` [B, 18] as upstream's: [0:3]
        translation since the previous frame in metres, [-2] heading in radians, [-1] turn since the previous frame in
        degrees; None: no signal, and the previous map is taken where it lies. Others: those of ``encode_frame``.
        """
        tokens, shapes = self.image_tokens(feats, camera_ids)
        query = self.bev_embedding.weight.expand(len(tokens), -1, -1)
        if self.can_bus_mlp is not None:
            query = query + self.can_bus_mlp(can_bus.to(query.dtype))[:, None]
        shift = None
        if previous is not None:
            if can_bus is not None:
                previous = rotate_bev(previous, can_bus[:, -1], self.rotate_center)
                shift = ego_shift(can_bus, self.grid)
            previous = previous.flatten(2).transpose(1, 2)  # [B, Q, C]
        return self.as_map(
            self.encoder(
                query,
                self.positional_encoding().expand_as(query),
                tokens,
                shapes,
                image_from_own,
                padded_size,
                image_size_px,
                previous,
                shift,
            )
        )
