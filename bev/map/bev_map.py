"""A BEV map from image features: learned cell queries, a pillar of points per cell, and fusion over time.

Source: BEVFormer, arXiv 2203.17270; BEVFormer v2, arXiv 2211.10439.

Shapes: B batch, T frames, N cameras, L feature levels, C channels, Q = num_y * num_x BEV cells, S image tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...core.batch import Batch, BevFeatures
from ...core.cameras import embedding_rows
from ...core.errors import ConfigError
from ...core.registries import MODELS
from ...geometry import BevGrid
from .attention import DeformableAttention, SpatialCrossAttention
from .encoder import BevEncoder
from .history import evaluation_mode
from .temporal import ResNetFusion, effective, fill_missing, warp_bev


class LearnedPositionalEncoding(nn.Module):
    """A learned vector per column beside a learned vector per row."""

    def __init__(self, num_feats: int, num_rows: int, num_columns: int) -> None:
        super().__init__()
        self.row_embed = nn.Embedding(num_rows, num_feats)
        self.col_embed = nn.Embedding(num_columns, num_feats)

    def forward(self) -> Tensor:
        """[num_rows * num_columns, 2 * num_feats], row by row."""
        rows, columns = self.row_embed.weight, self.col_embed.weight
        shape = (len(rows), len(columns), -1)
        return torch.cat([columns[None].expand(*shape), rows[:, None].expand(*shape)], -1).flatten(0, 1)


def init_attention_module(module: nn.Module) -> None:
    """Xavier for all matrices, then the attentions' own scheme, as the release initialises its transformers."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    for part in module.modules():
        if isinstance(part, (DeformableAttention, SpatialCrossAttention)):
            part.init_weights()


@MODELS.register_module()
class BevMap(nn.Module):
    """The BEV map that every head reads; every size is an argument, the defaults are those of the published models.

    pc_range: (x_min, y_min, z_min, x_max, y_max, z_max) metres of the BEV frame. bev_size: (num_y, num_x) cells.
    embed_dims: C. num_cams, num_levels: cameras and pyramid levels, each with an embedding of its own.
    num_level_embeds: rows of the level embedding where a checkpoint has more than num_levels (v1 small and tiny).
    frames: ascending time offsets of the maps that are fused, 0 (now) among them; (0,): no fusion.
    checkpoint_encoder: recompute the encoder's layers in the backward pass: less memory, a third more time.
    camera_ids: which row of the camera embedding belongs to each camera, where a rig has fewer cameras than the
        checkpoint, or its own order; default: the six of nuScenes and the seven of Argoverse 2 by name where there are
        as many embeddings, whatever their order and number, others by position (core.cameras.embedding_rows).
    shift_current: see BevEncoder.

    History is explicit: ``encode_frame`` makes the map of one frame from that frame's images alone, ``fuse`` takes the
    maps of all frames.
    """

    def __init__(
        self,
        pc_range: Sequence[float] = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0),
        bev_size: tuple[int, int] = (200, 200),
        embed_dims: int = 256,
        num_heads: int = 8,
        num_cams: int = 6,
        num_levels: int = 4,
        num_level_embeds: int | None = None,
        num_layers: int = 6,
        ffn_dims: int = 512,
        num_points_in_pillar: int = 4,
        num_points_spatial: int = 8,
        num_points_temporal: int = 4,
        dropout: float = 0.1,
        frames: Sequence[int] = (0,),
        fusion_channels: int = 512,
        fusion_layers: int = 3,
        checkpoint_encoder: bool = False,
        shift_current: bool = False,
        camera_ids: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        x_min, y_min, z_min, x_max, y_max, z_max = self.pc_range = tuple(map(float, pc_range))
        num_y, num_x = bev_size
        self.grid = BevGrid(x_min, y_min, x_max, y_max, num_x=num_x, num_y=num_y)
        self.embed_dims, self.num_levels, self.camera_ids = embed_dims, num_levels, camera_ids
        self.frames = tuple(frames)
        if 0 not in self.frames or list(self.frames) != sorted(set(self.frames)):
            raise ValueError(
                f"frames {self.frames} must be ascending time offsets with 0, the current frame, among them"
            )
        self.bev_embedding = nn.Embedding(num_y * num_x, embed_dims)
        self.positional_encoding = LearnedPositionalEncoding(embed_dims // 2, num_y, num_x)
        self.level_embeds = nn.Parameter(torch.empty(num_level_embeds or num_levels, embed_dims))
        self.cams_embeds = nn.Parameter(torch.empty(num_cams, embed_dims))
        self.encoder = BevEncoder(
            self.grid,
            (z_min, z_max),
            num_layers,
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
        if len(self.frames) > 1:
            self.fusion = ResNetFusion(len(self.frames) * embed_dims, embed_dims, fusion_channels, fusion_layers)
        self.init_weights()

    def init_weights(self) -> None:
        """As the release: Xavier also for the level and camera embeddings; the cells' queries stay normal."""
        init_attention_module(self.encoder)
        for embeds in (self.level_embeds, self.cams_embeds):
            nn.init.xavier_uniform_(embeds)
        if len(self.frames) > 1:
            init_attention_module(self.fusion)

    def image_tokens(
        self, feats: Sequence[Tensor], camera_ids: Sequence[int] | None = None
    ) -> tuple[Tensor, list[tuple[int, int]]]:
        """Tokens [B, N, S, C] of all levels [B, N, C, h, w], with camera and level embeddings, and the levels' shapes.

        Raises ConfigError where there are more cameras than the model has embeddings for.
        """
        num_cams = feats[0].shape[1]
        chosen = self.camera_ids if camera_ids is None else camera_ids
        rows = list(range(num_cams) if chosen is None else chosen)[:num_cams]
        self.check_cameras(num_cams, None if chosen is None else rows)
        in_place = rows == list(range(num_cams))
        cameras = self.cams_embeds[:num_cams] if in_place else self.cams_embeds[rows]
        tokens = [
            f.flatten(3).transpose(2, 3) + (cameras[:, None] + self.level_embeds[i]).to(f.dtype)  # [B, N, h * w, C]
            for i, f in enumerate(feats)
        ]
        return torch.cat(tokens, 2), [(f.shape[3], f.shape[4]) for f in feats]

    def check_cameras(self, num_cams: int, rows: Sequence[int] | None = None) -> None:
        """Raises ConfigError where there are more cameras than embeddings; ``rows`` of them, where not 0, 1, ..."""
        if rows is None:
            rows = range(num_cams) if self.camera_ids is None else self.camera_ids[:num_cams]
        if len(rows) < num_cams or max(rows) >= len(self.cams_embeds):
            known = min(len(rows), len(self.cams_embeds))
            raise ConfigError(
                f"{num_cams} cameras, but the model has embeddings for {known}: build it with "
                f"bev_map.num_cams={num_cams} (--fine-tune takes weights of another number), or choose cameras with "
                "the dataset's camera_names"
            )

    def embedding_rows(self, batch: Batch) -> tuple[int, ...] | None:
        """Rows of the camera embedding for a batch's cameras; None: ``camera_ids``, or by position.

        Raises ConfigError where the samples' cameras need different rows.
        """
        if self.camera_ids is not None or not batch.camera_names or not all(batch.camera_names):
            return None
        rows = {embedding_rows(names, len(self.cams_embeds)) for names in batch.camera_names}
        if len(rows) > 1:
            known = "; ".join(sorted({", ".join(names) for names in batch.camera_names}))
            raise ConfigError(
                f"the batch mixes rigs whose cameras stand in different places: {known}; batch them apart"
            )
        (only,) = rows
        return only if len(only) == batch.images.shape[2] else None

    def as_map(self, tokens: Tensor) -> Tensor:
        """[B, Q, C] -> [B, C, num_y, num_x]."""
        return tokens.transpose(1, 2).unflatten(2, (self.grid.num_y, self.grid.num_x))

    def encode_frame(
        self,
        feats: Sequence[Tensor],
        image_from_bev: Tensor,
        image_size_px: Tensor,
        padded_size: tuple[int, int],
        bda: Tensor | None = None,
        camera_ids: Sequence[int] | None = None,
        lenses: Tensor | None = None,
    ) -> Tensor:
        """The map [B, C, num_y, num_x] of one frame on the current BEV frame's grid.

        ``feats`` L x [B, N, C, h, w]; ``image_from_bev`` [B, N, 4, 4] from the current BEV frame into these images;
        ``image_size_px`` [B, N, 2] (height, width) inside ``padded_size`` (height, width); ``bda`` [B, 3, 3] warps the
        result into the augmented frame (training); ``lenses`` [B, N, ROW] of these images, see Batch.
        """
        tokens, shapes = self.image_tokens(feats, camera_ids)
        query = self.bev_embedding.weight.expand(len(tokens), -1, -1)
        bev_pos = self.positional_encoding().expand_as(query)
        where = image_from_bev, padded_size, image_size_px
        bev = self.as_map(self.encoder(query, bev_pos, tokens, shapes, *where, lenses=lenses))
        return bev if bda is None else warp_bev(bev, bda, self.grid)

    def fuse(self, bevs: Sequence[Tensor | None], valid: Tensor) -> Tensor:
        """One map from those of ``frames``; the current map itself where there is only one frame.

        ``bevs`` T x [B, C, num_y, num_x], None where no sample has the frame; ``valid`` [B, T] bool, see
        ``fill_missing``.
        """
        if len(bevs) != len(self.frames):
            raise ValueError(f"{len(bevs)} BEV maps for the {len(self.frames)} frames {self.frames}")
        if len(self.frames) == 1:
            (current,) = bevs
            assert current is not None  # every sample has the current frame
            return current
        return self.fusion(torch.cat(fill_missing(bevs, valid, self.frames.index(0)), 1))

    def forward(self, clip: Sequence[Sequence[Tensor]], batch: Batch, augmented: bool) -> BevFeatures:
        """The current frames' map with history fused in.

        ``clip``: T frames of levels [B, N, C, h, w]; ``augmented``: apply the batch's BEV augmentation. Frames other
        than the current one carry no gradient and are encoded as in evaluation (released training recipe).
        """
        padded, bda = tuple(batch.images.shape[-2:]), effective(batch.bda) if augmented else None
        rows = self.embedding_rows(batch)
        bevs: list[Tensor | None] = []
        for t, levels in enumerate(clip):
            # a compiled graph has one path: it encodes missing frames too, and `fuse` replaces them
            if t != batch.current and not torch.compiler.is_compiling() and not batch.frame_valid[:, t].any():
                bevs.append(None)
                continue
            seen = batch.image_from_bev[:, t], batch.image_size_px[:, t]
            lenses = None if batch.lenses is None else batch.lenses[:, t]
            arguments = levels[: self.num_levels], *seen, padded, bda, rows, lenses
            if t == batch.current:
                bevs.append(self.encode_frame(*arguments))
            else:
                with torch.no_grad(), evaluation_mode(self):
                    bevs.append(self.encode_frame(*arguments))
        return BevFeatures(self.fuse(bevs, batch.frame_valid), self.grid)
