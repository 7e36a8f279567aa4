"""Operators on feature maps that `compat.mmcv_ext` supplies as `mmcv._ext`: torchvision's kernels and ours.

See compat.mmcv_boxes for what holds for all of them.

Shapes: N images or rows, n regions, C channels, H and W of a map, h and w of the output, K classes; B batch,
S tokens, M heads, D channels of a head, Q queries, L levels, P points.
"""

from __future__ import annotations

import torch
import torchvision  # noqa: F401
from torch import Tensor
from torch.nn import functional

from ..ops import ms_deform_attn
from .mmcv_boxes import MmcvMissingError, in_float

__all__ = [
    "deform_conv_backward_input",
    "deform_conv_backward_parameters",
    "deform_conv_forward",
    "modulated_deform_conv_backward",
    "modulated_deform_conv_forward",
    "ms_deform_attn_backward",
    "ms_deform_attn_forward",
    "roi_align_backward",
    "roi_align_forward",
    "sigmoid_focal_loss_backward",
    "sigmoid_focal_loss_forward",
]

_kernels = torch.ops.torchvision  # registered by the import of torchvision


# ---- regions [n, 5]: image, x1, y1, x2, y2 -------------------------------------------------------------------------


def _check_average(pool_mode: int) -> None:
    if pool_mode != 1:
        raise MmcvMissingError(
            "roi_align with pool_mode='max' needs mmcv's compiled operators; drivestack brings 'avg'"
        )


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """``input`` [N, C, H, W], ``rois`` [n, 5] -> ``output`` [n, C, h, w], mean of each cell."""
    _check_average(pool_mode)
    size = (aligned_height, aligned_width)
    output.copy_(_kernels.roi_align(*in_float(input, rois), spatial_scale, *size, sampling_ratio, aligned))


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """``grad_output`` [n, C, h, w] -> ``grad_input`` [N, C, H, W]."""
    _check_average(pool_mode)
    size = (aligned_height, aligned_width, *grad_input.shape)
    grad_input.copy_(
        _kernels._roi_align_backward(*in_float(grad_output, rois), spatial_scale, *size, sampling_ratio, aligned)
    )


# ---- deformable convolution, versions 1 (no mask) and 2 ------------------------------------------------------------


def _convolve(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, bias: Tensor | None, *window: int
) -> Tensor:
    """window: stride, padding and dilation, each (y, x), groups, groups of offsets."""
    no_mask, no_bias = offset.new_zeros((len(offset), 1)), weight.new_zeros(len(weight))
    tensors = in_float(input, weight, offset, no_mask if mask is None else mask, no_bias if bias is None else bias)
    return _kernels.deform_conv2d(*tensors, *window, mask is not None)


def _convolve_backward(
    grad: Tensor, input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, *window: int
) -> tuple[Tensor, ...]:
    """Gradients of input, weight, offset, mask (of no meaning without one) and bias."""
    no_mask, bias = offset.new_zeros((len(offset), 1)), weight.new_zeros(len(weight))
    tensors = in_float(grad.contiguous(), input, weight, offset, no_mask if mask is None else mask, bias)
    return _kernels._deform_conv2d_backward(*tensors, *window, mask is not None)


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Version 1 (arXiv 1703.06211): ``input`` [N, C, H, W] -> ``output`` [N, K, h, w], offsets (y, x) of every tap."""
    window = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    output.copy_(_convolve(input, weight, offset, None, None, *window).view_as(output))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Adds to ``grad_input`` and ``grad_offset``."""
    window = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    grads = _convolve_backward(grad_output, input, weight, offset, None, *window)
    grad_input.add_(grads[0])
    grad_offset.add_(grads[2])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Adds to ``grad_weight``, times ``scale``."""
    window = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    grads = _convolve_backward(grad_output, input, grad_weight, offset, None, *window)  # of the weight only its shape
    grad_weight.add_(grads[1], alpha=scale)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Version 2 (arXiv 1811.11168): a factor ``mask`` [N, groups * taps, h, w] for every tap."""
    window = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    output.copy_(_convolve(input, weight, offset, mask, bias if with_bias else None, *window).view_as(output))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Adds to the five gradients; to the bias's only ``with_bias``."""
    window = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    grads = _convolve_backward(grad_output, input, weight, offset, mask, *window)
    for into, grad in zip((grad_input, grad_weight, grad_offset, grad_mask), grads):
        into.add_(grad)
    if with_bias:
        grad_bias.add_(grads[4])


# ---- deformable attention, see ops.ms_deform_attn ------------------------------------------------------------------


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """``value`` [B, S, M, D], locations [B, Q, M, L, P, 2], weights [B, Q, M, L, P] -> [B, Q, M * D]."""
    return ms_deform_attn(value.detach(), value_spatial_shapes, sampling_locations, attention_weights)


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Adds to the three gradients."""
    with torch.enable_grad():
        inputs = [x.detach().requires_grad_() for x in (value, sampling_locations, attention_weights)]
        output = ms_deform_attn(inputs[0], value_spatial_shapes, *inputs[1:])
    for into, grad in zip(
        (grad_value, grad_sampling_loc, grad_attn_weight), torch.autograd.grad(output, inputs, grad_output)
    ):
        into.add_(grad)


# ---- focal loss ----------------------------------------------------------------------------------------------------


def _focal_terms(input: Tensor, target: Tensor, weight: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of every logit [N, K]: +1 where the target is the class, else -1; the same times the logit; the factor."""
    positive = (target[:, None] == torch.arange(input.shape[1], device=input.device)).to(input)
    factor = alpha * positive + (1 - alpha) * (1 - positive)
    if weight.numel():
        factor = factor * weight[target][:, None]
    sign = 2 * positive - 1
    return sign, sign * input, factor


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """``input`` [N, K] logits, ``target`` [N] (outside 0 to K - 1: background) -> ``output`` [N, K], arXiv 1708.02002.

    ``weight`` [K], or empty, multiplies a row by the number of its class; no target may be background with one.
    """
    logits, weight = in_float(input, weight)
    _, signed, factor = _focal_terms(logits, target, weight, alpha)
    output.copy_(-factor * (-signed).sigmoid() ** gamma * functional.logsigmoid(signed))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """The gradient of the loss's sum, into ``grad_input`` [N, K]."""
    logits, weight = in_float(input, weight)
    sign, signed, factor = _focal_terms(logits, target, weight, alpha)
    right, wrong = signed.sigmoid(), (-signed).sigmoid()
    slope = wrong**gamma * (wrong - gamma * right * functional.logsigmoid(signed))
    grad_input.copy_(-sign * factor * slope)
