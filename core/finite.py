"""Numbers that are not finite, found cheaply and named: in weights before they are used, in what a model puts out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .errors import PredictionError


def is_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite; True for integers and for tensors without data.

    One sum, which any such value reaches; only where that is not finite (large values may overflow) are all looked at.
    """
    if values.is_meta or not (values.is_floating_point() or values.is_complex()):
        return True
    # Sums of less than 32 bits would overflow; float8 has no sum at all.
    total = values.sum() if values.dtype.itemsize >= 4 else values.float().sum()
    return bool(total.isfinite()) or bool(values.to(torch.promote_types(total.dtype, values.dtype)).isfinite().all())


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity."""
    return [name for name, values in state.items() if not is_finite(values)]


def check_answer(task: str, token: str, *outputs: Tensor) -> None:
    """Raises PredictionError if what a model puts out for one sample is not finite.

    Without this, thresholds and sorting drop NaN, and an empty answer would be scored as a valid one.
    """
    if not all(is_finite(values) for values in outputs):
        raise PredictionError(
            f"sample {token}: the model's {task} are NaN or infinite; check its weights and the sample's calibration, "
            "and with --precision fp16 try bf16 or fp32"
        )
