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
    return bool(_total(values).isfinite()) or bool(values.to(_total(values).dtype).isfinite().all())


def _total(values: Tensor) -> Tensor:
    """Sum of the values, of 32 bits at least: fewer would overflow, and float8 has no sum at all."""
    return values.sum() if values.dtype.itemsize >= 4 else values.float().sum()


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity."""
    real = [values for values in state.values() if values.is_floating_point() and not values.is_meta]
    if real and bool(torch.stack([_total(values).double().cpu() for values in real]).isfinite().all()):
        return [name for name, values in state.items() if values.is_complex() and not is_finite(values)]
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
