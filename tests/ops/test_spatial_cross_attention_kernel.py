"""The CPU kernel of spatial cross-attention against the reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drivestack.ops.dispatch.backend import extension

from . import cuda_cases as cases
from .cuda_cases import BF16, F16, F32, F64
from .test_ms_deform_attn_kernel import ops  # noqa: F401  (a fixture)


@pytest.mark.parametrize("value,taps", cases.DTYPES, ids=cases.DTYPE_IDS)
@pytest.mark.parametrize("name", [n for n in cases.CASES if n.startswith("cross")])
def test_parity(ops, name, value, taps):  # noqa: F811
    cases.check(ops, cases.make(name), value, taps, modes=(True,))


@pytest.mark.parametrize("references", [1, 2, 4, 8])
def test_shapes_of_bevformer(ops, references):  # noqa: F811
    torch.manual_seed(references)
    for value in (F32, BF16):
        case = cases.cross_attention(2, 6, 11, 8, 32, 8, [(12, 20), (6, 10), (3, 5), (2, 3)], references, seen=0.2)
        cases.check(ops, case, value, value, modes=(True,))


def test_masks_per_sample(ops):  # noqa: F811
    cases.check_masks_per_sample(ops)


def test_only_cameras_that_see_count(ops):  # noqa: F811
    """What a camera that does not see a query holds and where it projects the query to changes nothing."""
    torch.manual_seed(0)
    case = cases.cross_attention(2, 3, 9, 2, 32, 4, [(5, 6), (2, 3)], seen=0.5)
    inputs = case.cast(F32, F32)
    inputs[3][:, 1] = False
    expected = cases.results(ops, case, inputs, True)
    inputs[0][:, 1] = float("nan")
    inputs[2][~inputs[3]] = float("nan")
    for actual, wanted in zip(cases.results(ops, case, inputs, True), expected):
        assert torch.equal(actual, wanted)
    assert (expected[1][:, 1] == 0).all()


def test_is_the_mean_of_fused_attention(ops):  # noqa: F811
    torch.manual_seed(0)
    value, levels, reference, visible, offsets, logits = cases.cross_attention(
        2, 3, 9, 2, 16, 4, [(5, 6), (2, 3)]
    ).cast(F64, F64)
    total = torch.zeros(2, 9, 32, dtype=F64)
    for camera in range(3):
        one = ops.ms_deform_attn_fused(
            value[:, camera].contiguous(), levels, reference[:, camera].unsqueeze(2), offsets, logits, False
        )
        total += one * visible[:, camera].unsqueeze(-1)
    found = ops.spatial_cross_attention(value, levels, reference, visible, offsets, logits)
    torch.testing.assert_close(found, total / visible.sum(1).clamp(min=1).unsqueeze(-1), rtol=1e-10, atol=1e-10)


def test_no_cameras_no_queries_no_samples(ops):  # noqa: F811
    for b, n, q in ((0, 3, 5), (2, 0, 5), (2, 3, 0)):
        case = cases.cross_attention(b, n, q, 2, 8, 4, [(5, 6)])
        out, *grads = cases.results(ops, case, case.cast(F32, F32), True)
        assert out.shape == (b, q, 16) and all((x == 0).all() for x in (out, *grads))


@pytest.mark.parametrize("value", [F32, F16])
def test_threads_change_no_bit(set_threads, kernels, value):
    torch.manual_seed(0)
    case = cases.cross_attention(1, 6, 700, 8, 32, 4, [(5, 6), (2, 3)], references=4, seen=0.25)
    set_threads(1)
    expected = cases.results(torch.ops.drivestack, case, case.cast(value, value), True)
    for threads in (2, 3, 8, 16):
        set_threads(threads)
        for actual, wanted in zip(cases.results(torch.ops.drivestack, case, case.cast(value, value), True), expected):
            assert torch.equal(actual, wanted), threads


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_any_shapes(data):
    if extension("cpu").reason:
        pytest.skip(extension("cpu").reason)
    draw = lambda name, options: data.draw(options, label=name)
    shapes = draw("shapes", st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=4))
    sizes = draw("batch, cameras, queries, heads", st.tuples(*(st.integers(low, 9) for low in (0, 1, 0, 1))))
    channels, points = draw("channels", st.integers(1, 40)), draw("points", st.integers(1, 9))
    references, seen = draw("references", st.integers(1, points)), draw("seen", st.sampled_from([0.0, 0.3, 1.0]))
    dtypes = draw("dtypes", st.sampled_from(cases.DTYPES))
    torch.manual_seed(draw("seed", st.integers(0, 1000)))
    batch, cameras, queries, heads = sizes
    case = cases.cross_attention(min(batch, 3), cameras, queries, heads, channels, points, shapes, references, seen)
    cases.check(torch.ops.drivestack, case, *dtypes, modes=(True,))
