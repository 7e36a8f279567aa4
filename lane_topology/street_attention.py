"""A street (SD) map as tokens: cells of the lanes' map attend to the lines of the streets around the car.

Source: SMERF, arXiv 2311.04079. There the tokens enter every layer of the BEV encoder; here they enter the lane head's
own map once, so that boxes and voxels cannot change, and without the encoder between the tokens.

Shapes: B batch, C channels, s lines of a sample, T tokens (the most lines of any sample, and one), P points of a line,
F numbers per coordinate, num_y x num_x cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..bev.boxes.proposals import sine_embedding
from ..core.street_maps import STREET_KINDS, StreetLines
from ..geometry import BevGrid


class StreetAttention(nn.Module):
    """Adds to each cell's features what the streets say; exactly nothing at the start.

    channels: C; grid: of the cells, EGO frame; num_points: P; num_feats: F. One more token says "no street": a sample
    without a map has it alone, so that no cell ever attends to nothing.
    """

    def __init__(
        self, channels: int, grid: BevGrid, num_heads: int = 4, num_points: int = 11, num_feats: int = 16
    ) -> None:
        super().__init__()
        self.num_points, self.num_feats = num_points, num_feats
        self.line = nn.Linear(2 * num_feats * num_points, channels)
        self.kind = nn.Embedding(len(STREET_KINDS), channels)
        self.token = nn.Sequential(nn.ReLU(), nn.Linear(channels, channels))
        self.none = nn.Parameter(torch.randn(channels) * 0.1)
        self.place = nn.Linear(2 * num_feats, channels)
        self.attention = nn.MultiheadAttention(channels, num_heads, batch_first=True)
        nn.init.zeros_(self.attention.out_proj.weight)
        nn.init.zeros_(self.attention.out_proj.bias)
        self.register_buffer("low", torch.tensor([grid.x_min, grid.y_min]), persistent=False)
        self.register_buffer("size", torch.tensor([grid.x_max, grid.y_max]) - self.low, persistent=False)
        centres = torch.from_numpy(grid.cell_centres()).float().flatten(0, 1)
        self.register_buffer("centres", centres, persistent=False)  # [cells, 2]

    def _code(self, points: Tensor) -> Tensor:
        """[..., 2 F] of points [..., 2] in metres."""
        return sine_embedding((points - self.low) / self.size, self.num_feats)

    def tokens(self, streets: Sequence[StreetLines | None], count: int) -> tuple[Tensor, Tensor]:
        """Tokens [B, T, C] of ``count`` samples, and which are padding [B, T]; the first is "no street"."""
        found = [self._of_sample(own) for own in (streets or [None] * count)]
        longest = max(map(len, found))
        tokens = torch.stack([torch.cat([own, own.new_zeros(longest - len(own), own.shape[1])]) for own in found])
        lengths = torch.tensor([len(own) for own in found], device=tokens.device)
        return tokens, torch.arange(longest, device=tokens.device) >= lengths[:, None]

    def _of_sample(self, streets: StreetLines | None) -> Tensor:
        """[s + 1, C]"""
        if streets is None:  # as a map without streets, so that under DDP every parameter has its gradient
            device = self.none.device
            none = torch.zeros(0, self.num_points, 2, device=device), torch.zeros(0, dtype=torch.long, device=device)
            streets = StreetLines(*none)
        if streets.lines.shape[1] != self.num_points:
            raise ValueError(
                f"street maps of {streets.lines.shape[1]} points a line, the head takes {self.num_points}: give the "
                "dataset's street_map and the head's the same num_points"
            )
        own = self.token(self.line(self._code(streets.lines).flatten(1)) + self.kind(streets.kinds))
        return torch.cat([self.none[None].float(), own.float()])

    def forward(self, features: Tensor, streets: Sequence[StreetLines | None]) -> Tensor:
        """Features [B, C, num_y, num_x] with the maps of B samples taken in; an empty ``streets``: nobody has one."""
        tokens, padding = self.tokens(streets, len(features))
        cells = features.flatten(2).transpose(1, 2)  # [B, num_y * num_x, C]
        attended, _ = self.attention(
            cells + self.place(self._code(self.centres)), tokens, tokens, key_padding_mask=padding, need_weights=False
        )
        return features + attended.transpose(1, 2).unflatten(2, features.shape[2:])
