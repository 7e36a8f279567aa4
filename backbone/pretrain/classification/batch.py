"""What passes from a data set of classes to a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

UNLABELLED = -1


@dataclass(frozen=True)
class ClassSample:
    """One image, ready for the network."""

    image: Tensor
    """[3, H, W], normalised RGB."""
    label: int
    """Index of its class, UNLABELLED where it has none."""
    token: str
    size_px: tuple[int, int]
    """(width, height) of the image before it was resized."""
    draw: int = 0
    """Number of the sample in the training order: what its augmentation followed from."""
    temporal: Tensor | None = None
    """[4] sine and cosine of the month, 0, 0; see inaturalist.py."""
    spatial: Tensor | None = None
    """[3] place as a unit vector."""


@dataclass(frozen=True)
class ClassBatch:
    """B samples. Fields as of ClassSample; temporal and spatial are None where no sample has them."""

    images: Tensor
    """[B, 3, H, W]"""
    labels: Tensor
    """[B] long"""
    tokens: list[str]
    sizes_px: list[tuple[int, int]]
    draws: list[int]
    temporal: Tensor | None = None
    """[B, 4]"""
    spatial: Tensor | None = None
    """[B, 3]"""

    def to(self, device: torch.device | str) -> ClassBatch:
        move = lambda value: None if value is None else value.to(device, non_blocking=True)
        tensors = (move(self.images), move(self.labels))
        return ClassBatch(*tensors, self.tokens, self.sizes_px, self.draws, move(self.temporal), move(self.spatial))


def collate(samples: Sequence[ClassSample]) -> ClassBatch:
    """Samples of one image size as a batch."""
    stack = lambda values: None if values[0] is None else torch.stack(values)
    return ClassBatch(
        torch.stack([sample.image for sample in samples]),
        torch.tensor([sample.label for sample in samples]),
        [sample.token for sample in samples],
        [sample.size_px for sample in samples],
        [sample.draw for sample in samples],
        stack([sample.temporal for sample in samples]),
        stack([sample.spatial for sample in samples]),
    )
