"""BEV maps [B, C, num_y, num_x] and the tokens [B, num_y * num_x, C] in which upstream's numbers were recorded."""

from __future__ import annotations

from torch import Tensor


def tokens_of(bev: Tensor) -> Tensor:
    return bev.flatten(2).transpose(1, 2)


def map_of(tokens: Tensor, num_y: int = 10, num_x: int = 10) -> Tensor:
    return tokens.transpose(1, 2).unflatten(2, (num_y, num_x))
