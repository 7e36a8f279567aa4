"""Derivatives of the operators, and `call`, which runs one with little overhead between Python and kernel.

Each operator has one `torch.autograd.Function`. `call` applies it straight away in eager mode (the dispatcher's way to
it takes 10 us more, a quarter of a call on a 7 x 7 map); torch.compile, torch.export and direct calls of
torch.ops.drivestack.* reach it at the dispatcher. Double backward differentiates the reference implementation, to any
order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import registration  # noqa: F401  (defines the operators)
from .library import implement
from .operators import OPERATORS, Operator
from .registration import refuse_vmap


@dataclass(frozen=True, eq=False)
class _Callable:
    """An operator at the dispatcher, forward or backward, and its derivative."""

    overload: Callable
    tensors: tuple[int, ...]
    """Places of the tensors among the inputs."""
    function: type[torch.autograd.Function]


def call(name: str, *inputs: Any) -> Any:
    """Operator `name`, or `name_backward`, with the inputs of its schema."""
    operator = _CALLABLES[name]
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # a traced program cannot hold a Python function
        return operator.overload(*inputs)
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return operator.function.apply(*inputs)
    return _apply(operator, inputs)


def _apply(operator: _Callable, inputs: Sequence[Any]) -> Any:
    if torch.is_grad_enabled():
        for place in operator.tensors:
            if inputs[place].requires_grad:
                return operator.function.apply(*inputs)
    with torch._C._AutoDispatchBelowAutograd():
        return operator.overload(*inputs)


def _inputs(ctx: Any, places: Sequence[int]) -> list:
    inputs = list(ctx.inputs)
    for place, tensor in zip(places, ctx.saved_tensors):
        inputs[place] = tensor
    return inputs


def _backward(operator: Operator) -> Callable:
    name = f"{operator.name}_backward"

    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        inputs = _inputs(ctx, operator.tensors)
        if operator.backward is not None:
            gradients = operator.backward(lambda *given: call(name, *given), ctx.needs_input_grad, grad_out, *inputs)
            return tuple(gradients)
        grads = call(name, grad_out, *inputs, torch.are_deterministic_algorithms_enabled())
        by_place = dict(zip(operator.differentiated_at, grads))
        return tuple(by_place.get(i) for i in range(len(inputs)))

    return backward


def _double_backward(operator: Operator, places: Sequence[int]) -> Callable:
    """Gradients to the inputs of the backward operator, `places` of them tensors: those of the reference gradients."""

    def double_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs = _inputs(ctx, places)
        leaves = [i for i in places if inputs[i].is_floating_point()]

        def first(*tensors: Tensor) -> tuple[Tensor, ...]:
            given = list(inputs)
            for i, tensor in zip(leaves, tensors):
                given[i] = tensor
            return operator.reference_gradients(given[0], given[1:-1])

        second = torch.func.vjp(first, *(inputs[i] for i in leaves))[1](grads)
        by_place = dict(zip(leaves, second))
        return tuple(by_place.get(i) for i in range(len(inputs)))

    return double_backward


def _callable(name: str, tensors: tuple[int, ...], derivative: Callable) -> _Callable:
    overload = getattr(torch.ops.drivestack, name).default

    def forward(*inputs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return overload(*inputs)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.inputs = [None if i in tensors else x for i, x in enumerate(inputs)]
        ctx.save_for_backward(*(inputs[i] for i in tensors))

    def jvp(ctx: Any, *_: Any) -> NoReturn:
        raise NotImplementedError(f'drivestack::{name} has no forward-mode derivative: use backend="reference"')

    members = {
        "forward": forward,
        "setup_context": setup_context,
        "backward": derivative,
        "vmap": refuse_vmap(name),
        "jvp": jvp,
    }
    function = type(f"drivestack_{name}", (torch.autograd.Function,), {k: staticmethod(v) for k, v in members.items()})
    made = _Callable(overload, tensors, function)
    implement(name, "Autograd", lambda *inputs: _apply(made, inputs))
    return made


_CALLABLES: dict[str, _Callable] = {}
for _operator in OPERATORS.values():
    _places = (0, *(i + 1 for i in _operator.tensors))  # after grad_out
    _CALLABLES[_operator.name] = _callable(_operator.name, _operator.tensors, _backward(_operator))
    _name = f"{_operator.name}_backward"
    _CALLABLES[_name] = _callable(_name, _places, _double_backward(_operator, _places))
