"""The BEVFormer transformer: image features to a BEV map, BEV maps over time to one, and the map to object queries.

Source: BEVFormer, arXiv 2203.17270; BEVFormer v2, arXiv 2211.10439; spec/bevformer.md sections 5, 6, 10 and 12.

Shapes: B batch, T frames, N cameras, L feature levels, C channels, H = num_y * num_x BEV cells, Q object queries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...geometry import BevGrid
from ..boxes.decoder import ObjectDecoder
from .attention import DeformableAttention, SpatialCrossAttention
from .encoder import BevEncoder
from .temporal import ResNetFusion, ego_shift_v1, fill_missing, rotate_bev_v1, warp_bev


@MODELS.register_module()
class BevTransformer(nn.Module):
    """BEVFormer v2's transformer; every size is an argument, the defaults are those of the published models.

    History is explicit: ``encode`` makes the map of one frame from that frame's images alone, ``fuse`` takes the maps
    of all frames. Frames can be encoded together by folding T into the batch.
    """

    def __init__(
        self,
        point_range: Sequence[float] = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0),
        bev_size: tuple[int, int] = (200, 200),
        embed_dims: int = 256,
        num_heads: int = 8,
        num_cams: int = 6,
        num_levels: int = 4,
        num_level_embeds: int | None = None,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        ffn_dims: int = 512,
        num_points_in_pillar: int = 4,
        num_points_spatial: int = 8,
        num_points_temporal: int = 4,
        num_points_decoder: int = 4,
        dropout: float = 0.1,
        frames: Sequence[int] = (0,),
        fusion_channels: int = 512,
        fusion_layers: int = 3,
        checkpoint_encoder: bool = False,
        shift_current: bool = False,
    ) -> None:
        """``point_range`` (x_min, y_min, z_min, x_max, y_max, z_max) metres of the LIDAR frame; ``bev_size`` (num_y,
        num_x) cells; ``num_level_embeds`` rows of the level embedding where a checkpoint has more than ``num_levels``
        (v1 small and tiny); ``decoder_layers`` 0: no object queries, a map alone; ``frames`` ascending time offsets of
        the fused maps, 0 among them (only (0,): no fusion); ``shift_current`` see ``BevEncoder``.
        """
        super().__init__()
        x_min, y_min, z_min, x_max, y_max, z_max = self.point_range = tuple(map(float, point_range))
        self.grid = BevGrid(x_min, y_min, x_max, y_max, num_x=bev_size[1], num_y=bev_size[0])
        self.embed_dims = embed_dims
        self.frames = tuple(frames)
        if 0 not in self.frames or list(self.frames) != sorted(set(self.frames)):
            raise ValueError(
                f"frames {self.frames} must be ascending time offsets with 0, the current frame, among them"
            )
        self.level_embeds = nn.Parameter(torch.empty(num_level_embeds or num_levels, embed_dims))
        self.cams_embeds = nn.Parameter(torch.empty(num_cams, embed_dims))
        self.encoder = BevEncoder(
            self.grid,
            (z_min, z_max),
            encoder_layers,
            num_points_in_pillar,
            checkpoint_encoder,
            shift_current,
            embed_dims=embed_dims,
            num_heads=num_heads,
            num_levels=num_levels,
            num_points=num_points_spatial,
            num_points_temporal=num_points_temporal,
            ffn_dims=ffn_dims,
            dropout=dropout,
        )
        if decoder_layers:
            self.decoder = ObjectDecoder(
                decoder_layers,
                embed_dims=embed_dims,
                num_heads=num_heads,
                num_points=num_points_decoder,
                ffn_dims=ffn_dims,
                dropout=dropout,
            )
            self.reference_points = nn.Linear(embed_dims, 3)
        if len(self.frames) > 1:
            self.fusion = ResNetFusion(len(self.frames) * embed_dims, embed_dims, fusion_channels, fusion_layers)
        self.init_weights()

    def init_weights(self) -> None:
        """Xavier for all matrices, also for the level and camera embeddings (Q14); then the attentions' own scheme."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, (DeformableAttention, SpatialCrossAttention)):
                module.init_weights()
        if hasattr(self, "reference_points"):
            nn.init.zeros_(self.reference_points.bias)

    def image_tokens(
        self, feats: Sequence[Tensor], camera_ids: Sequence[int] | None = None
    ) -> tuple[Tensor, list[tuple[int, int]]]:
        """Tokens [B, N, S, C] of all levels [B, N, C, h, w], with camera and level embeddings, and the levels' shapes.

        ``camera_ids``: which row of the camera embedding belongs to each of the N cameras; default 0 .. N-1.
        Raises ValueError where there are more cameras than rows.
        """
        num_cams = feats[0].shape[1]
        if camera_ids is None and num_cams > len(self.cams_embeds):
            raise ValueError(f"{num_cams} cameras, but the model has embeddings for {len(self.cams_embeds)} (num_cams)")
        cameras = self.cams_embeds[:num_cams] if camera_ids is None else self.cams_embeds[list(camera_ids)]
        tokens = [
            f.flatten(3).transpose(2, 3) + (cameras[:, None] + self.level_embeds[i]).to(f.dtype)  # [B, N, h * w, C]
            for i, f in enumerate(feats)
        ]
        return torch.cat(tokens, 2), [(f.shape[3], f.shape[4]) for f in feats]

    def encode(
        self,
        feats: Sequence[Tensor],
        image_from_lidar: Tensor,
        image_size_px: Tensor,
        padded_size: tuple[int, int],
        bev_query: Tensor,
        bev_pos: Tensor,
        bda: Tensor | None = None,
        camera_ids: Sequence[int] | None = None,
    ) -> Tensor:
        """The BEV map [B, H, C] of one frame on the current LIDAR frame's grid.

        ``feats`` L x [B, N, C, h, w]; ``image_from_lidar`` [B, N, 4, 4] from the current LIDAR frame into these images;
        ``image_size_px`` [B, N, 2] (height, width) inside ``padded_size`` (height, width); ``bev_query``, ``bev_pos``
        [H, C] or [B or 1, H, C]; ``bda`` [B, 3, 3] warps the result into the augmented frame (training).
        """
        tokens, shapes = self.image_tokens(feats, camera_ids)
        query = bev_query.expand(len(tokens), -1, -1)
        bev = self.encoder(
            query, bev_pos.expand_as(query), tokens, shapes, image_from_lidar, padded_size, image_size_px
        )
        return bev if bda is None else warp_bev(bev, bda, self.grid)

    def fuse(self, bevs: Sequence[Tensor | None], valid: Tensor) -> Tensor:
        """One map [B, H, C] from those of ``frames``; the current map itself where there is only one frame.

        ``bevs`` T x [B, H, C], None where no sample has the frame; ``valid`` [B, T] bool, see ``fill_missing``.
        """
        if len(bevs) != len(self.frames):
            raise ValueError(f"{len(bevs)} BEV maps for the {len(self.frames)} frames {self.frames}")
        if len(self.frames) == 1:
            return bevs[0]
        filled = fill_missing(bevs, valid, self.frames.index(0))
        maps = [bev.transpose(1, 2).unflatten(2, (self.grid.num_y, self.grid.num_x)) for bev in filled]
        return self.fusion(torch.cat(maps, 1))

    def initial_references(self, query_pos: Tensor) -> Tensor:
        """Reference points [..., 3] in [0, 1] of query positions [..., C]; in float32 under autocast too, since half
        precision is off by a third of a cell of 200.
        """
        with torch.autocast(query_pos.device.type, enabled=False):
            return self.reference_points(query_pos.to(self.reference_points.weight.dtype)).sigmoid()

    def decode(
        self,
        bev: Tensor,
        query: Tensor,
        query_pos: Tensor,
        reference_points: Tensor,
        reg_branches: Sequence[Callable[[Tensor], Tensor]] | None = None,
        groups: int = 1,
        valid: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Hidden states [layers, B, Q, C] and reference points [layers + 1, B, Q, 3] in [0, 1], the given ones first.

        ``bev`` [B, H, C]; ``query`` (content), ``query_pos`` [B, Q, C]; ``reference_points`` [B, Q, 3]; the queries of
        all ``groups`` (Group DETR, training) one group after the other, Q / groups each; ``valid`` [B, Q / groups] is
        False for padding, to which no query attends. See ``ObjectDecoder``.
        """
        shape = (self.grid.num_y, self.grid.num_x)
        return self.decoder(query, query_pos, reference_points, bev, shape, reg_branches, groups, valid)


@MODELS.register_module()
class BevTransformerV1(BevTransformer):
    """BEVFormer v1's transformer: the previous frame's BEV map enters the temporal self-attention of every layer."""

    def __init__(self, rotate_center: tuple[int, int] = (100, 100), **transformer: object) -> None:
        """``rotate_center``: cell (x, y) about which the previous map is rotated (Q18, see ``rotate_bev_v1``)."""
        super().__init__(**transformer)
        self.rotate_center = tuple(rotate_center)
        dims = self.embed_dims
        self.can_bus_mlp = nn.Sequential(
            nn.Linear(18, dims // 2), nn.ReLU(inplace=True), nn.Linear(dims // 2, dims), nn.ReLU(inplace=True)
        )
        self.can_bus_mlp.add_module("norm", nn.LayerNorm(dims))
        for layer in (self.can_bus_mlp[0], self.can_bus_mlp[2]):
            nn.init.xavier_uniform_(layer.weight)

    def init_weights(self) -> None:
        super().init_weights()
        nn.init.normal_(self.level_embeds)  # v1 alone keeps the normal embeddings (Q14)
        nn.init.normal_(self.cams_embeds)

    def encode_recurrent(
        self,
        feats: Sequence[Tensor],
        image_from_lidar: Tensor,
        image_size_px: Tensor,
        padded_size: tuple[int, int],
        bev_query: Tensor,
        bev_pos: Tensor,
        can_bus: Tensor,
        previous: Tensor | None = None,
        camera_ids: Sequence[int] | None = None,
    ) -> Tensor:
        """The BEV map [B, H, C] of one frame, given that of the frame before (None at the start of a scene).

        ``can_bus`` [B, 18] as upstream's: [0:3] translation since the previous frame in metres, [-2] heading in
        radians, [-1] turn since the previous frame in degrees. The other arguments are those of ``encode``.
        """
        tokens, shapes = self.image_tokens(feats, camera_ids)
        signal = self.can_bus_mlp(can_bus.to(bev_query.dtype))[:, None]  # [B, 1, C]
        query = bev_query.expand(len(tokens), -1, -1) + signal
        if previous is not None:
            previous = rotate_bev_v1(previous, can_bus[:, -1], self.grid, self.rotate_center)
        return self.encoder(
            query,
            bev_pos.expand_as(query),
            tokens,
            shapes,
            image_from_lidar,
            padded_size,
            image_size_px,
            previous,
            ego_shift_v1(can_bus, self.grid),
        )
