"""Schemas, fake kernels and rules of the operators in torch.library, namespace `drivestack`.

The kernels are added by the shared objects (csrc/register_*), which the first call loads, also one of an exported
program in a new process; where there are none, the reference implementations run, so that such a program runs
anywhere. The gradients are operators of their own, so that torch.compile and torch.export see them. Here are the rules
for torch's transforms: shapes (fake), autocast, vmap; autograd.py has the derivatives.
"""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch

from .backend import use_kernel
from .library import count_flops, define, implement
from .operators import OPERATORS, Operator

# Five multiplications with their additions: four corners, and the weight of the sample, as get_flops.py of InternImage
# counts. Backward: as much for the values, and again for positions and weights, as PyTorch counts convolutions.
FLOPS_PER_SAMPLE = 2 * 5


def _without_kernel(operator: Operator, backward: bool) -> Callable:
    """Implementation of an operator that has no kernel, or whose kernel is not loaded yet."""
    qualified = f"{operator.name}_backward" if backward else operator.name

    def run(*inputs: Any) -> Any:
        strided = inputs[0].layout == torch.strided
        if strided and use_kernel(qualified, None, inputs[0].device.type):  # it is loaded now
            return getattr(torch.ops.drivestack, qualified).default(*inputs)
        if backward:
            return tuple(g.contiguous() for g in operator.reference_gradients(inputs[0], inputs[1:-1]))
        return operator.reference(*inputs)

    return run


def _fake_forward(operator: Operator) -> Callable:
    return lambda *inputs: inputs[0].new_empty(operator.output_shape(*inputs))


def _fake_backward(operator: Operator) -> Callable:
    places = [i + 1 for i in operator.differentiated_at]  # after grad_out
    return lambda *inputs: tuple(inputs[i].new_empty(inputs[i].shape) for i in places)


def autocast_inputs(operator: Operator, inputs: Sequence, device_type: str) -> Sequence:
    """The inputs of an operator as autocast wants them on this device (unchanged if it is off, or with float64)."""
    if device_type == "meta" or not torch.is_autocast_enabled(device_type):
        return inputs
    dtype, cast = torch.get_autocast_dtype(device_type), list(inputs)
    for i in operator.autocast_at:
        if cast[i].dtype != torch.float64:
            cast[i] = cast[i].to(dtype)
    return cast


def _autocast_rule(operator: Operator, device_type: str, key: torch._C.DispatchKey) -> Callable:
    def rule(*given: Any) -> Any:
        inputs = autocast_inputs(operator, given, device_type)
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            return getattr(torch.ops.drivestack, operator.name).default(*inputs)

    return rule


def refuse_vmap(qualified: str) -> Callable:
    """The batching rule of an operator: NotImplementedError with the way out."""

    def rule(*_: Any) -> NoReturn:
        raise NotImplementedError(
            f"drivestack::{qualified} has no batching rule for torch.vmap: fold the mapped axis into the batch axis of "
            f'the inputs, or call it with backend="reference" (slow, in PyTorch)'
        )

    return rule


def _register(operator: Operator) -> None:
    forward, backward = operator.name, f"{operator.name}_backward"
    tags = (torch.Tag.pt2_compliant_tag,)
    define(forward, f"({operator.schema}) -> Tensor", tags)
    define(backward, f"({operator.backward_schema}) -> (Tensor, Tensor, Tensor)", tags)
    implement(forward, "CompositeExplicitAutograd", _without_kernel(operator, False))
    implement(backward, "CompositeExplicitAutograd", _without_kernel(operator, True))
    implement(forward, "fake", _fake_forward(operator))
    implement(backward, "fake", _fake_backward(operator))
    for device, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
        implement(forward, key, _autocast_rule(operator, device, getattr(torch._C.DispatchKey, key)))
    for name in (forward, backward):
        implement(name, "vmap", refuse_vmap(name))
    count_flops(forward, lambda *inputs: FLOPS_PER_SAMPLE * operator.samples(*inputs))
    count_flops(backward, lambda _, *inputs: 2 * FLOPS_PER_SAMPLE * operator.samples(*inputs))


for _operator in OPERATORS.values():
    _register(_operator)
