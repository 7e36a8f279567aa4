"""Centrelines as Bezier curves, on tensors: from points to control points and back.

Source: OpenLane-V2's baseline (arXiv 2304.10440): five control points, the outer two
are the line's ends, the inner ones a least-squares fit at evenly spaced parameters.

Shapes: K control points, n or P points of a line; ... any leading dimensions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

NUM_CONTROL = 5


def bernstein(num_points: int, num_control: int = NUM_CONTROL) -> Tensor:
    """[num_points, K] float64: weights of the control points at evenly spaced parameters, both ends included."""
    t = torch.linspace(0, 1, num_points, dtype=torch.float64)[:, None]
    k = torch.arange(num_control, dtype=torch.float64)
    degree = num_control - 1
    binomial = torch.tensor([math.comb(degree, i) for i in range(num_control)], dtype=torch.float64)
    return binomial * t**k * (1 - t) ** (degree - k)


def sample_curves(controls: Tensor, num_points: int = 11) -> Tensor:
    """Points [..., P, D] of the curves with control points [..., K, D]."""
    basis = bernstein(num_points, controls.shape[-2]).to(controls)
    # no matrix product: autocast would round metres to half precision
    return (basis[:, :, None] * controls[..., None, :, :]).sum(-2)


@functools.lru_cache(maxsize=64)
def _fit(num_points: int, num_control: int) -> Tensor:
    """[K, num_points] float64: the linear map from a line's points to its control points."""
    basis = bernstein(num_points, num_control)
    fit = torch.zeros(num_control, num_points, dtype=torch.float64)
    fit[0, 0] = fit[-1, -1] = 1
    rest = torch.eye(num_points, dtype=torch.float64) - basis[:, [0, -1]] @ fit[[0, -1]]
    fit[1:-1] = torch.linalg.pinv(basis[:, 1:-1]) @ rest
    return fit


def fit_controls(points: Tensor, num_control: int = NUM_CONTROL) -> Tensor:
    """Control points [..., K, 3] of lines [..., n, 3]; with fewer points than unknowns the smallest solution.

    Raises ValueError for a line of fewer than two points.
    """
    if points.shape[-2] < 2:
        raise ValueError(f"a centreline needs two points, got {points.shape[-2]}")
    return (_fit(points.shape[-2], num_control).to(points.device) @ points.double()).to(points.dtype)


def fit_lines(lines: Sequence[Tensor], num_control: int = NUM_CONTROL) -> Tensor:
    """Control points [n, K, 3] float32 of n lines [points, 3] of any lengths."""
    if not lines:
        return torch.zeros(0, num_control, 3)
    return torch.stack([fit_controls(line.float(), num_control) for line in lines])
