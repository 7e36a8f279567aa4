"""Level shapes that torch.jit.trace records as tensors, so that a traced program takes other shapes too.

The operators have ints for the sizes of levels, which a trace would keep as constants. For each such operator there is
one more, `drivestack::NAME_of_shapes`, with a tensor [L, 2] of (height, width) in their place: a traced program calls
it, and it the operator, with all checks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .calls import run
from .checks import check_filled
from .library import define, implement
from .operators import MS_DEFORM_ATTN, MS_DEFORM_ATTN_FUSED, SPATIAL_CROSS_ATTENTION, Operator


def traced_shapes(spatial_shapes: Sequence[Sequence[int]] | Tensor) -> Tensor | None:
    """Level shapes [L, 2] as a trace follows them; None outside torch.jit.trace, or where they are numbers."""
    if not torch.jit.is_tracing():
        return None
    if isinstance(spatial_shapes, Tensor):
        return spatial_shapes
    if not any(isinstance(side, Tensor) for shape in spatial_shapes for side in shape):
        return None
    return torch.stack([torch.stack([torch.as_tensor(side) for side in shape]) for shape in spatial_shapes])


def run_of_shapes(operator: Operator, *inputs: Any) -> Tensor:
    """As `calls.run`, with level shapes from `traced_shapes` among the inputs."""
    return getattr(torch.ops.drivestack, f"{operator.name}_of_shapes")(*inputs)


def _without_trace(operator: Operator, place: int, numbers: Callable[[Tensor], list[int]]) -> Callable:
    def implementation(*inputs: Any) -> Tensor:
        given = list(inputs)
        given[place] = numbers(inputs[place])
        if operator is MS_DEFORM_ATTN_FUSED:  # the others check it themselves
            check_filled(operator.name, inputs[0], given[place])
        return run(operator, None, *given)

    return implementation


def _levels(shapes: Tensor) -> list[int]:
    flat, first = [], 0
    for height, width in shapes.tolist():
        flat += [height, width, first]
        first += height * width
    return flat


for _operator in (MS_DEFORM_ATTN, MS_DEFORM_ATTN_FUSED, SPATIAL_CROSS_ATTENTION):
    _numbers = (lambda shapes: shapes.flatten().tolist()) if _operator is MS_DEFORM_ATTN else _levels
    _schema = re.sub(r"SymInt\[\] \w+", "Tensor spatial_shapes", _operator.schema)
    _place = [part.split()[0] for part in _operator.schema.split(", ")].index("SymInt[]")
    define(f"{_operator.name}_of_shapes", f"({_schema}) -> Tensor")
    implement(f"{_operator.name}_of_shapes", "CompositeImplicitAutograd", _without_trace(_operator, _place, _numbers))
