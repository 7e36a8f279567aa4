"""Argument checks of the operators: everything is checked once, here, with the shapes in the message."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .reference import Pair, output_size

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def pair(argument: int | Sequence[int], name: str, minimum: int) -> Pair:
    """(vertical, horizontal) from an int or two ints."""
    values = (argument, argument) if isinstance(argument, int) else tuple(int(v) for v in argument)
    if len(values) != 2 or min(values) < minimum:
        raise ValueError(f"{name} must be an int or two ints (vertical, horizontal) >= {minimum}, got {argument}")
    return values


def check_tensors(op: str, **tensors: Tensor) -> None:
    """TypeError unless all are floating tensors of one device; float64 must not be mixed with others."""
    for name, t in tensors.items():
        if not isinstance(t, Tensor):
            raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(t).__name__}")
        if t.dtype not in FLOATING:
            raise TypeError(f"{op}: {name} must be float32, float64, bfloat16 or float16, got {t.dtype}")
    described = ", ".join(f"{name} {t.dtype} on {t.device}" for name, t in tensors.items())
    if len({t.dtype == torch.float64 for t in tensors.values()}) > 1:
        raise TypeError(f"{op}: float64 cannot be mixed with other dtypes, got {described}")
    if len({t.device for t in tensors.values()}) > 1:
        raise ValueError(f"{op}: all tensors must be on one device, got {described}")


def check_dcnv3(
    value: Tensor,
    offset: Tensor,
    mask: Tensor,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    remove_center: bool,
) -> None:
    check_tensors("dcnv3", value=value, offset=offset, mask=mask)
    if value.dim() != 4:
        raise ValueError(f"dcnv3: value must be [N, H, W, C], got {list(value.shape)}")
    n, height, width, channels = value.shape
    if groups < 1 or channels < 1 or channels % groups:
        raise ValueError(f"dcnv3: {channels} channels of value {list(value.shape)} do not divide into {groups} groups")
    if remove_center and kernel_size[0] * kernel_size[1] < 2:
        raise ValueError(f"dcnv3: remove_center leaves no tap of a kernel of size {kernel_size}")
    out_h, out_w = output_size((height, width), kernel_size, stride, padding, dilation)
    if height < 1 or width < 1 or out_h < 1 or out_w < 1:
        raise ValueError(
            f"dcnv3: value {list(value.shape)} with kernel {kernel_size}, stride {stride}, padding {padding} and "
            f"dilation {dilation} gives an empty output {out_h} x {out_w}"
        )
    taps = groups * (kernel_size[0] * kernel_size[1] - bool(remove_center))
    for name, t, last in (("offset", offset, 2 * taps), ("mask", mask, taps)):
        if t.shape != (n, out_h, out_w, last):
            raise ValueError(
                f"dcnv3: {name} must be {[n, out_h, out_w, last]} for value {list(value.shape)}, kernel {kernel_size}, "
                f"stride {stride}, padding {padding}, dilation {dilation}, {groups} groups"
                f"{', remove_center' if remove_center else ''}; got {list(t.shape)}"
            )


def check_ms_deform_attn(
    value: Tensor, spatial_shapes: list[Pair], sampling_locations: Tensor, attention_weights: Tensor
) -> None:
    tensors = {
        "value": value,
        "sampling_locations": sampling_locations,
        "attention_weights": attention_weights,
    }
    check_tensors("ms_deform_attn", **tensors)
    described = ", ".join(f"{name} {list(t.shape)}" for name, t in tensors.items())
    described += f", spatial_shapes {[tuple(s) for s in spatial_shapes]}"
    if value.dim() != 4 or sampling_locations.dim() != 6 or attention_weights.dim() != 5:
        raise ValueError(
            "ms_deform_attn: expected value [B, S, M, D], sampling_locations [B, Q, M, L, P, 2], "
            f"attention_weights [B, Q, M, L, P]; got {described}"
        )
    b, s, m, d = value.shape
    if m < 1 or d < 1 or not spatial_shapes or any(h < 1 or w < 1 for h, w in spatial_shapes):
        raise ValueError(f"ms_deform_attn: heads, channels and level sizes must be at least 1; got {described}")
    tokens = sum(h * w for h, w in spatial_shapes)
    if s != tokens:
        raise ValueError(f"ms_deform_attn: spatial_shapes hold {tokens} tokens but value has {s}; got {described}")
    expected = (b, sampling_locations.shape[1], m, len(spatial_shapes), sampling_locations.shape[4])
    if sampling_locations.shape != (*expected, 2) or attention_weights.shape != expected:
        raise ValueError(
            f"ms_deform_attn: batch, heads and levels disagree: sampling_locations must be {[*expected, 2]} and "
            f"attention_weights {list(expected)}; got {described}"
        )
