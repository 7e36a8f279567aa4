"""One call of an operator: checks, autocast, the choice between kernel and reference, the kernel's dtypes."""

from typing import Any

import torch
from torch import Tensor

from .autograd import call
from .backend import use_kernel
from .operators import Operator
from .registration import autocast_inputs


def run(operator: Operator, backend: str | None, *inputs: Any, shown_as: str | None = None) -> Tensor:
    """The operator with the inputs of its schema, by kernel or reference implementation.

    Raises:
        ValueError, TypeError: inputs that do not fit; messages begin with `shown_as`, or else the operator's name.
        BackendUnavailableError, ValueError: see `drivestack.ops.dispatch.backend.use_kernel`.
    """
    operator.check(shown_as or operator.name, *inputs)
    device_type = inputs[0].device.type
    inputs = tuple(autocast_inputs(operator, inputs, device_type))
    if not use_kernel(operator.name, backend, device_type):
        return operator.reference(*inputs)
    dtype = inputs[0].dtype
    widened: tuple[int, ...] = ()
    if operator.paired_at:
        first, second = operator.paired_at
        if not inputs[first].dtype == inputs[second].dtype == dtype:
            widened = operator.paired_at
    if dtype != torch.float64:
        widened += tuple(i for i in operator.wide_at if inputs[i].dtype != torch.float32)
    if widened:
        inputs = tuple(x.float() if i in widened else x for i, x in enumerate(inputs))
    return call(operator.name, *inputs)
