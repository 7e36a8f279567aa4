"""Schemas, fake kernels and autograd of the operators in torch.library, namespace `drivestack`.

The CPU kernels are added by the shared object (csrc/register_cpu.cpp). The gradients are operators of their own, so
that torch.compile and torch.export see them; their gradients (double backward) go through the twins.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .reference import dcnv3_reference, ms_deform_attn_reference, output_size

_WINDOW = (
    "int kernel_h, int kernel_w, int stride_h, int stride_w, int pad_h, int pad_w, int dilation_h, int dilation_w, "
    "int groups, float offset_scale, bool remove_center"
)
_SCHEMAS = {
    "dcnv3": f"(Tensor value, Tensor offset, Tensor mask, {_WINDOW}) -> Tensor",
    "dcnv3_backward": (
        f"(Tensor grad_out, Tensor value, Tensor offset, Tensor mask, {_WINDOW}) -> (Tensor, Tensor, Tensor)"
    ),
    # spatial_shapes: height and width of each level, one after the other.
    "ms_deform_attn": (
        "(Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, Tensor attention_weights) -> Tensor"
    ),
    "ms_deform_attn_backward": (
        "(Tensor grad_out, Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, "
        "Tensor attention_weights) -> (Tensor, Tensor, Tensor)"
    ),
    "softmax_rows": "(Tensor logits) -> Tensor",
    "softmax_rows_backward": "(Tensor grad_out, Tensor out) -> Tensor",
}
for _name, _schema in _SCHEMAS.items():
    torch.library.define(f"drivestack::{_name}", _schema, tags=(torch.Tag.pt2_compliant_tag,))


def _dcnv3_twin(value: Tensor, offset: Tensor, mask: Tensor, *window) -> Tensor:
    pairs = [(window[i], window[i + 1]) for i in range(0, 8, 2)]
    return dcnv3_reference(value, offset, mask, *pairs, *window[8:])


def _msda_twin(value: Tensor, locations: Tensor, weights: Tensor, shapes: Sequence[int]) -> Tensor:
    return ms_deform_attn_reference(value, list(zip(shapes[::2], shapes[1::2])), locations, weights)


@torch.library.register_fake("drivestack::dcnv3")
def _(value, offset, mask, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, *_rest):
    n, height, width, channels = value.shape
    out_h, out_w = output_size(
        (height, width), (kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w)
    )
    return value.new_empty((n, out_h, out_w, channels))


@torch.library.register_fake("drivestack::ms_deform_attn")
def _(value, spatial_shapes, sampling_locations, attention_weights):
    b, _tokens, heads, channels = value.shape
    return value.new_empty((b, sampling_locations.shape[1], heads * channels))


@torch.library.register_fake("drivestack::dcnv3_backward")
def _(grad_out, value, offset, mask, *_window):
    return tuple(t.new_empty(t.shape) for t in (value, offset, mask))


@torch.library.register_fake("drivestack::ms_deform_attn_backward")
def _(grad_out, value, spatial_shapes, sampling_locations, attention_weights):
    return tuple(t.new_empty(t.shape) for t in (value, sampling_locations, attention_weights))


@torch.library.register_fake("drivestack::softmax_rows")
def _(logits):
    return logits.new_empty(logits.shape)


@torch.library.register_fake("drivestack::softmax_rows_backward")
def _(grad_out, out):
    return out.new_empty(out.shape)


def _double_backward(twin: Callable[..., Tensor], grads: Sequence[Tensor | None], grad_out: Tensor, *inputs: Tensor):
    """Gradients to (grad_out, *inputs) of the first gradients of `twin`, given the gradients to those."""
    with torch.enable_grad():
        grad_out, *inputs = (t.detach().requires_grad_() for t in (grad_out, *inputs))
        first = torch.autograd.grad(twin(*inputs), inputs, grad_out, create_graph=True)
        used = [(f, g) for f, g in zip(first, grads) if g is not None]
        outputs, seeds = [f for f, _ in used], [g for _, g in used]
        return torch.autograd.grad(outputs, (grad_out, *inputs), seeds, allow_unused=True)


def _dcnv3_setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:3])
    ctx.window = inputs[3:]


def _dcnv3_grad(ctx, grad_out):
    grads = torch.ops.drivestack.dcnv3_backward(grad_out, *ctx.saved_tensors, *ctx.window)
    return (*grads, *(None for _ in ctx.window))


def _dcnv3_backward_setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:4])
    ctx.window = inputs[4:]


def _dcnv3_backward_grad(ctx, *grads):
    twin = lambda value, offset, mask: _dcnv3_twin(value, offset, mask, *ctx.window)
    return (*_double_backward(twin, grads, *ctx.saved_tensors), *(None for _ in ctx.window))


def _msda_setup(ctx, inputs, output):
    value, ctx.shapes, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _msda_grad(ctx, grad_out):
    value, locations, weights = ctx.saved_tensors
    grads = torch.ops.drivestack.ms_deform_attn_backward(grad_out, value, ctx.shapes, locations, weights)
    return grads[0], None, grads[1], grads[2]


def _msda_backward_setup(ctx, inputs, output):
    grad_out, value, ctx.shapes, locations, weights = inputs
    ctx.save_for_backward(grad_out, value, locations, weights)


def _msda_backward_grad(ctx, *grads):
    twin = lambda value, locations, weights: _msda_twin(value, locations, weights, ctx.shapes)
    to_grad_out, to_value, to_locations, to_weights = _double_backward(twin, grads, *ctx.saved_tensors)
    return to_grad_out, to_value, None, to_locations, to_weights


def _softmax_setup(ctx, inputs, output):
    ctx.save_for_backward(output)


def _softmax_grad(ctx, grad_out):
    return torch.ops.drivestack.softmax_rows_backward(grad_out, *ctx.saved_tensors)


def _softmax_backward_setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _softmax_backward_grad(ctx, grad):
    grad_out, out = ctx.saved_tensors
    inner = (grad * out).sum(-1, keepdim=True)
    return out * (grad - inner), grad * (grad_out - (grad_out * out).sum(-1, keepdim=True)) - grad_out * inner


torch.library.register_autograd("drivestack::dcnv3", _dcnv3_grad, setup_context=_dcnv3_setup)
torch.library.register_autograd("drivestack::dcnv3_backward", _dcnv3_backward_grad, setup_context=_dcnv3_backward_setup)
torch.library.register_autograd("drivestack::ms_deform_attn", _msda_grad, setup_context=_msda_setup)
torch.library.register_autograd(
    "drivestack::ms_deform_attn_backward", _msda_backward_grad, setup_context=_msda_backward_setup
)
torch.library.register_autograd("drivestack::softmax_rows", _softmax_grad, setup_context=_softmax_setup)
torch.library.register_autograd(
    "drivestack::softmax_rows_backward", _softmax_backward_grad, setup_context=_softmax_backward_setup
)
