"""Which feature location of which level learns which labelled object (FCOS, arXiv 1904.01355), as DD3D does it.

Shapes: I images, P locations of all levels together, m labelled objects of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.labels import MonoTargets

SIZES_OF_INTEREST = ((-1, 64), (64, 128), (128, 256), (256, 512), (512, 1e8))
"""Pixels: a level learns the objects whose farthest edge is that far from the location (FCOS, table 7)."""


def feature_locations(shapes: Sequence[tuple[int, int]], strides: Sequence[int], device: torch.device) -> Tensor:
    """Pixels (u, v) [P, 2] of all locations, level by level, row by row: (ix * stride, iy * stride), no half stride."""
    levels = []
    for (height, width), stride in zip(shapes, strides):
        grid = torch.meshgrid(torch.arange(width, device=device), torch.arange(height, device=device), indexing="xy")
        levels.append(torch.stack(grid, -1).flatten(0, 1).float() * stride)
    return torch.cat(levels)


@dataclass(frozen=True)
class LocationTargets:
    """Assignment of labels to locations, positives listed."""

    labels: Tensor
    """[I, P] long class, -1 for background"""
    image: Tensor
    """[M] long: image of each positive"""
    location: Tensor
    """[M] long: index along P"""
    object: Tensor
    """[M] long: index into the labels of all images concatenated"""
    ltrb: Tensor
    """[M, 4] pixels from the location to the left, top, right, bottom edge"""

    @property
    def centerness(self) -> Tensor:
        """[M]: 1 in the middle of the box, 0 at its edge."""
        horizontal, vertical = self.ltrb[:, [0, 2]], self.ltrb[:, [1, 3]]
        ratio = horizontal.amin(-1) / horizontal.amax(-1) * (vertical.amin(-1) / vertical.amax(-1))
        return ratio.sqrt()


def assign_locations(
    targets: Sequence[MonoTargets],
    locations: Tensor,
    level_sizes: Sequence[int],
    strides: Sequence[int],
    sizes_of_interest: Sequence[tuple[float, float]],
    radius: float = 1.5,
) -> LocationTargets:
    """Each location takes the smallest object whose centre region holds it and whose size suits its level.

    The centre region is the box cut to ``radius`` strides around its centre; borders do not count. ``level_sizes``:
    number of locations of each level.
    """
    device = locations.device
    repeat = torch.tensor(list(level_sizes), device=device)
    reach = torch.tensor(strides, dtype=torch.float32, device=device).repeat_interleave(repeat)[:, None] * radius
    limits = torch.tensor(sizes_of_interest, dtype=torch.float32, device=device).repeat_interleave(repeat, 0)
    columns: dict[str, list[Tensor]] = {"image": [], "location": [], "object": [], "ltrb": []}
    labels = torch.full((len(targets), len(locations)), -1, dtype=torch.long, device=device)
    first = 0
    for i, target in enumerate(targets):
        boxes = target.boxes_xyxy_px.float()
        if len(boxes):
            centre = (boxes[:, :2] + boxes[:, 2:]) / 2
            low = torch.maximum(boxes[:, :2], centre - reach[..., None])  # [P, m, 2]
            high = torch.minimum(boxes[:, 2:], centre + reach[..., None])
            point = locations[:, None]  # [P, 1, 2]
            inside = ((point > low) & (point < high)).all(-1)
            ltrb = torch.cat([point - boxes[:, :2], boxes[:, 2:] - point], -1)  # [P, m, 4]
            farthest = ltrb.amax(-1)
            suits = inside & (farthest >= limits[:, :1]) & (farthest <= limits[:, 1:])
            area = (boxes[:, 2:] - boxes[:, :2]).prod(-1).expand(suits.shape)
            smallest, owner = area.masked_fill(~suits, torch.inf).min(-1)  # [P]
            positive = smallest.isfinite().nonzero().flatten()
            owner = owner[positive]
            labels[i, positive] = target.labels[owner]
            columns["image"].append(torch.full_like(positive, i))
            columns["location"].append(positive)
            columns["object"].append(owner + first)
            columns["ltrb"].append(ltrb[positive, owner])
        first += len(boxes)
    empty = locations.new_zeros(0, dtype=torch.long)
    flat = {name: torch.cat(parts) if parts else empty for name, parts in columns.items() if name != "ltrb"}
    ltrb = torch.cat(columns["ltrb"]) if columns["ltrb"] else locations.new_zeros(0, 4)
    return LocationTargets(labels, flat["image"], flat["location"], flat["object"], ltrb)
