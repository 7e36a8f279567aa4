"""Schemas, fake kernels and rules of the operators in torch.library, namespace `drivestack`.

The kernels are added by the shared objects (csrc/register_*), which the first call loads, also one of an exported
program in a new process; where there are none, the twins run, so that such a program runs anywhere. The gradients are
operators of their own, so that torch.compile and torch.export see them. Here are the rules for torch's transforms:
shapes (fake), autocast, vmap; autograd.py has the derivatives.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..reference import (
    dcnv3_reference,
    ms_deform_attn_fused_reference,
    ms_deform_attn_reference,
    output_size,
    spatial_cross_attention_reference,
)
from .backend import kernel_serves

_WINDOW = (
    "int kernel_h, int kernel_w, int stride_h, int stride_w, int pad_h, int pad_w, int dilation_h, int dilation_w, "
    "int groups, float offset_scale, bool remove_center, bool mask_softmax"
)
# Raise INTERFACE_VERSION (backend.py) and kInterfaceVersion (csrc/register_cpu.cpp) with every change.
# spatial_shapes: height and width of each level, one after the other; levels: height, width and first token.
ARGUMENTS = {
    "dcnv3": f"Tensor value, Tensor offset, Tensor mask, {_WINDOW}",
    "ms_deform_attn": "Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, Tensor attention_weights",
    "ms_deform_attn_fused": (
        "Tensor value, SymInt[] levels, Tensor reference_points, Tensor offsets, Tensor logits, bool level_mean"
    ),
    "spatial_cross_attention": (
        "Tensor value, SymInt[] levels, Tensor reference_points, Tensor visible, Tensor offsets, Tensor logits"
    ),
}
# Backward operators give the gradients to three inputs; those to reference points are computed from the offsets'.
DIFFERENTIATED = {
    "dcnv3": (0, 1, 2),
    "ms_deform_attn": (0, 2, 3),
    "ms_deform_attn_fused": (0, 3, 4),
    "spatial_cross_attention": (0, 4, 5),
}
# What autocast casts: never coordinates, a position in half precision is off by tenths of a pixel.
_AUTOCAST = DIFFERENTIATED | {"ms_deform_attn": (0,)}


# Twins with the arguments of the schemas: sizes flat.


def _dcnv3_twin(value: Tensor, offset: Tensor, mask: Tensor, *window) -> Tensor:
    pairs = [(window[i], window[i + 1]) for i in range(0, 8, 2)]
    return dcnv3_reference(value, offset, mask, *pairs, *window[8:])


def _msda_twin(value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    return ms_deform_attn_reference(value, list(zip(shapes[::2], shapes[1::2])), locations, weights)


def triples(levels: Sequence[int]) -> list[tuple[int, int, int]]:
    """(height, width, first token) of each level."""
    return list(zip(levels[::3], levels[1::3], levels[2::3]))


def _fused_twin(value: Tensor, levels: Sequence[int], *tensors_and_mean) -> Tensor:
    return ms_deform_attn_fused_reference(value, triples(levels), *tensors_and_mean)


def _sca_twin(value: Tensor, levels: Sequence[int], *tensors: Tensor) -> Tensor:
    return spatial_cross_attention_reference(value, triples(levels), *tensors)


TWINS = {
    "dcnv3": _dcnv3_twin,
    "ms_deform_attn": _msda_twin,
    "ms_deform_attn_fused": _fused_twin,
    "spatial_cross_attention": _sca_twin,
}


def twin_gradients(name: str, grad_out: Tensor, inputs: Sequence) -> tuple[Tensor, ...]:
    """What the backward operator of `name` computes: the vjp of the twin."""

    def out(*wanted: Tensor) -> Tensor:
        arguments = list(inputs)
        for place, tensor in zip(DIFFERENTIATED[name], wanted):
            arguments[place] = tensor
        return TWINS[name](*arguments)

    return torch.func.vjp(out, *(inputs[i] for i in DIFFERENTIATED[name]))[1](grad_out)


def _without_kernel(name: str, backward: bool) -> Callable:
    """Implementation of an operator that has no kernel, or whose kernel is not loaded yet."""
    qualified = f"{name}_backward" if backward else name

    def run(*inputs):
        strided = inputs[0].layout == torch.strided
        if strided and kernel_serves(qualified, None, inputs[0].device.type):  # it is loaded now
            return getattr(torch.ops.drivestack, qualified).default(*inputs)
        if backward:
            return tuple(g.contiguous() for g in twin_gradients(name, inputs[0], inputs[1:-1]))
        return TWINS[name](*inputs)

    return run


# Fake kernels: the shapes of the results.


def _dcnv3_shape(value, offset, mask, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, *rest) -> tuple[int, ...]:
    n, height, width, channels = value.shape
    pairs = (kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w), rest[:2]
    return n, *output_size((height, width), *pairs), channels


def _attention_shape(value: Tensor, *rest) -> tuple[int, ...]:
    queries = [t for t in rest if isinstance(t, Tensor)][-1]  # weights or logits
    return value.shape[0], queries.shape[1], value.shape[-2] * value.shape[-1]


def _fake_forward(name: str) -> Callable:
    shape_of = _dcnv3_shape if name == "dcnv3" else _attention_shape
    return lambda *inputs: inputs[0].new_empty(shape_of(*inputs))


def _fake_backward(name: str) -> Callable:
    places = [i + 1 for i in DIFFERENTIATED[name]]  # after grad_out
    return lambda *inputs: tuple(inputs[i].new_empty(inputs[i].shape) for i in places)


# Autocast and vmap.


def autocast_inputs(name: str, inputs: Sequence, device_type: str) -> Sequence:
    """The inputs of operator `name` as autocast wants them on this device (nothing if it is off, or with float64)."""
    if device_type == "meta" or not torch.is_autocast_enabled(device_type):
        return inputs
    dtype, cast = torch.get_autocast_dtype(device_type), list(inputs)
    for i in _AUTOCAST[name]:
        if cast[i].dtype != torch.float64:
            cast[i] = cast[i].to(dtype)
    return cast


def _autocast_rule(name: str, device_type: str, key: torch._C.DispatchKey) -> Callable:
    def rule(*inputs):
        operator = getattr(torch.ops.drivestack, name).default
        inputs = autocast_inputs(name, inputs, device_type)
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            return operator(*inputs)

    return rule


def refuse_vmap(name: str) -> Callable:
    def rule(*_):
        raise NotImplementedError(
            f"drivestack::{name} has no batching rule for torch.vmap: fold the mapped axis into the batch axis of the "
            f'inputs, or call it with backend="reference" (the slow PyTorch twin)'
        )

    return rule


for _name, _arguments in ARGUMENTS.items():
    _tags = (torch.Tag.pt2_compliant_tag,)
    torch.library.define(f"drivestack::{_name}", f"({_arguments}) -> Tensor", tags=_tags)
    torch.library.define(
        f"drivestack::{_name}_backward",
        f"(Tensor grad_out, {_arguments}, bool deterministic) -> (Tensor, Tensor, Tensor)",
        tags=_tags,
    )
    torch.library.impl(f"drivestack::{_name}", "CompositeExplicitAutograd", _without_kernel(_name, False))
    torch.library.impl(f"drivestack::{_name}_backward", "CompositeExplicitAutograd", _without_kernel(_name, True))
    torch.library.register_fake(f"drivestack::{_name}", _fake_forward(_name))
    torch.library.register_fake(f"drivestack::{_name}_backward", _fake_backward(_name))
    for _device, _key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
        _rule = _autocast_rule(_name, _device, getattr(torch._C.DispatchKey, _key))
        torch.library.impl(f"drivestack::{_name}", _key, _rule)
    for _qualified in (_name, f"{_name}_backward"):
        torch.library.register_vmap(f"drivestack::{_qualified}", refuse_vmap(_qualified))
