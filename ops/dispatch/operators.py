"""One descriptor per operator: all that checks, registration, autograd and calls need.

Letters as in ops/reference.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..reference import (
    dcnv3_reference,
    ms_deform_attn_fused_reference,
    ms_deform_attn_reference,
    output_size,
    spatial_cross_attention_reference,
)
from .checks import (
    check_dcnv3,
    check_ms_deform_attn,
    check_ms_deform_attn_fused,
    check_spatial_cross_attention,
    pairs_of,
    triples_of,
)


@dataclass(frozen=True, eq=False)
class Operator:
    """An operator `drivestack::name` and its `drivestack::name_backward`. Arguments are named as in the schema.

    Functions take the inputs of the schema, in its order.
    """

    name: str
    schema: str
    """Types and names of the arguments. Raise INTERFACE_VERSION (backend.py) and kInterfaceVersion (csrc) with it."""
    check: Callable[..., None]
    """check(name for messages, *inputs) raises ValueError or TypeError for what does not fit."""
    reference: Callable[..., Tensor]
    output_shape: Callable[..., tuple[int, ...]]
    samples: Callable[..., int]
    """Bilinear samples, times the channels of each: what the work of a call is proportional to."""
    differentiated: tuple[str, str, str]
    """What the backward operator gives gradients to, in its order."""
    autocast: tuple[str, ...]
    """What autocast casts: never coordinates, a position in half precision is off by tenths of a pixel."""
    paired: tuple[str, str] | tuple[()] = ()
    """Two tensors that the kernels take in the dtype of value, or both in float32."""
    wide: tuple[str, ...] = ()
    """Tensors that the kernels never take in half precision."""
    backward: Callable[..., Sequence[Tensor | None]] | None = None
    """backward(backward operator, needs_input_grad, grad_out, *inputs): a gradient per input, where the operator
    `name_backward` alone does not give them all."""

    tensors: tuple[int, ...] = field(init=False)
    """Places of the tensors among the inputs; those of the other fields' names follow."""
    differentiated_at: tuple[int, ...] = field(init=False)
    autocast_at: tuple[int, ...] = field(init=False)
    paired_at: tuple[int, ...] = field(init=False)
    wide_at: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        arguments = [argument.split() for argument in self.schema.split(", ")]
        place_of = {name: i for i, (_, name) in enumerate(arguments)}
        object.__setattr__(self, "tensors", tuple(i for i, (kind, _) in enumerate(arguments) if kind == "Tensor"))
        for names in ("differentiated", "autocast", "paired", "wide"):  # once: a call has no time to look names up
            object.__setattr__(self, f"{names}_at", tuple(place_of[name] for name in getattr(self, names)))

    @property
    def backward_schema(self) -> str:
        """Arguments of the backward operator, which returns three tensors."""
        return f"Tensor grad_out, {self.schema}, bool deterministic"

    def reference_gradients(self, grad_out: Tensor, inputs: Sequence) -> tuple[Tensor, ...]:
        """What the backward operator computes: the vector-Jacobian product of the reference implementation."""

        def out(*tensors: Tensor) -> Tensor:
            arguments = list(inputs)
            for place, tensor in zip(self.differentiated_at, tensors):
                arguments[place] = tensor
            return self.reference(*arguments)

        return torch.func.vjp(out, *(inputs[i] for i in self.differentiated_at))[1](grad_out)


def _dcnv3(value: Tensor, offset: Tensor, mask: Tensor, *window: Any) -> Tensor:
    kernel, stride, padding, dilation = pairs_of(window[:8])
    return dcnv3_reference(value, offset, mask, kernel, stride, padding, dilation, *window[8:])


def _dcnv3_shape(value: Tensor, offset: Tensor, mask: Tensor, *window: Any) -> tuple[int, ...]:
    n, height, width, channels = value.shape
    return n, *output_size((height, width), *pairs_of(window[:8])), channels


def _ms_deform_attn(value: Tensor, spatial_shapes: Sequence[int], *tensors: Tensor) -> Tensor:
    return ms_deform_attn_reference(value, pairs_of(spatial_shapes), *tensors)


def _ms_deform_attn_fused(value: Tensor, levels: Sequence[int], *tensors_and_mean: Any) -> Tensor:
    return ms_deform_attn_fused_reference(value, triples_of(levels), *tensors_and_mean)


def _spatial_cross_attention(value: Tensor, levels: Sequence[int], *tensors: Tensor) -> Tensor:
    return spatial_cross_attention_reference(value, triples_of(levels), *tensors)


def _attention_shape(value: Tensor, *rest: Any) -> tuple[int, ...]:
    weights = [t for t in rest if isinstance(t, Tensor)][-1]  # or logits
    return value.shape[0], weights.shape[1], value.shape[-2] * value.shape[-1]


def _dcnv3_samples(value: Tensor, offset: Tensor, mask: Tensor, *window: Any) -> int:
    return mask.numel() * (value.shape[3] // window[8])


def _attention_samples(value: Tensor, *rest: Any) -> int:
    """With cameras, as if all of them saw every query: which do is in the values of a tensor."""
    weights = [t for t in rest if isinstance(t, Tensor)][-1]  # or logits
    return weights.numel() * value.shape[-1] * (value.shape[1] if value.dim() == 5 else 1)


def _reference_point_gradient(levels: Sequence[int], reference_points: Tensor, grad_offsets: Tensor) -> Tensor:
    """Gradient to reference points [B or 1, Q, L or 1, R, 2] from the one to offsets [B, Q, M, L, P, 2] in cells."""
    per_level = grad_offsets.sum(2).unbind(2)  # L times [B, Q, P, 2]
    # one unit of a reference point is the whole level: so many cells of the offsets
    scaled = [torch.stack((g[..., 0] * w, g[..., 1] * h), -1) for g, (h, w, _) in zip(per_level, triples_of(levels))]
    grad = torch.stack(scaled, 2)  # [B, Q, L, P, 2]
    turns = reference_points.shape[3]
    grad = torch.stack([grad[:, :, :, turn::turns].sum(3) for turn in range(turns)], 3)  # [B, Q, L, R, 2]
    shared = [axis for axis in (0, 2) if reference_points.shape[axis] == 1]
    return (grad.sum(shared, keepdim=True) if shared else grad).to(reference_points.dtype)


def _fused_backward(
    backward: Callable,
    needed: Sequence[bool],
    grad_out: Tensor,
    value: Tensor,
    levels: Sequence[int],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
    level_mean: bool,
) -> tuple[Tensor | None, ...]:
    dtype = offsets.dtype
    if needed[2] and dtype.itemsize == 2:  # the sum over heads deserves terms that are not rounded
        offsets, logits = offsets.float(), logits.float()
    deterministic = torch.are_deterministic_algorithms_enabled()
    inputs = (grad_out, value, levels, reference_points, offsets, logits, level_mean, deterministic)
    grad_value, grad_offsets, grad_logits = backward(*inputs)
    to_reference = _reference_point_gradient(levels, reference_points, grad_offsets) if needed[2] else None
    return grad_value, None, to_reference, grad_offsets.to(dtype), grad_logits.to(dtype), None


DCNV3 = Operator(
    name="dcnv3",
    schema=(
        "Tensor value, Tensor offset, Tensor mask, int kernel_h, int kernel_w, int stride_h, int stride_w, int pad_h, "
        "int pad_w, int dilation_h, int dilation_w, int groups, float offset_scale, bool remove_center, "
        "bool mask_softmax"
    ),
    check=check_dcnv3,
    reference=_dcnv3,
    output_shape=_dcnv3_shape,
    samples=_dcnv3_samples,
    differentiated=("value", "offset", "mask"),
    autocast=("value", "offset", "mask"),
    paired=("offset", "mask"),
)
# spatial_shapes: height and width of each level, one after the other; levels: height, width and first token.
MS_DEFORM_ATTN = Operator(
    name="ms_deform_attn",
    schema="Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, Tensor attention_weights",
    check=check_ms_deform_attn,
    reference=_ms_deform_attn,
    output_shape=_attention_shape,
    samples=_attention_samples,
    differentiated=("value", "sampling_locations", "attention_weights"),
    autocast=("value",),
    wide=("sampling_locations", "attention_weights"),
)
MS_DEFORM_ATTN_FUSED = Operator(
    name="ms_deform_attn_fused",
    schema="Tensor value, SymInt[] levels, Tensor reference_points, Tensor offsets, Tensor logits, bool level_mean",
    check=check_ms_deform_attn_fused,
    reference=_ms_deform_attn_fused,
    output_shape=_attention_shape,
    samples=_attention_samples,
    differentiated=("value", "offsets", "logits"),
    autocast=("value", "offsets", "logits"),
    paired=("offsets", "logits"),
    wide=("reference_points",),
    backward=_fused_backward,
)
SPATIAL_CROSS_ATTENTION = Operator(
    name="spatial_cross_attention",
    schema="Tensor value, SymInt[] levels, Tensor reference_points, Tensor visible, Tensor offsets, Tensor logits",
    check=check_spatial_cross_attention,
    reference=_spatial_cross_attention,
    output_shape=_attention_shape,
    samples=_attention_samples,
    differentiated=("value", "offsets", "logits"),
    autocast=("value", "offsets", "logits"),
    paired=("offsets", "logits"),
    wide=("reference_points",),
)
OPERATORS = {o.name: o for o in (DCNV3, MS_DEFORM_ATTN, MS_DEFORM_ATTN_FUSED, SPATIAL_CROSS_ATTENTION)}
