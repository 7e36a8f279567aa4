"""Argument checks of the operators: everything is checked once, here, with the shapes in the message.

The `check_` functions take the name for messages and the inputs of the operator's schema (operators.py): ValueError for
shapes, sizes and devices that do not fit, TypeError for dtypes and for what is no tensor, all with what was given.
What is right passes a few comparisons (a call on a small map takes 30 us altogether); words are put together only when
something is wrong.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..reference import Pair, output_size

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
Window = tuple[int, int, int, int, int, int, int, int, int, float, bool]
"""kernel, stride, padding, dilation (vertical, horizontal each), groups, offset_scale, remove_center."""


def _pair(argument: int | Sequence[int], name: str, minimum: int) -> Pair:
    """(vertical, horizontal) from an int or two ints."""
    values = (argument, argument) if isinstance(argument, int) else tuple(int(v) for v in argument)
    if len(values) != 2 or min(values) < minimum:
        raise ValueError(f"{name} must be an int or two ints (vertical, horizontal) >= {minimum}, got {argument}")
    return values


def window_of(
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    groups: int,
    offset_scale: float,
    remove_center: bool,
) -> Window:
    """The window as the operators take it. ValueError for sizes that are none."""
    return (
        *_pair(kernel_size, "kernel_size", 1),
        *_pair(stride, "stride", 1),
        *_pair(padding, "padding", 0),
        *_pair(dilation, "dilation", 1),
        groups,
        offset_scale,
        remove_center,
    )


def pairs_of(sizes: Sequence[int]) -> list[Pair]:
    """(vertical, horizontal) pairs from numbers that lie one after the other."""
    return list(zip(sizes[::2], sizes[1::2]))


def triples_of(levels: Sequence[int]) -> list[tuple[int, int, int]]:
    """(height, width, first token) of each level from numbers that lie one after the other."""
    return list(zip(levels[::3], levels[1::3], levels[2::3]))


def _kind_problem(op: str, tensors: dict[str, Tensor]) -> Exception:
    for name, t in tensors.items():
        if not isinstance(t, Tensor):
            return TypeError(f"{op}: {name} must be a torch.Tensor, got {type(t).__name__}")
        if t.dtype not in FLOATING:
            return TypeError(f"{op}: {name} must be float32, float64, bfloat16 or float16, got {t.dtype}")
    described = ", ".join(f"{name} {t.dtype} on {t.device}" for name, t in tensors.items())
    if len({t.device for t in tensors.values()}) > 1:
        return ValueError(f"{op}: all tensors must be on one device, got {described}")
    return TypeError(f"{op}: float64 cannot be mixed with other dtypes, got {described}")


def check_kinds(op: str, **tensors: Tensor) -> None:
    """TypeError unless all are floating tensors; float64 must not be mixed with others. ValueError: two devices."""
    first = None
    for t in tensors.values():
        if not isinstance(t, Tensor) or t.dtype not in FLOATING:
            raise _kind_problem(op, tensors)
        if first is None:
            first, device, double = t, t.device, t.dtype is torch.float64
        elif t.device != device or (t.dtype is torch.float64) is not double:
            raise _kind_problem(op, tensors)


def _described(tensors: dict[str, Tensor], levels: Sequence[Sequence[int]]) -> str:
    described = ", ".join(f"{name} {list(t.shape)}" for name, t in tensors.items())
    return f"{described}, levels {[tuple(level) for level in levels]}"


def check_dcnv3(op: str, value: Tensor, offset: Tensor, mask: Tensor, *window_and_softmax: Any) -> None:
    """value [N, H, W, C], offset and mask [N, Ho, Wo, G * K * (2 or 1)] or [N, Ho, Wo, G, K * (2 or 1)] fit the window.

    Raises:
        ValueError: wrong shapes, groups that do not divide C, an empty output or no tap. TypeError: dtypes.
    """
    window = window_and_softmax[:11]
    kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups, _, remove_center = window
    check_kinds(op, value=value, offset=offset, mask=mask)
    if value.dim() != 4:
        raise ValueError(f"{op}: value must be [N, H, W, C], got {list(value.shape)}")
    n, height, width, channels = value.shape
    if groups < 1 or channels < 1 or channels % groups:
        raise ValueError(f"{op}: {channels} channels of value {list(value.shape)} do not divide into {groups} groups")
    taps = kernel_h * kernel_w - bool(remove_center)
    if taps < 1:
        raise ValueError(f"{op}: remove_center leaves no tap of a kernel of size {(kernel_h, kernel_w)}")
    out_h, out_w = output_size(
        (height, width), (kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w)
    )
    if height < 1 or width < 1 or out_h < 1 or out_w < 1:
        raise ValueError(f"{op}: {_window_described(value, window)} gives an empty output {out_h} x {out_w}")
    for name, t, per_tap in (("offset", offset, 2), ("mask", mask, 1)):
        last = (groups * taps * per_tap,) if t.dim() == 4 else (groups, taps * per_tap)
        if t.shape != (n, out_h, out_w, *last):
            flat, grouped = [groups * taps * per_tap], [groups, taps * per_tap]
            raise ValueError(
                f"{op}: {name} must be {[n, out_h, out_w] + flat} or {[n, out_h, out_w] + grouped} for "
                f"{_window_described(value, window)}; got {list(t.shape)}"
            )


def _window_described(value: Tensor, window: Window) -> str:
    kernel, stride, padding, dilation = pairs_of(window[:8])
    return (
        f"value {list(value.shape)}, kernel {kernel}, stride {stride}, padding {padding}, dilation {dilation}, "
        f"{window[8]} groups{', remove_center' if window[10] else ''}"
    )


def _check_levels(op: str, levels: Sequence[Sequence[int]], tensors: dict[str, Tensor]) -> None:
    fits = bool(levels)
    for level in levels:  # a generator would take longer to set up than to run
        fits = fits and level[0] >= 1 and level[1] >= 1
    if not fits:
        raise ValueError(f"{op}: level sizes must be at least 1; got {_described(tensors, levels)}")


def check_ms_deform_attn(
    op: str, value: Tensor, flat_shapes: Sequence[int], sampling_locations: Tensor, attention_weights: Tensor
) -> None:
    """value [B, S, M, D], locations [B, Q, M, L, P, 2], weights [B, Q, M, L, P]; S = sum of height * width.

    Raises:
        ValueError: shapes that do not fit each other or the levels. TypeError: dtypes.
    """
    spatial_shapes = pairs_of(flat_shapes)
    tensors = {
        "value": value,
        "sampling_locations": sampling_locations,
        "attention_weights": attention_weights,
    }
    check_kinds(op, **tensors)
    if value.dim() != 4 or sampling_locations.dim() != 6 or attention_weights.dim() != 5:
        raise ValueError(
            f"{op}: expected value [B, S, M, D], sampling_locations [B, Q, M, L, P, 2], "
            f"attention_weights [B, Q, M, L, P]; got {_described(tensors, spatial_shapes)}"
        )
    b, s, m, d = value.shape
    if m < 1 or d < 1:
        raise ValueError(f"{op}: heads and channels must be at least 1; got {_described(tensors, spatial_shapes)}")
    _check_levels(op, spatial_shapes, tensors)
    tokens = sum(h * w for h, w in spatial_shapes)
    if s != tokens:
        raise ValueError(
            f"{op}: spatial_shapes hold {tokens} tokens but value has {s}; got {_described(tensors, spatial_shapes)}"
        )
    expected = (b, sampling_locations.shape[1], m, len(spatial_shapes), sampling_locations.shape[4])
    if sampling_locations.shape != (*expected, 2) or attention_weights.shape != expected:
        raise ValueError(
            f"{op}: batch, heads and levels disagree: sampling_locations must be {[*expected, 2]} and "
            f"attention_weights {list(expected)}; got {_described(tensors, spatial_shapes)}"
        )


def _check_queries(
    op: str,
    levels: list[tuple[int, int, int]],
    value_shape: Sequence[int],
    tensors: dict[str, Tensor],
) -> None:
    """offsets [B, Q, M, L, P, 2] and logits [B, Q, M, L, P] beside a value [B, S, M, D] of levels."""
    b, s, m, d = value_shape
    offsets, logits = tensors["offsets"], tensors["logits"]
    if m < 1 or d < 1:
        raise ValueError(f"{op}: heads and channels must be at least 1; got {_described(tensors, levels)}")
    _check_levels(op, levels, tensors)
    for height, width, start in levels:
        if start < 0 or start + height * width > s:
            needed = max(t + h * w for h, w, t in levels)
            raise ValueError(
                f"{op}: the levels (height, width, first token) need {needed} tokens from token 0 on, value has {s}; "
                f"got {_described(tensors, levels)}"
            )
    expected = (b, logits.shape[1], m, len(levels), logits.shape[4])
    if logits.shape != expected or offsets.shape != (*expected, 2):
        raise ValueError(
            f"{op}: batch, heads and levels disagree: offsets must be {[*expected, 2]} and logits {list(expected)}; "
            f"got {_described(tensors, levels)}"
        )


def check_filled(op: str, value: Tensor, levels: Sequence[int]) -> None:
    """ValueError where levels that follow each other leave tokens of a value [B, S, M, D] over."""
    tokens = sum(h * w for h, w, _ in triples_of(levels))
    if isinstance(value, Tensor) and value.dim() == 4 and value.shape[1] > tokens:
        raise ValueError(
            f"{op}: spatial_shapes {[(h, w) for h, w, _ in triples_of(levels)]} hold {tokens} tokens but value has "
            f"{value.shape[1]}; shapes fit the levels of value, or level_starts says where each begins"
        )


def check_ms_deform_attn_fused(
    op: str,
    value: Tensor,
    flat_levels: Sequence[int],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
    level_mean: bool = False,
) -> None:
    """value [B, S, M, D], reference points [B or 1, Q, L or 1, R, 2], offsets [B, Q, M, L, P, 2], logits [..., L, P].

    Raises:
        ValueError: shapes that do not fit each other, or levels that leave the S tokens. TypeError: dtypes.
    """
    levels = triples_of(flat_levels)
    tensors = {"value": value, "reference_points": reference_points, "offsets": offsets, "logits": logits}
    check_kinds(op, **tensors)
    if value.dim() != 4 or reference_points.dim() != 5 or offsets.dim() != 6 or logits.dim() != 5:
        raise ValueError(
            f"{op}: expected value [B, S, M, D], reference_points [B or 1, Q, L or 1, R, 2], offsets "
            f"[B, Q, M, L, P, 2], logits [B, Q, M, L, P]; got {_described(tensors, levels)}"
        )
    _check_queries(op, levels, value.shape, tensors)
    rows, queries, over, count, xy = reference_points.shape
    fits = rows in (1, value.shape[0]) and queries == logits.shape[1] and over in (1, len(levels))
    if not fits or count < 1 or xy != 2:
        raise ValueError(
            f"{op}: reference_points must be [{value.shape[0]} or 1, {logits.shape[1]}, {len(levels)} or 1, R >= 1, "
            f"2]; got {_described(tensors, levels)}"
        )


def check_spatial_cross_attention(
    op: str,
    value: Tensor,
    flat_levels: Sequence[int],
    reference_points: Tensor,
    visible: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> None:
    """value [B, N, S, M, D], reference points [B, N, Q, R, 2], visible [B, N, Q], offsets and logits as above.

    Raises:
        ValueError: shapes that do not fit, levels that do not fill the S tokens, reference points that require a
        gradient. TypeError: dtypes, a `visible` that is not bool or on another device.
    """
    levels = triples_of(flat_levels)
    tensors = {"value": value, "reference_points": reference_points, "offsets": offsets, "logits": logits}
    check_kinds(op, **tensors)
    if not isinstance(visible, Tensor) or visible.dtype != torch.bool or visible.device != value.device:
        kind = f"{visible.dtype} on {visible.device}" if isinstance(visible, Tensor) else type(visible).__name__
        raise TypeError(f"{op}: visible must be a bool tensor on {value.device}, got {kind}")
    if reference_points.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{op}: reference_points get no gradient here: detach them, or use ms_deform_attn_fused")
    if value.dim() != 5 or reference_points.dim() != 5 or offsets.dim() != 6 or logits.dim() != 5:
        raise ValueError(
            f"{op}: expected value [B, N, S, M, D], reference_points [B, N, Q, R, 2], offsets [B, Q, M, L, P, 2], "
            f"logits [B, Q, M, L, P]; got {_described(tensors, levels)}"
        )
    b, cameras, s, m, d = value.shape
    _check_queries(op, levels, (b, s, m, d), tensors)
    if s != sum(h * w for h, w, _ in levels):
        raise ValueError(
            f"{op}: spatial_shapes hold {sum(h * w for h, w, _ in levels)} tokens but value has {s}; "
            f"got {_described(tensors, levels)}"
        )
    expected = (b, cameras, logits.shape[1])
    points = reference_points.shape
    if visible.shape != expected or points[:3] != expected or points[3] < 1 or points[4] != 2:
        raise ValueError(
            f"{op}: visible must be {list(expected)} and reference_points {[*expected, 'R >= 1', 2]}; "
            f"got visible {list(visible.shape)}, {_described(tensors, levels)}"
        )
