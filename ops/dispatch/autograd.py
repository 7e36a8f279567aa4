"""Derivatives of the operators, and `call`, which runs one with as little between Python and kernel as possible.

The formulas are registered at the dispatcher (torch.compile, torch.export, direct calls of torch.ops.drivestack.*) and
once more as `torch.autograd.Function`s, which `call` uses in eager mode: half the overhead of the former (20 us matter
on a 7 x 7 map), and torch.func.grad and vjp work. Double backward differentiates the twins, to any order.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .registration import ARGUMENTS, DIFFERENTIATED, refuse_vmap, triples, twin_gradients


def call(name: str, *inputs):
    """Operator `name` with the inputs of its schema."""
    operator = _OPERATORS[name]
    if torch.compiler.is_compiling():
        return operator(*inputs)
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return _FUNCTIONS[name].apply(*inputs)
    if torch.is_grad_enabled():
        for place in _TENSORS[name]:
            if inputs[place].requires_grad:
                return _FUNCTIONS[name].apply(*inputs)
    with torch._C._AutoDispatchBelowAutograd():  # skips a detour through Python
        return operator(*inputs)


def _setup_context(places: Sequence[int]) -> Callable:
    def setup_context(ctx, inputs, output):
        ctx.inputs = [None if i in places else x for i, x in enumerate(inputs)]
        ctx.save_for_backward(*(inputs[i] for i in places))

    return setup_context


def _inputs(ctx, places: Sequence[int]) -> list:
    inputs = list(ctx.inputs)
    for place, tensor in zip(places, ctx.saved_tensors):
        inputs[place] = tensor
    return inputs


def _reference_gradient(levels: Sequence[int], reference: Tensor, grad_offsets: Tensor) -> Tensor:
    """Gradient to reference points [B or 1, Q, L or 1, R, 2] from the one to offsets [B, Q, M, L, P, 2] in cells."""
    per_level = grad_offsets.sum(2).unbind(2)  # L times [B, Q, P, 2]
    # one unit of a reference point is the whole level: so many cells of the offsets
    scaled = [torch.stack((g[..., 0] * w, g[..., 1] * h), -1) for g, (h, w, _) in zip(per_level, triples(levels))]
    grad = torch.stack(scaled, 2)  # [B, Q, L, P, 2]
    turns = reference.shape[3]
    grad = torch.stack([grad[:, :, :, turn::turns].sum(3) for turn in range(turns)], 3)  # [B, Q, L, R, 2]
    shared = [axis for axis in (0, 2) if reference.shape[axis] == 1]
    return (grad.sum(shared, keepdim=True) if shared else grad).to(reference.dtype)


def _fused_backward(ctx, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    value, levels, reference, offsets, logits, level_mean = _inputs(ctx, _TENSORS["ms_deform_attn_fused"])
    needs_reference, dtype = ctx.needs_input_grad[2], offsets.dtype
    if needs_reference and dtype.itemsize == 2:  # the sum over heads deserves terms that are not rounded
        offsets, logits = offsets.float(), logits.float()
    deterministic = torch.are_deterministic_algorithms_enabled()
    inputs = (grad_out, value, levels, reference, offsets, logits, level_mean, deterministic)
    grad_value, grad_offsets, grad_logits = call("ms_deform_attn_fused_backward", *inputs)
    to_reference = _reference_gradient(levels, reference, grad_offsets) if needs_reference else None
    return grad_value, None, to_reference, grad_offsets.to(dtype), grad_logits.to(dtype), None


def _backward(name: str) -> Callable:
    places, differentiated = _TENSORS[name], DIFFERENTIATED[name]

    def backward(ctx, grad_out):
        inputs = _inputs(ctx, places)
        grads = call(f"{name}_backward", grad_out, *inputs, torch.are_deterministic_algorithms_enabled())
        by_place = dict(zip(differentiated, grads))
        return tuple(by_place.get(i) for i in range(len(inputs)))

    return backward


def _double_backward(name: str) -> Callable:
    """Gradients to the inputs of the backward operator: it is the vjp of the twin, and so are its derivatives."""
    places = _TENSORS[f"{name}_backward"]

    def double_backward(ctx, *grads):
        inputs = _inputs(ctx, places)
        leaves = [i for i in places if inputs[i].is_floating_point()]

        def first(*tensors):
            given = list(inputs)
            for i, tensor in zip(leaves, tensors):
                given[i] = tensor
            return twin_gradients(name, given[0], given[1:-1])

        second = torch.func.vjp(first, *(inputs[i] for i in leaves))[1](grads)
        by_place = dict(zip(leaves, second))
        return tuple(by_place.get(i) for i in range(len(inputs)))

    return double_backward


def _function(name: str, setup_context: Callable, backward: Callable) -> type[torch.autograd.Function]:
    operator, vmap = _OPERATORS[name], refuse_vmap(name)

    def forward(*inputs):
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*inputs)

    def jvp(ctx, *_):
        raise NotImplementedError(f'drivestack::{name} has no forward-mode derivative: use backend="reference"')

    members = {"forward": forward, "setup_context": setup_context, "backward": backward, "vmap": vmap, "jvp": jvp}
    return type(f"drivestack_{name}", (torch.autograd.Function,), {k: staticmethod(v) for k, v in members.items()})


_OPERATORS: dict[str, Callable] = {}
_TENSORS: dict[str, tuple[int, ...]] = {}
"""Places of the tensors among the inputs."""
_FUNCTIONS: dict[str, type[torch.autograd.Function]] = {}
for _name in [f"{name}{suffix}" for name in ARGUMENTS for suffix in ("", "_backward")]:
    _OPERATORS[_name] = getattr(torch.ops.drivestack, _name).default
    _schema = _OPERATORS[_name]._schema.arguments
    _TENSORS[_name] = tuple(i for i, a in enumerate(_schema) if isinstance(a.type, torch.TensorType))
for _name in _OPERATORS:
    if _name.endswith("_backward"):
        _formula = _double_backward(_name.removesuffix("_backward"))
    else:
        _formula = _fused_backward if _name == "ms_deform_attn_fused" else _backward(_name)
    _setup = _setup_context(_TENSORS[_name])
    _FUNCTIONS[_name] = _function(_name, _setup, _formula)
    torch.library.register_autograd(f"drivestack::{_name}", _formula, setup_context=_setup)
