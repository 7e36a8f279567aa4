"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159): the sampling core of BEVFormer's attention."""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import registration  # noqa: F401  (defines the operators)
from .backend import kernel_serves
from .checks import check_ms_deform_attn
from .reference import ms_deform_attn_reference


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[Sequence[int]] | Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    backend: str | None = None,
) -> Tensor:
    """Sum over levels and points of attention_weights * bilinear(value of the level, sampling_locations).

    Args:
        value: [B, S, M, D], the levels one after the other, each row by row; S = sum of height * width. M heads.
        spatial_shapes: (height, width) of each level, as a list or an int64 tensor [L, 2]. Lists are quicker.
        sampling_locations: [B, Q, M, L, P, 2], (x, y) in [0, 1] over the level's image: pixel centres lie at
            (i + 0.5) / size, as grid_sample with align_corners=False. Outside the image is zero; NaN samples nothing.
        attention_weights: [B, Q, M, L, P], after the softmax.
        backend: "auto", "cpp" or "reference"; None asks the environment (see `drivestack.ops.backend`).

    Returns:
        [B, Q, M * D] in the dtype of value. float32, float64, bfloat16 and float16; keep the locations of
        half-precision values in float32 (half-precision locations are up to 0.1 pixels off).

    Raises:
        ValueError: shapes that do not fit, with the shapes. TypeError: dtypes that do not.
        BackendUnavailableError: backend "cpp" where it cannot serve.
    """
    if isinstance(spatial_shapes, Tensor):
        spatial_shapes = spatial_shapes.tolist()
    shapes = [(h, w) for h, w in spatial_shapes]
    check_ms_deform_attn(value, shapes, sampling_locations, attention_weights)
    if not kernel_serves(backend, value.device.type):
        return ms_deform_attn_reference(value, shapes, sampling_locations, attention_weights)
    if value.dtype != torch.float64:
        sampling_locations, attention_weights = sampling_locations.float(), attention_weights.float()
    flat_shapes = [side for shape in shapes for side in shape]
    return torch.ops.drivestack.ms_deform_attn(value, flat_shapes, sampling_locations, attention_weights)
