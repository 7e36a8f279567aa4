"""InternImage for image classification: the two released heads and the variant with date and place as inputs.

InternImage, arXiv 2211.05778 (heads of T to XL; H and G pool two levels by attention). The variant with metadata
follows MetaFormer: A Unified Meta Framework for Fine-Grained Recognition, arXiv 2203.02751, as released for
iNaturalist 2018. Released code MIT; written anew with the released parameter names.

Shape legend: N images, L tokens, D token channels, C channels of the first level.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.registries import MODELS
from .layers import build_activation, build_norm
from .model import InternImage, init_linears

CLIP_DIM, CLIP_HEADS, CLIP_OUT_DIM, CLIP_UPSCALE = 1024, 16, 768, 2  # fixed in the released H and G


class CrossAttention(nn.Module):
    """Multi-head attention [N, Lq, D], [N, L, D], [N, L, D] -> [N, Lq, D_out]."""

    def __init__(self, dim: int, num_heads: int, out_dim: int):
        super().__init__()
        self.num_heads = num_heads
        # Biases apart from the projections, and first: the released layout.
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.k_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.q = nn.Linear(dim, dim, bias=False)
        self.k = nn.Linear(dim, dim, bias=False)
        self.v = nn.Linear(dim, dim, bias=False)
        self.proj = nn.Linear(dim, out_dim)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        def heads(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # [N, L, D] -> [N, heads, L, D/heads]
            return F.linear(x, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

        y = F.scaled_dot_product_attention(
            heads(query, self.q.weight, self.q_bias),
            heads(key, self.k.weight, self.k_bias),
            heads(value, self.v.weight, self.v_bias),
        )
        return self.proj(y.transpose(1, 2).flatten(2))


class AttentionPooling(nn.Module):
    """Pool tokens [N, L, D] to [N, D_out] by attention: the query is their mean, keys and values are all tokens."""

    def __init__(self, dim: int = CLIP_DIM, num_heads: int = CLIP_HEADS, out_dim: int = CLIP_OUT_DIM):
        super().__init__()
        self.norm1_q = build_norm(dim)
        self.norm1_k = build_norm(dim)
        self.norm1_v = build_norm(dim)
        self.cross_dcn = CrossAttention(dim, num_heads, out_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        query = self.norm1_q(tokens.mean(1, keepdim=True))  # [N, 1, D]
        return self.cross_dcn(query, self.norm1_k(tokens), self.norm1_v(tokens)).squeeze(1)


@MODELS.register_module()
class InternImageClassifier(InternImage):
    """Image logits: [N, 3, H, W] -> [N, num_classes].

    Args:
        num_classes: 0 leaves the last layer out and returns the pooled features.
        cls_scale: channels before pooling over channels of the last level (head without clip projector).
        clip_projector: attention pooling over levels 2 and 3 (H, G). H and W must then be multiples of 32.
        trunk: arguments of `InternImage`.
    """

    def __init__(self, *, num_classes: int = 1000, cls_scale: float = 1.5, clip_projector: bool = False, **trunk: Any):
        super().__init__(**trunk)
        self.num_classes = num_classes
        self.clip_projector: AttentionPooling | None = None
        self._add_metadata_heads()
        wide, act_layer = self.channels << 3, trunk.get("act_layer", "GELU")
        if clip_projector:
            self.dcnv3_head_x4 = nn.Sequential(
                nn.Conv2d(wide, CLIP_DIM * CLIP_UPSCALE**2, 1), nn.PixelShuffle(CLIP_UPSCALE)
            )
            self.dcnv3_head_x3 = nn.Conv2d(wide // 2, CLIP_DIM, 1)
            self.clip_projector = AttentionPooling()
            self.fc_norm = build_norm(CLIP_OUT_DIM)
            pooled = CLIP_OUT_DIM
        else:
            pooled = int(wide * cls_scale)
            self.conv_head = nn.Sequential(
                nn.Conv2d(wide, pooled, 1, bias=False),
                build_norm(pooled, "BN", source="NCHW", target="NCHW"),
                build_activation(act_layer),
            )
        self.head = nn.Linear(pooled, num_classes) if num_classes > 0 else nn.Identity()
        for name, child in self.named_children():
            if name not in ("patch_embed", "pos_drop", "levels"):  # the trunk has its weights already
                init_linears(child)

    def _add_metadata_heads(self) -> None:
        """Place of the metadata heads in the order of the released checkpoints; none here."""

    def forward_unpooled(self, images: Tensor) -> Tensor:
        """Images [N, 3, H, W] -> the deepest map [N, 8C, H/32, W/32]; with clip projector tokens of two [N, L, D]."""
        return self.unpooled(self.forward_levels(images), images)

    def unpooled(self, features: list[Tensor], images: Tensor) -> Tensor:
        """The same of the four levels that `forward_levels` gives for ``images``."""
        deepest = features[3].permute(0, 3, 1, 2)  # [N, 8C, H/32, W/32]
        if self.clip_projector is None:
            return deepest
        x4 = self.dcnv3_head_x4(deepest)  # [N, D, 2H/32, 2W/32]
        x3 = self.dcnv3_head_x3(features[2].permute(0, 3, 1, 2))  # [N, D, H/16, W/16]
        if x3.shape != x4.shape:
            height, width = images.shape[-2:]
            raise ValueError(
                f"images of {height}x{width} pixels: this head needs height and width that are multiples of 32"
            )
        return (x3 + x4).flatten(2).transpose(1, 2)  # [N, L, D]

    def pool(self, unpooled: Tensor) -> Tensor:
        """What `forward_unpooled` gives -> [N, D], the input of the last layer."""
        if self.clip_projector is None:
            return self.conv_head(unpooled).mean((2, 3))
        return self.fc_norm(self.clip_projector(unpooled))

    def forward_pooled(self, images: Tensor) -> Tensor:
        """Images [N, 3, H, W] -> pooled features [N, D], the input of the last layer."""
        return self.pool(self.forward_unpooled(images))

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]  # logits, where the base gives features
        return self.head(self.forward_pooled(images))


class ResidualNormLayer(nn.Module):
    """x + two linear layers with ReLU and LayerNorm, over the last axis."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm_fn1 = nn.LayerNorm(channels)
        self.norm_fn2 = nn.LayerNorm(channels)
        self.w1 = nn.Linear(channels, channels)
        self.w2 = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm_fn1(self.w1(x).relu())
        return x + self.norm_fn2(self.w2(y).relu())


@MODELS.register_module()
class InternImageMetaFormer(InternImageClassifier):
    """Image logits plus logits from when and where the picture was taken (iNaturalist 2018)."""

    TEMPORAL_DIM, SPATIAL_DIM, HIDDEN_DIM = 4, 3, 64

    def _add_metadata_heads(self) -> None:
        def encoder(inputs: int) -> nn.Sequential:
            hidden = self.HIDDEN_DIM
            return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.LayerNorm(hidden), ResidualNormLayer(hidden))

        self.meta_head_1 = encoder(self.TEMPORAL_DIM)
        self.meta_head_2 = encoder(self.SPATIAL_DIM)
        self.meta_norm = nn.LayerNorm(2 * self.HIDDEN_DIM, eps=1e-6)
        self.meta_head = nn.Linear(2 * self.HIDDEN_DIM, self.num_classes)

    def forward(  # type: ignore[override]  # takes metadata too
        self, images: Tensor, temporal: Tensor, spatial: Tensor
    ) -> Tensor:
        """Images [N, 3, H, W], temporal [N, 4] (sin and cos of the month, 0, 0), spatial [N, 3] (unit vector)."""
        metadata = torch.cat([self.meta_head_1(temporal), self.meta_head_2(spatial)], -1)  # [N, 128]
        return super().forward(images) + self.meta_head(self.meta_norm(metadata))
