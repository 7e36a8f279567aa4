"""Operators on boxes that `compat.mmcv_ext` supplies as `mmcv._ext`: torchvision's kernels and ours.

Functions have the argument names by which the Python files of mmcv 2.1 (Apache 2.0) call them, and write into the
tensors given to them, as there; the code is our own. CPU and CUDA alike. float16 and bfloat16 are computed in float32:
torchvision lacks some of these kernels, and coordinates of boxes would be off by whole pixels in half precision.

Shapes: n, m boxes.
"""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from torch import Tensor

from ..core.errors import DrivestackError
from ..geometry.boxes import bev_iou, bev_nms, bev_overlap

__all__ = [
    "box_iou_rotated",
    "get_compiler_version",
    "get_compiling_cuda_version",
    "nms",
    "nms_rotated",
    "softnms",
]


class MmcvMissingError(DrivestackError, ImportError):
    """There is no mmcv, or an operator of mmcv is used that is not there."""


def get_compiler_version() -> str:
    """Shown by the toolboxes where they list the environment."""
    return f"none (kernels of torchvision {torchvision.__version__} and drivestack)"


def get_compiling_cuda_version() -> str:
    return torch.version.cuda or "not available"


def in_float(*tensors: Tensor) -> list[Tensor]:
    """All in the first one's dtype, half precision in float32."""
    dtype = torch.float32 if tensors[0].dtype in (torch.float16, torch.bfloat16) else tensors[0].dtype
    return [tensor.detach().to(dtype) for tensor in tensors]


# ---- upright boxes [n, 4]: x1, y1, x2, y2 --------------------------------------------------------------------------


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int = 0) -> Tensor:
    """Kept indices, best score first; with ``offset`` 1 a box ends one pixel after (x2, y2)."""
    boxes, scores = in_float(boxes, scores)
    if offset:
        boxes = torch.cat((boxes[:, :2], boxes[:, 2:] + offset), 1)
    return torch.ops.torchvision.nms(boxes, scores, iou_threshold)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS (arXiv 1704.04503), on the CPU as in mmcv; kept indices in the order of being chosen.

    Kept boxes and their lowered scores are written into the first rows of ``dets`` [n, 5].

    method: 0 removes boxes with IoU >= ``iou_threshold``, 1 multiplies their scores by 1 - IoU, 2 all scores by
    exp(-IoU² / sigma). Boxes whose score falls below ``min_score`` are removed.
    """
    boxes, left = in_float(boxes, scores)
    left = left.clone()
    size = (boxes[:, 2:] - boxes[:, :2] + offset).prod(1)
    chosen: list[int] = []
    alive = torch.ones_like(left, dtype=torch.bool)
    while bool(alive.any()):
        best = int(left.masked_fill(~alive, -torch.inf).argmax())
        dets[len(chosen), :4], dets[len(chosen), 4] = boxes[best], left[best]
        chosen.append(best)
        alive[best] = False
        corner = torch.minimum(boxes[:, 2:], boxes[best, 2:]) - torch.maximum(boxes[:, :2], boxes[best, :2])
        common = (corner + offset).clamp(min=0).prod(1)
        iou = common / (size + size[best] - common)
        if method == 2:
            weight = torch.exp(-(iou**2) / sigma)
        else:
            weight = torch.where(iou >= iou_threshold, 1 - iou if method == 1 else torch.zeros_like(iou), 1.0)
        left = torch.where(alive, left * weight, left)
        alive &= left >= min_score
    return torch.tensor(chosen, dtype=torch.long)


# ---- turned boxes [n, 5]: x, y, width, height, angle in radians ----------------------------------------------------


def _footprints(boxes: Tensor) -> Any:
    """As boxes of geometry.boxes, float64 [n, 7]: width along the angle, height across it."""
    x, y, width, height, angle = boxes.detach()[:, :5].double().cpu().unbind(1)
    zero = torch.zeros_like(x)
    return torch.stack((x, y, zero, width, height, zero, angle), 1).numpy()


def nms_rotated(
    dets: Tensor,
    scores: Tensor,
    order: Tensor,
    dets_sorted: Tensor,
    labels: Tensor,
    iou_threshold: float,
    multi_label: bool = False,
) -> Tensor:
    """Kept indices, best score first; with ``multi_label`` boxes remove only those of their own label.

    Runs on the CPU, where shapely intersects the boxes. ``order`` and ``dets_sorted`` follow from the rest, not read.
    """
    boxes = _footprints(dets)
    if multi_label and len(boxes):  # every label's boxes are moved to where no other label's are
        reach = abs(boxes[:, :2]).max() + boxes[:, 3:5].sum(1).max()
        boxes[:, 0] += labels.detach().double().cpu().numpy() * 2.5 * reach
    kept = bev_nms(boxes, scores.detach().double().cpu().numpy(), float(iou_threshold))
    return torch.as_tensor(kept, dtype=torch.long, device=dets.device)


def box_iou_rotated(boxes1: Tensor, boxes2: Tensor, ious: Tensor, mode_flag: int = 0, aligned: bool = False) -> None:
    """Writes the IoU into ``ious`` [n * m], or [n] of pairs with ``aligned``; runs on the CPU.

    mode_flag: 1 for the common area divided by the area of ``boxes1``.
    """
    a, b = _footprints(boxes1), _footprints(boxes2)
    if mode_flag == 0:
        found = bev_iou(a, b, aligned)
    else:
        areas = (a[:, 3] * a[:, 4]).clip(1e-12)
        found = bev_overlap(a, b, aligned) / (areas if aligned else areas[:, None])
    ious.copy_(torch.as_tensor(found).reshape(ious.shape))
