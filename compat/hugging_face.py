"""Deformable attention of Hugging Face transformers models (Deformable DETR, RT-DETR, Mask2Former, ...).

    model = DeformableDetrForObjectDetection.from_pretrained(...)
    drivestack.compat.use_drivestack_attention(model)

Weights, outputs and the rest of the model stay as they are. The signatures are those of transformers (Apache 2.0), the
code is our own; transformers itself is not imported.

Shapes: B batch, Q queries, S tokens of all levels, M heads, D channels of a head, L levels, P points.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import ms_deform_attn

_MODULE = "MultiScaleDeformableAttention"
_PLAIN = "multi_scale_deformable_attention"  # a function of the modelling file: Mask2Former, OneFormer
_UNEVEN = "multi_scale_deformable_attention_v2"  # points may differ by level: RT-DETR v2, D-FINE


class MultiScaleDeformableAttention(nn.Module):
    """The sampling core as transformers calls it; it has no parameters."""

    def forward(
        self,
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_spatial_shapes_list: Sequence[tuple[int, int]],
        level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int,
    ) -> Tensor:
        """``value`` [B, S, M, D], locations [B, Q, M, L, P, 2] in [0, 1], weights [B, Q, M, L, P] -> [B, Q, M * D].

        The shapes are read from the list, without a synchronisation; the start index follows from them and
        ``im2col_step`` changes no number. Raises as `drivestack.ops.ms_deform_attn` does.
        """
        return ms_deform_attn(value, value_spatial_shapes_list, sampling_locations, attention_weights)


def multi_scale_deformable_attention(
    value: Tensor, value_spatial_shapes: Tensor | Sequence, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """As `MultiScaleDeformableAttention.forward`, without what it does not read."""
    return ms_deform_attn(value, value_spatial_shapes, sampling_locations, attention_weights)


def multi_scale_deformable_attention_v2(
    value: Tensor,
    value_spatial_shapes: Tensor | Sequence,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    num_points_list: Sequence[int],
    method: str = "default",
) -> Tensor:
    """``value`` [B, S, M, D], locations [B, Q, M, sum of P, 2], weights [B, Q, M, sum of P] -> [B, Q, M * D].

    Level l has num_points_list[l] points. Raises ValueError for a ``method`` other than "default" (bilinear).
    """
    if method != "default":
        raise ValueError(f"method={method!r}: only 'default' (bilinear sampling) has an operator here")
    most = max(num_points_list)
    if min(num_points_list) == most:
        layout = (len(num_points_list), most)
        locations, weights = sampling_locations.unflatten(-2, layout), attention_weights.unflatten(-1, layout)
    else:  # filled up with points of weight zero
        locations = _even_levels(sampling_locations, num_points_list, -2)
        weights = _even_levels(attention_weights, num_points_list, -1)
    return ms_deform_attn(value, value_spatial_shapes, locations, weights)


def _even_levels(x: Tensor, counts: Sequence[int], axis: int) -> Tensor:
    """Split an axis into levels of `counts` points and stack these, with zeros appended: [..., L, P, ...]."""
    untouched = (0, 0) * (-1 - axis)
    levels = x.split(list(counts), axis)
    padded = [F.pad(level, (*untouched, 0, max(counts) - count)) for level, count in zip(levels, counts)]
    return torch.stack(padded, axis - 1)


class _UnevenOr:
    """Ours for bilinear sampling, theirs for the other methods. A class, so that a model with it can be pickled."""

    __name__ = _UNEVEN

    def __init__(self, theirs: Callable[..., Tensor]) -> None:
        self.theirs = theirs

    def __call__(
        self,
        value: Tensor,
        shapes: Any,
        locations: Tensor,
        weights: Tensor,
        num_points_list: Sequence[int],
        method: str = "default",
    ) -> Tensor:
        sample = multi_scale_deformable_attention_v2 if method == "default" else self.theirs
        return sample(value, shapes, locations, weights, num_points_list, method)


def _uneven_or(theirs: Callable[..., Tensor]) -> _UnevenOr:
    return theirs if isinstance(theirs, _UnevenOr) else _UnevenOr(theirs)


def use_drivestack_attention(model: nn.Module) -> int:
    """Use our operator for all deformable attention of a transformers model, in place; returns how many layers.

    Covers the models whose layers call a ``MultiScaleDeformableAttention`` (Deformable DETR, RT-DETR, Grounding DINO,
    OmDet, LW-DETR, ...) and those that call a function of their modelling file (Mask2Former, OneFormer, RT-DETR v2,
    D-FINE). The function is replaced in that file, so in other models of the family in this process as well.

    Raises:
        ValueError: nothing to replace in the model.
    """
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            # mmcv's layer of the same name has parameters
            if type(child).__name__ == _MODULE and next(child.parameters(), None) is None:
                setattr(parent, name, MultiScaleDeformableAttention())
                count += 1
        core = getattr(parent, "ms_deformable_attn_core", None)
        if getattr(core, "__name__", None) == _UNEVEN:
            setattr(parent, "ms_deformable_attn_core", _uneven_or(core))  # noqa: B010 (no attribute that torch knows)
            count += 1
        count += _replace_functions(type(parent))
    if not count:
        raise ValueError(f"{type(model).__name__} has no deformable attention that could be replaced")
    return count


def _replace_functions(layer: type[nn.Module]) -> int:
    """Replace what `layer.forward` calls in its modelling file; 1 if it calls one of ours now."""
    file = vars(sys.modules[layer.__module__])
    code = getattr(inspect.unwrap(layer.forward), "__code__", None)
    called = {_PLAIN, _UNEVEN} & set(code.co_names if code else ()) & set(file)
    for name in called:
        file[name] = multi_scale_deformable_attention if name == _PLAIN else _uneven_or(file[name])
    return int(bool(called))
