"""Learned vectors of BEV cells, rows and columns on another grid: what a place in metres had, it keeps.

Shapes: C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

ROW_EMBEDDING, COLUMN_EMBEDDING = "positional_encoding.row_embed.weight", "positional_encoding.col_embed.weight"
BEV_QUERIES = "bev_embedding.weight"
MEAN_MAP = "memory.running_mean"

Span = tuple[float, float]
"""From and to, in metres or any one unit."""
Spans = tuple[Span, Span]
"""Of y (rows), then x (columns)."""
SAME: Span = (0.0, 1.0)


def spans_of(pc_range: object) -> Spans | None:
    """Of a BEV map's (x_min, y_min, z_min, x_max, y_max, z_max); None where that is not known."""
    if not isinstance(pc_range, (list, tuple)) or len(pc_range) != 6:
        return None
    x_min, y_min, _, x_max, y_max, _ = map(float, pc_range)
    return (y_min, y_max), (x_min, x_max)


def resize_line(embedding: Tensor, count: int, span: Span = SAME, to: Span = SAME) -> Tensor:
    """The embedding [n, C] of n rows or columns over ``span`` on ``count`` of them over ``to``: linear between the
    middles of two cells, and beyond the outermost ones their own."""
    step = (to[1] - to[0]) / count
    middles = to[0] + (torch.arange(count, dtype=torch.float64) + 0.5) * step
    place = (middles - span[0]) / (span[1] - span[0]) * len(embedding) - 0.5
    place = (place * 1e9).round().div(1e9).clamp(0, len(embedding) - 1)  # cells that meet stay as they are, to the bit
    below = place.floor().long()
    above = (below + 1).clamp(max=len(embedding) - 1)
    share = (place - below)[:, None].to(embedding.device, torch.float32)
    values = embedding.float()
    return torch.lerp(values[below], values[above], share).to(embedding.dtype)


def resize_bev_queries(
    queries: Tensor,
    grid: tuple[int, int],
    to: tuple[int, int],
    spans: Spans = (SAME, SAME),
    to_spans: Spans = (SAME, SAME),
) -> Tensor:
    """BEV queries [num_y * num_x, C], row by row, of one grid (num_y, num_x) on another; as ``resize_line`` on both
    axes."""
    rows = resize_line(queries.unflatten(0, grid).flatten(1), to[0], spans[0], to_spans[0])  # [to_y, num_x * C]
    columns = rows.unflatten(1, (grid[1], -1)).transpose(0, 1).flatten(1)  # [num_x, to_y * C]
    resized = resize_line(columns, to[1], spans[1], to_spans[1])
    return resized.unflatten(1, (to[0], -1)).transpose(0, 1).flatten(0, 1)


def resize_map(
    values: Tensor, to: Sequence[int], spans: Spans = (SAME, SAME), to_spans: Spans = (SAME, SAME)
) -> Tensor:
    """A map [C, num_y, num_x] on ``to`` cells (num_y, num_x); as ``resize_bev_queries``."""
    queries = resize_bev_queries(
        values.flatten(1).T, (values.shape[1], values.shape[2]), (to[0], to[1]), spans, to_spans
    )
    return queries.T.unflatten(1, tuple(to)).contiguous()


def grids_of(
    key: str, source: Mapping[str, Tensor], target: Mapping[str, Tensor]
) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """(num_y, num_x) of both sides' BEV queries, by the positional embeddings beside them; None where those lack."""
    if key != BEV_QUERIES and not key.endswith("." + BEV_QUERIES):
        return None
    prefix = key.removesuffix(BEV_QUERIES)
    rows, columns = prefix + ROW_EMBEDDING, prefix + COLUMN_EMBEDDING
    if not all(name in state for state in (source, target) for name in (rows, columns)):
        return None
    grids = [(len(state[rows]), len(state[columns])) for state in (source, target)]
    fits = all(len(state[key]) == grid[0] * grid[1] for state, grid in zip((source, target), grids))
    return (grids[0], grids[1]) if fits else None
