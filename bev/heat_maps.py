"""Heat maps over cells: a Gaussian bump drawn around the cell of each label, and the peaks of a predicted map.

Used on BEV maps (boxes, lanes) and on image maps (traffic elements). Shapes: n labels, num_y x num_x cells.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian_radius(length_cells: Tensor, width_cells: Tensor, min_overlap: float) -> Tensor:
    """How many cells a box may be shifted along both axes and still overlap itself by IoU ``min_overlap``."""
    total, area = length_cells + width_cells, length_cells * width_cells
    # (l - r) (w - r) / (2 l w - (l - r) (w - r)) = IoU, solved for the smaller r
    return (total - (total**2 - 4 * area * (1 - min_overlap) / (1 + min_overlap)).sqrt()) / 2


def bumps(cells: Tensor, num_y: int, num_x: int, sigma_cells: Tensor | float) -> tuple[Tensor, Tensor]:
    """Gaussians [n, num_y, num_x], 1 at cells [n, 2] (ix, iy); and which cells are within one of it, sideways too.

    sigma_cells: [n], or one for all.
    """
    dx = torch.arange(num_x, device=cells.device) - cells[:, :1]  # [n, num_x]
    dy = torch.arange(num_y, device=cells.device) - cells[:, 1:]  # [n, num_y]
    sigma = torch.as_tensor(sigma_cells, device=cells.device).expand(len(cells))[:, None]
    along_x, along_y = (torch.exp(-d.float().square() / (2 * sigma**2)) for d in (dx, dy))
    near = (dy.abs() <= 1)[:, :, None] & (dx.abs() <= 1)[:, None, :]
    return along_y[:, :, None] * along_x[:, None, :], near


def local_peaks(scores: Tensor) -> Tensor:
    """Scores [B, K, num_y, num_x] where they are the highest of their 3 x 3 neighbourhood, 0 elsewhere."""
    return scores * (F.max_pool2d(scores, 3, stride=1, padding=1) == scores)
