"""Deformable convolution v3 (InternImage, arXiv 2211.05778): sparse sampling with learned offsets and weights."""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import registration  # noqa: F401  (defines the operators)
from .backend import kernel_serves
from .checks import check_dcnv3, pair
from .reference import dcnv3_reference


def dcnv3(
    value: Tensor,
    offset: Tensor,
    mask: Tensor,
    *,
    kernel_size: int | Sequence[int] = 3,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int,
    offset_scale: float = 1.0,
    remove_center: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Sum over taps of mask * bilinear(value, anchor + offset_scale * (grid + offset)), zero outside the image.

    Args:
        value: [N, H, W, C], channels group-major: C = groups * D.
        offset: [N, Ho, Wo, groups * K * 2], last axis (group, tap, (dx, dy)) in pixels. Taps go column by column:
            tap = ix * kernel_h + iy. NaN or infinite offsets sample nothing.
        mask: [N, Ho, Wo, groups * K], the weights of the taps, after the softmax.
        kernel_size, stride, padding, dilation: an int, or two ints (vertical, horizontal). Ho and Wo are those of an
            ordinary convolution. Padding adds no pixels, it only shifts the anchor: outside, the image is zero.
        groups: channel groups; all channels of a group share offsets and weights.
        offset_scale: stretches the regular grid as well as the offsets.
        remove_center: leave out the tap at (kernel_w // 2, kernel_h // 2); K is then kernel_h * kernel_w - 1.
        backend: "auto", "cpp" or "reference"; None asks the environment (see `drivestack.ops.backend`).

    Returns:
        [N, Ho, Wo, C] in the dtype of value. float32, float64, bfloat16 and float16; half-precision values may come
        with float32 offsets and masks; coordinates and sums are float32 at least.

    Raises:
        ValueError: shapes that do not fit, with the shapes. TypeError: dtypes that do not.
        BackendUnavailableError: backend "cpp" where it cannot serve.
    """
    kernel_size, stride = pair(kernel_size, "kernel_size", 1), pair(stride, "stride", 1)
    padding, dilation = pair(padding, "padding", 0), pair(dilation, "dilation", 1)
    check_dcnv3(value, offset, mask, kernel_size, stride, padding, dilation, groups, remove_center)
    if not kernel_serves(backend, value.device.type):
        return dcnv3_reference(
            value, offset, mask, kernel_size, stride, padding, dilation, groups, offset_scale, remove_center
        )
    if not offset.dtype == mask.dtype == value.dtype:  # the kernel takes both as value, or both in float32
        offset, mask = offset.float(), mask.float()
    return torch.ops.drivestack.dcnv3(
        value, offset, mask, *kernel_size, *stride, *padding, *dilation, groups, offset_scale, remove_center
    )
