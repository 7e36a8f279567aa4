"""DETR head of OpenLane-V2's small baseline, for lanes on the BEV map and for traffic elements in the front image.

Source: DETR, arXiv 2005.12872, as in OpenLane-V2's released R18 baseline. Keys are those of the published model
(prefixes ``lc_head.`` and ``te_head.``).

Shapes: B batch, C channels, S cells, Q queries, A classes, D numbers of a code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...backbone.internimage.layers import LayerNorm
from ...bev.map.encoder import FeedForward
from ...core.registries import MODELS
from .element_head import sine_positions


@dataclass(frozen=True)
class DetrOutputs:
    logits: Tensor
    """[B, Q, A]"""
    codes: Tensor
    """[B, Q, D] in (0, 1)"""
    states: Tensor
    """[B, Q, C]"""


class Attention(nn.Module):
    """Multi-head attention with a residual; positions are added to queries and keys, not to values."""

    def __init__(self, embed_dims: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(embed_dims, num_heads, dropout=dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, query: Tensor, query_pos: Tensor, value: Tensor, value_pos: Tensor, padding: Tensor | None
    ) -> Tensor:
        answer = self.attn(query + query_pos, value + value_pos, value, key_padding_mask=padding, need_weights=False)[0]
        return query + self.dropout(answer)


class Layer(nn.Module):
    """Self-attention, in the decoder cross-attention too, and feed-forward, each followed by a norm."""

    def __init__(self, embed_dims: int, num_heads: int, ffn_dims: int, dropout: float, crosses: bool) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(Attention(embed_dims, num_heads, dropout) for _ in range(1 + crosses))
        self.ffns = nn.ModuleList([FeedForward(embed_dims, ffn_dims, dropout)])
        self.norms = nn.ModuleList(LayerNorm(embed_dims) for _ in range(2 + crosses))

    def forward(
        self, query: Tensor, query_pos: Tensor, memory: Tensor | None, memory_pos: Tensor | None, padding: Tensor | None
    ) -> Tensor:
        """``padding`` [B, S]: cells of the memory (of the query itself where there is none) that show nothing."""
        alone = memory is None
        query = self.norms[0](self.attentions[0](query, query_pos, query, query_pos, padding if alone else None))
        if not alone:
            query = self.norms[1](self.attentions[1](query, query_pos, memory, memory_pos, padding))
        return self.norms[-1](self.ffns[0](query))


class _Layers(nn.Module):
    """Layers under the key ``layers``, behind the last of them a norm where the published model has one."""

    def __init__(self, layers: list[nn.Module], channels: int | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        if channels is not None:
            self.post_norm = LayerNorm(channels)


class _Transformer(nn.Module):
    def __init__(
        self, embed_dims: int, num_layers: tuple[int, int], num_heads: int, ffn_dims: int, dropout: float
    ) -> None:
        super().__init__()
        self.encoder = _Layers([Layer(embed_dims, num_heads, ffn_dims, dropout, False) for _ in range(num_layers[0])])
        self.decoder = _Layers(
            [Layer(embed_dims, num_heads, ffn_dims, dropout, True) for _ in range(num_layers[1])], embed_dims
        )


class _PlainFeedForward(nn.Module):
    """Two linear layers without a residual, keys as FeedForward's."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        first = nn.Sequential(nn.Linear(channels, channels), nn.ReLU())
        self.layers = nn.Sequential(first, nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@MODELS.register_module()
class DetrHead(nn.Module):
    """in_channels: of the map; num_classes: A; code_size: D; num_layers: of encoder and decoder."""

    def __init__(
        self,
        in_channels: int = 128,
        embed_dims: int = 64,
        num_query: int = 50,
        num_classes: int = 1,
        code_size: int = 15,
        num_layers: tuple[int, int] = (1, 1),
        num_heads: int = 4,
        ffn_dims: int = 512,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.transformer = _Transformer(embed_dims, num_layers, num_heads, ffn_dims, dropout)
        for parameter in self.transformer.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        self.input_proj = nn.Conv2d(in_channels, embed_dims, 1)
        self.fc_cls = nn.Linear(embed_dims, num_classes)
        self.reg_ffn = _PlainFeedForward(embed_dims)
        self.fc_reg = nn.Linear(embed_dims, code_size)
        self.query_embedding = nn.Embedding(num_query, embed_dims)

    def forward(self, maps: Tensor, valid: Tensor | None = None) -> DetrOutputs:
        """From maps [B, in_channels, h, w]; valid [B, h, w] bool: cells that show something (default: all)."""
        if valid is None:
            valid = maps.new_ones(len(maps), *maps.shape[-2:], dtype=torch.bool)
        memory = self.input_proj(maps).flatten(2).transpose(1, 2)  # [B, S, C]
        positions = sine_positions(valid, memory.shape[-1] // 2).flatten(2).transpose(1, 2).to(memory.dtype)
        padding = ~valid.flatten(1)
        for layer in self.transformer.encoder.layers:
            memory = layer(memory, positions, None, None, padding)
        query_pos = self.query_embedding.weight.expand(len(maps), -1, -1)
        query = torch.zeros_like(query_pos)
        for layer in self.transformer.decoder.layers:
            query = layer(query, query_pos, memory, positions, padding)
        states = self.transformer.decoder.post_norm(query)
        codes = self.fc_reg(self.reg_ffn(states).relu()).float().sigmoid()
        return DetrOutputs(self.fc_cls(states).float(), codes, states)
