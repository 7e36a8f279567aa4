"""Numbers that are not finite are found whatever their type, and outputs with any end the prediction with a name."""

from __future__ import annotations

import pytest
import torch

from drivestack.core.errors import PredictionError
from drivestack.core.finite import check_answer, is_finite, not_finite


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.float8_e4m3fn]
)
def test_every_type(dtype: torch.dtype) -> None:
    fine = torch.ones(5).to(dtype)
    broken = torch.tensor([1.0, float("nan")]).to(dtype)
    assert is_finite(fine) and not is_finite(broken)
    assert not_finite({"fine": fine, "broken": broken, "count": torch.ones(3, dtype=torch.int64)}) == ["broken"]


def test_sums_that_overflow_are_no_fault() -> None:
    large = torch.full((1000,), 3e38)
    assert is_finite(large) and not_finite({"large": large}) == []
    assert is_finite(torch.full((1000,), 60000.0, dtype=torch.float16))
    assert is_finite(torch.empty(0)) and is_finite(torch.empty(3, device="meta"))


def test_opposite_infinities_do_not_cancel() -> None:
    assert not is_finite(torch.tensor([torch.inf, -torch.inf]))


def test_an_answer_is_named_with_sample_and_task() -> None:
    check_answer("boxes", "sample-1", torch.ones(2), torch.empty(0, 9))
    with pytest.raises(PredictionError, match="sample sample-1: the model's boxes are NaN or infinite; check"):
        check_answer("boxes", "sample-1", torch.ones(2), torch.tensor([float("nan")]))
