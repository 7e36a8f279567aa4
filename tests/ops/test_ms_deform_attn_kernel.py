"""CPU kernels of multi-scale deformable attention, plain and fused, against the reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from drivestack.ops import ms_deform_attn_fused
from drivestack.ops.dispatch.backend import extension

from . import cuda_cases as cases
from .cuda_cases import BF16, F32, F64

INT32_MAX = 2**31 - 1
KEYS = {"ms_deform_attn": "msda", "ms_deform_attn_fused": "fused"}


@pytest.fixture
def ops(kernels):
    """The operators at the dispatcher."""
    return torch.ops.drivestack


@pytest.mark.parametrize("value,taps", cases.DTYPES, ids=cases.DTYPE_IDS)
@pytest.mark.parametrize("name", [n for n in cases.CASES if n.startswith(("msda", "fused"))])
def test_parity(ops, name, value, taps):
    if name.startswith("msda") and value != taps and taps == F32:
        pytest.skip("plain attention has one type of locations")
    cases.check(ops, cases.make(name), value, taps, modes=(True,))


@pytest.mark.parametrize("channels", [1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 72])
def test_channels(ops, channels):
    torch.manual_seed(channels)
    for value in (F32, F64, BF16):
        case = cases.fused(2, 7, 3, channels, 5, [(5, 6), (3, 2)], packed=True)
        cases.check(ops, case, value, value, modes=(True,))


# Rows of the softmax: a power of two within a register, whole registers, anything else; one tap; no tap; many heads.
@pytest.mark.parametrize(
    "heads, levels, points",
    [
        (1, 1, 1),
        (8, 1, 2),
        (8, 1, 4),
        (3, 2, 4),
        (8, 4, 4),
        (2, 4, 8),
        (5, 3, 3),
        (2, 5, 8),
        (1, 5, 7),
        (16, 2, 16),
        (2, 2, 0),
    ],
)
@pytest.mark.parametrize("mean", [False, True], ids=["over_all", "level_mean"])
def test_rows_of_the_softmax(ops, heads, levels, points, mean):
    torch.manual_seed(heads + levels)
    shapes = [(7, 6), (4, 5), (3, 3), (1, 2), (1, 1)][:levels]
    for value in (F32, F64):
        case = cases.fused(2, 5, heads, 8, points, shapes, references=2, mean=mean)
        cases.check(ops, case, value, value, modes=(True,))


def test_large_logits(ops):
    """The softmax subtracts the largest logit, and what is far below it has no weight."""
    case = cases.make("fused")
    case.inputs[4].mul_(200)
    cases.check(ops, case, F32, F32, modes=(True,))
    case.inputs[4][..., 1] = -float("inf")
    out, _, _, grad_logits = cases.results(ops, case, case.cast(F32, F32), True)
    assert out.isfinite().all() and (grad_logits[..., 1] == 0).all()


def test_levels_that_share_tokens(ops):
    """Two levels over the same map, and one over a part of it, sum their gradients."""
    torch.manual_seed(0)
    for mean in (False, True):
        levels = [5, 6, 0, 5, 6, 0, 2, 6, 12]
        case = cases.fused(2, 33, 2, 32, 4, [(5, 6), (5, 6), (2, 6)], mean=mean, levels=levels)
        for value in (F32, BF16):
            cases.check(ops, case, value, value, modes=(True,))


def layouts(inputs: list) -> dict[str, list]:
    """The same numbers of a fused call in other memory."""
    value, levels, reference, offsets, logits, mean = inputs

    def transposed(x: Tensor) -> Tensor:
        return x.transpose(0, 1).contiguous().transpose(0, 1)

    def heads_apart(x: Tensor) -> Tensor:
        return torch.cat([x, x], 2)[:, :, : x.shape[2]]

    rows = torch.randn(*logits.shape[:2], 7 + 3 * logits[0, 0].numel(), dtype=logits.dtype)
    rows[..., 3 : 3 + offsets[0, 0].numel()] = offsets.flatten(2)
    rows[..., -logits[0, 0].numel() :] = logits.flatten(2)
    packed = (
        rows[..., 3 : 3 + offsets[0, 0].numel()].view(offsets.shape),
        rows[..., -logits[0, 0].numel() :].view(logits.shape),
    )
    pairs_apart = torch.stack([reference, reference], -1)[..., 0]
    wide = reference.expand(value.shape[0], -1, len(levels) // 3, -1, -1)
    return {
        "packed": [value, levels, reference, *packed, mean],
        "value transposed": [transposed(value), levels, reference, offsets, logits, mean],
        "rows transposed": [value, levels, reference, transposed(offsets), transposed(logits), mean],
        "heads apart": [value, levels, reference, heads_apart(offsets), heads_apart(logits), mean],
        "pairs apart": [value, levels, pairs_apart, offsets, logits, mean],
        "references expanded": [value, levels, wide, offsets, logits, mean],
        "references transposed": [
            value,
            levels,
            wide.transpose(1, 2).contiguous().transpose(1, 2),
            offsets,
            logits,
            mean,
        ],
    }


def test_layouts_change_no_bit(kernels):
    torch.manual_seed(0)
    case = cases.fused(3, 6, 2, 8, 4, [(5, 6), (3, 2)], references=2, one_batch=True, one_level=True)
    expected = cases.results(torch.ops.drivestack, case, case.cast(F32, F32), True)
    for name, inputs in layouts(case.cast(F32, F32)).items():
        for actual, wanted in zip(cases.results(torch.ops.drivestack, case, inputs, True), expected):
            assert torch.equal(actual, wanted) and actual.is_contiguous(), name


def test_a_map_of_more_than_two_billion_elements(kernels):
    """Its memory is never touched but for the last level (numpy's zeros cost nothing until then)."""
    numpy = pytest.importorskip("numpy")
    tokens, last = 2**24 + 40, 40
    value = torch.from_numpy(numpy.zeros((1, tokens, 2, 64), numpy.float16))
    torch.manual_seed(0)
    value[:, -last:] = torch.randn(1, last, 2, 64)
    locations, weights = torch.rand(1, 9, 2, 2, 3, 2), torch.rand(1, 9, 2, 2, 3)
    weights[:, :, :, 0] = 0
    found = torch.ops.drivestack.ms_deform_attn(value, [2**12, 2**12, 5, 8], locations, weights)
    small = (value[:, -last:].clone(), [5, 8], locations[:, :, :, 1:], weights[:, :, :, 1:])
    torch.testing.assert_close(found, torch.ops.drivestack.ms_deform_attn(*small), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", ["msda", "msda-wide", "fused", "fused-references"])
@pytest.mark.parametrize("value", [F32, BF16])
def test_threads_change_no_bit(set_threads, kernels, name, value):
    case = cases.make(name)
    inputs = [
        x.repeat(1, 30, *[1] * (x.dim() - 2)) if isinstance(x, Tensor) and i else x for i, x in enumerate(case.inputs)
    ]
    case = cases.Case(case.op, inputs)
    set_threads(1)
    expected = cases.results(torch.ops.drivestack, case, case.cast(value, value), True)
    for threads in (2, 3, 5, 16):
        set_threads(threads)
        for actual, wanted in zip(cases.results(torch.ops.drivestack, case, case.cast(value, value), True), expected):
            assert torch.equal(actual, wanted), threads


def test_images_are_separate(ops):
    cases.check_images_are_separate(ops)


def test_points_outside(ops):
    cases.check_points_outside(ops)


def test_wild_references(ops):
    """References or offsets that are NaN, infinite or far away sample nothing and get gradients of exactly zero."""
    for bad in (float("nan"), float("inf"), -float("inf"), 1e30, -1e9):
        case = cases.make("fused")
        inputs = case.cast(F32, F32)
        inputs[2][:, ::3, 0] = bad
        inputs[3] = inputs[3].clone()
        inputs[3][:, :, 1, 1, 2, 1] = bad
        out, grad_value, grad_offsets, grad_logits = cases.results(ops, case, inputs, True)
        assert out.isfinite().all() and grad_value.isfinite().all() and grad_logits.isfinite().all()
        assert (grad_offsets[:, ::3, :, 0] == 0).all() and (grad_offsets[:, :, 1, 1, 2] == 0).all()
        harmless = [torch.where(x.isfinite(), x, 1e6) if isinstance(x, Tensor) else x for x in inputs]
        for actual, wanted in zip(
            (out, grad_value, grad_offsets, grad_logits), cases.results(ops, case, harmless, True)
        ):
            assert torch.equal(actual, wanted)


def test_float_locations_with_half_values(ops):
    cases.check_float_locations(ops)


def test_sums_are_float(ops):
    cases.check_sums_are_float(ops)


def test_a_level_outside_of_the_tokens_is_refused(kernels):
    value, levels, *rest = cases.make("fused").cast(F32, F32)
    for place, number in ((2, 7), (5, 36), (0, 0), (1, 1 << 40), (2, -1)):
        broken = list(levels)
        broken[place] = number
        with pytest.raises(RuntimeError, match="level"):
            torch.ops.drivestack.ms_deform_attn_fused(value, broken, *rest)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_any_shapes(data):
    if extension("cpu").reason:
        pytest.skip(extension("cpu").reason)
    draw = lambda name, options: data.draw(options, label=name)
    shapes = draw("shapes", st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=5))
    batch, heads, queries = draw("sizes", st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(0, 20)))
    channels, points = draw("channels", st.integers(1, 70)), draw("points", st.integers(1, 9))
    dtypes = draw("dtypes", st.sampled_from(cases.DTYPES))
    torch.manual_seed(draw("seed", st.integers(0, 1000)))
    if draw("plain", st.booleans()):
        case, dtypes = cases.attention(batch, queries, heads, channels, points, shapes), (dtypes[0], dtypes[0])
    else:
        flags = {name: draw(name, st.booleans()) for name in ("mean", "one_batch", "one_level", "packed")}
        references = draw("references", st.integers(1, points))
        case = cases.fused(batch, queries, heads, channels, points, shapes, references, **flags)
    cases.check(torch.ops.drivestack, case, *dtypes, modes=(True,))


def test_gradient_to_references(kernels):
    """It comes from the gradients to the offsets: exact with half values too."""
    case = cases.make("fused-references")
    value, levels, reference, offsets, logits, mean = case.cast(F64, F64)
    shapes = list(zip(levels[::3], levels[1::3]))
    inputs = [x.requires_grad_() for x in (value, reference, offsets, logits)]
    found, expected = (
        torch.autograd.grad(
            ms_deform_attn_fused(value, shapes, *inputs[1:], level_mean=mean, backend=b).sin().sum(), inputs
        )
        for b in ("cpp", "reference")
    )
    for actual, wanted in zip(found, expected):
        torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-9)
