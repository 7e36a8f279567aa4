"""GridMask augmentation (arXiv 2001.04086): hides a regular grid of squares, the same in all images of a batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def grid_mask(height: int, width: int, period: int, start_y: int, start_x: int, ratio: float = 0.5) -> Tensor:
    """Mask [height, width] of zeros and ones: one in bands of ``ratio`` * ``period`` rows or columns, else zero.

    The bands are counted from ``start_y`` and ``start_x`` on a canvas of 1.5 times the size; its middle is kept.
    """
    band = min(max(int(period * ratio + 0.5), 1), period - 1)

    def in_band(size: int, start: int) -> Tensor:
        canvas = int(1.5 * size)
        offset = torch.arange(size) + (canvas - size) // 2 - start
        # upstream draws only the bands that start inside canvas // period full periods
        return (offset >= 0) & (offset % period < band) & (offset < canvas // period * period)

    return (in_band(height, start_y)[:, None] | in_band(width, start_x)[None]).float()


class GridMask(nn.Module):
    """In training mode, with ``probability``, multiplies the images by a random grid mask (torch's CPU generator)."""

    def __init__(self, probability: float = 0.7, ratio: float = 0.5) -> None:
        super().__init__()
        self.probability, self.ratio = probability, ratio

    def forward(self, images: Tensor) -> Tensor:
        """[..., H, W] -> the same shape."""
        if not self.training or torch.rand(()).item() > self.probability:
            return images
        height, width = images.shape[-2:]
        period = int(torch.randint(2, height, ()))
        start_y, start_x = (int(torch.randint(period, ())) for _ in range(2))
        mask = grid_mask(height, width, period, start_y, start_x, self.ratio)
        return images * mask.to(images)
