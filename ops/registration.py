"""Schemas, fake kernels and autograd of the operators in torch.library, namespace `drivestack`.

The kernels are added by the shared objects (csrc/register_*); where there are none, the forward operators run the
twins, so that an exported program runs anywhere. The gradients are operators of their own, so that torch.compile and
torch.export see them; their gradients (double backward) go through the twins.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .reference import (
    dcnv3_reference,
    ms_deform_attn_fused_reference,
    ms_deform_attn_reference,
    output_size,
    spatial_cross_attention_reference,
)

_WINDOW = (
    "int kernel_h, int kernel_w, int stride_h, int stride_w, int pad_h, int pad_w, int dilation_h, int dilation_w, "
    "int groups, float offset_scale, bool remove_center, bool mask_softmax"
)
# Raise INTERFACE_VERSION (backend.py) and kInterfaceVersion (csrc/register_cpu.cpp) with every change.
# spatial_shapes: height and width of each level, one after the other; levels: height, width and first token.
# The gradient to the reference points of the fused operators is computed from the one to the offsets.
_DCNV3 = f"Tensor value, Tensor offset, Tensor mask, {_WINDOW}"
_MSDA = "Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, Tensor attention_weights"
_FUSED = "Tensor value, SymInt[] levels, Tensor reference_points, Tensor offsets, Tensor logits, bool level_mean"
_SCA = "Tensor value, SymInt[] levels, Tensor reference_points, Tensor visible, Tensor offsets, Tensor logits"
OPERATORS = {
    "dcnv3": _DCNV3,
    "ms_deform_attn": _MSDA,
    "ms_deform_attn_fused": _FUSED,
    "spatial_cross_attention": _SCA,
}
for _name, _arguments in OPERATORS.items():
    _backward = f"(Tensor grad_out, {_arguments}, bool deterministic) -> (Tensor, Tensor, Tensor)"
    for _schema in (f"{_name}({_arguments}) -> Tensor", f"{_name}_backward{_backward}"):
        _qualified, _signature = _schema.split("(", 1)
        torch.library.define(f"drivestack::{_qualified}", f"({_signature}", tags=(torch.Tag.pt2_compliant_tag,))
torch.library.define("drivestack::softmax_rows", "(Tensor logits) -> Tensor")
torch.library.define("drivestack::softmax_rows_backward", "(Tensor grad_out, Tensor out) -> Tensor")


# Twins with the arguments of the schemas: tensors where the schema has them, sizes flat.


def _dcnv3_twin(value: Tensor, offset: Tensor, mask: Tensor, *window) -> Tensor:
    pairs = [(window[i], window[i + 1]) for i in range(0, 8, 2)]
    return dcnv3_reference(value, offset, mask, *pairs, *window[8:])


def _msda_twin(value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    return ms_deform_attn_reference(value, list(zip(shapes[::2], shapes[1::2])), locations, weights)


def _triples(levels: Sequence[int]) -> list[tuple[int, int, int]]:
    return list(zip(levels[::3], levels[1::3], levels[2::3]))


def _fused_twin(value: Tensor, levels: Sequence[int], reference: Tensor, offsets: Tensor, logits: Tensor, mean: bool):
    return ms_deform_attn_fused_reference(value, _triples(levels), reference, offsets, logits, mean)


def _sca_twin(value, levels: Sequence[int], reference: Tensor, visible: Tensor, offsets: Tensor, logits: Tensor):
    return spatial_cross_attention_reference(value, _triples(levels), reference, visible, offsets, logits)


# Fake kernels: the shapes of the results.


@torch.library.register_fake("drivestack::dcnv3")
def _(value, offset, mask, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, *_rest):
    n, height, width, channels = value.shape
    out_h, out_w = output_size(
        (height, width), (kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w)
    )
    return value.new_empty((n, out_h, out_w, channels))


def _attended_like(value: Tensor, queries: Tensor) -> Tensor:
    *_, heads, channels = value.shape
    return value.new_empty((value.shape[0], queries.shape[1], heads * channels))


@torch.library.register_fake("drivestack::ms_deform_attn")
def _(value, spatial_shapes, sampling_locations, attention_weights):
    return _attended_like(value, attention_weights)


@torch.library.register_fake("drivestack::ms_deform_attn_fused")
def _(value, levels, reference_points, offsets, logits, level_mean):
    return _attended_like(value, logits)


@torch.library.register_fake("drivestack::spatial_cross_attention")
def _(value, levels, reference_points, visible, offsets, logits):
    return _attended_like(value, logits)


def _empty_gradients(*inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in inputs)


@torch.library.register_fake("drivestack::dcnv3_backward")
def _(grad_out, value, offset, mask, *_window):
    return _empty_gradients(value, offset, mask)


@torch.library.register_fake("drivestack::ms_deform_attn_backward")
def _(grad_out, value, spatial_shapes, sampling_locations, attention_weights, deterministic):
    return _empty_gradients(value, sampling_locations, attention_weights)


@torch.library.register_fake("drivestack::ms_deform_attn_fused_backward")
def _(grad_out, value, levels, reference_points, offsets, logits, level_mean, deterministic):
    return _empty_gradients(value, offsets, logits)


@torch.library.register_fake("drivestack::spatial_cross_attention_backward")
def _(grad_out, value, levels, reference_points, visible, offsets, logits, deterministic):
    return _empty_gradients(value, offsets, logits)


@torch.library.register_fake("drivestack::softmax_rows")
def _(logits):
    return logits.new_empty(logits.shape)


@torch.library.register_fake("drivestack::softmax_rows_backward")
def _(grad_out, out):
    return out.new_empty(out.shape)


# Autograd. `tensor_places` says which inputs are tensors, `others` holds the rest in their places.


def _setup(ctx, inputs, output):
    ctx.tensor_places = [i for i, x in enumerate(inputs) if isinstance(x, Tensor)]
    ctx.others = [None if isinstance(x, Tensor) else x for x in inputs]
    ctx.save_for_backward(*(inputs[i] for i in ctx.tensor_places))


def _inputs(ctx) -> list:
    inputs = list(ctx.others)
    for place, tensor in zip(ctx.tensor_places, ctx.saved_tensors):
        inputs[place] = tensor
    return inputs


def _reference_gradient(levels: Sequence[int], reference: Tensor, grad_offsets: Tensor) -> Tensor:
    """Gradient to reference points [B or 1, Q, L or 1, R, 2] from the one to offsets [B, Q, M, L, P, 2] in cells."""
    per_level = grad_offsets.sum(2).unbind(2)  # L times [B, Q, P, 2]
    # one unit of a reference point is the whole level: so many cells of the offsets
    scaled = [torch.stack((g[..., 0] * w, g[..., 1] * h), -1) for g, (h, w, _) in zip(per_level, _triples(levels))]
    grad = torch.stack(scaled, 2)  # [B, Q, L, P, 2]
    turns = reference.shape[3]
    grad = torch.stack([grad[:, :, :, turn::turns].sum(3) for turn in range(turns)], 3)  # [B, Q, L, R, 2]
    shared = [axis for axis in (0, 2) if reference.shape[axis] == 1]
    return (grad.sum(shared, keepdim=True) if shared else grad).to(reference.dtype)


def _dcnv3_grad(ctx, grad_out):
    deterministic = torch.are_deterministic_algorithms_enabled()
    grads = torch.ops.drivestack.dcnv3_backward(grad_out, *_inputs(ctx), deterministic)
    return *grads, *(None for _ in ctx.others[3:])


def _msda_grad(ctx, grad_out):
    deterministic = torch.are_deterministic_algorithms_enabled()
    value, locations, weights = torch.ops.drivestack.ms_deform_attn_backward(grad_out, *_inputs(ctx), deterministic)
    return value, None, locations, weights


def _fused_grad(ctx, grad_out):
    value, levels, reference, offsets, logits, level_mean = _inputs(ctx)
    deterministic = torch.are_deterministic_algorithms_enabled()
    needs_reference = ctx.needs_input_grad[2]
    if needs_reference and offsets.dtype.itemsize == 2:  # the sum over heads deserves unrounded terms
        offsets, logits = offsets.float(), logits.float()
    grad_value, grad_offsets, grad_logits = torch.ops.drivestack.ms_deform_attn_fused_backward(
        grad_out, value, levels, reference, offsets, logits, level_mean, deterministic
    )
    to_reference = _reference_gradient(levels, reference, grad_offsets) if needs_reference else None
    kept = ctx.saved_tensors[2].dtype
    return grad_value, None, to_reference, grad_offsets.to(kept), grad_logits.to(kept), None


def _sca_grad(ctx, grad_out):
    deterministic = torch.are_deterministic_algorithms_enabled()
    value, offsets, logits = torch.ops.drivestack.spatial_cross_attention_backward(
        grad_out, *_inputs(ctx), deterministic
    )
    return value, None, None, None, offsets, logits


def _gradient_of_gradients(twin: Callable[..., Tensor], differentiated: Sequence[int]) -> Callable:
    """Formula of a backward operator (grad_out, *inputs, deterministic) -> gradients to `differentiated` inputs."""

    def formula(ctx, *grads):
        inputs = _inputs(ctx)[:-1]  # without `deterministic`
        leaves = [i for i, x in enumerate(inputs) if isinstance(x, Tensor) and x.is_floating_point()]
        with torch.enable_grad():
            for i in leaves:
                inputs[i] = inputs[i].detach().requires_grad_()
            grad_out, *arguments = inputs
            first = torch.autograd.grad(
                twin(*arguments), [arguments[i] for i in differentiated], grad_out, create_graph=True
            )
            used = [(f, g) for f, g in zip(first, grads) if g is not None]
            outputs, seeds = [f for f, _ in used], [g for _, g in used]
            second = torch.autograd.grad(outputs, [inputs[i] for i in leaves], seeds, allow_unused=True)
        result = dict(zip(leaves, second))
        return *(result.get(i) for i in range(len(inputs))), None

    return formula


_TWINS = {
    "dcnv3": (_dcnv3_twin, _dcnv3_grad, (0, 1, 2)),
    "ms_deform_attn": (_msda_twin, _msda_grad, (0, 2, 3)),
    "ms_deform_attn_fused": (_fused_twin, _fused_grad, (0, 3, 4)),
    "spatial_cross_attention": (_sca_twin, _sca_grad, (0, 4, 5)),
}
for _name, (_twin, _formula, _differentiated) in _TWINS.items():
    torch.library.impl(f"drivestack::{_name}", "CompositeExplicitAutograd", _twin)
    torch.library.register_autograd(f"drivestack::{_name}", _formula, setup_context=_setup)
    torch.library.register_autograd(
        f"drivestack::{_name}_backward", _gradient_of_gradients(_twin, _differentiated), setup_context=_setup
    )


def _softmax_grad(ctx, grad_out):
    return torch.ops.drivestack.softmax_rows_backward(grad_out, *ctx.saved_tensors)


def _softmax_backward_grad(ctx, grad):
    grad_out, out = ctx.saved_tensors
    inner = (grad * out).sum(-1, keepdim=True)
    return out * (grad - inner), grad * (grad_out - (grad_out * out).sum(-1, keepdim=True)) - grad_out * inner


torch.library.register_autograd(
    "drivestack::softmax_rows", _softmax_grad, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(output)
)
torch.library.register_autograd(
    "drivestack::softmax_rows_backward",
    _softmax_backward_grad,
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)
