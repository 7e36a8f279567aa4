"""Multi-scale deformable attention: reference and kernels against grid_sample, gradients, odd shapes, wrong input."""

import pytest
import torch
import torch.nn.functional as F

from drivestack.ops import ms_deform_attn

SHAPES = ((7, 9), (4, 3), (1, 1))


def random_inputs(b, q, m, d, points, shapes=SHAPES, dtype=torch.float32, seed=0):
    """(value, locations, weights, grad_out); some locations lie outside."""
    generator = torch.Generator().manual_seed(seed)
    randn = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64)
    locations = 0.5 + 0.4 * randn(b, q, m, len(shapes), points, 2)
    coordinates = dtype if dtype == torch.float64 else torch.float32
    value = randn(b, sum(h * w for h, w in shapes), m, d).to(dtype)
    weights = randn(b, q, m, len(shapes), points)
    return value, locations.to(coordinates), weights.to(coordinates), randn(b, q, m * d).to(dtype)


def run(tensors, backend, shapes=SHAPES):
    """out, grad_value, grad_locations, grad_weights."""
    inputs = [t.detach().clone().requires_grad_() for t in tensors[:3]]
    out = ms_deform_attn(inputs[0], shapes, *inputs[1:], backend=backend)
    return out.detach(), *torch.autograd.grad(out, inputs, tensors[3])


def grid_sample_form(value, shapes, locations, weights):
    b, _, m, d = value.shape
    q = locations.shape[1]
    out = 0
    start = 0
    for level, (height, width) in enumerate(shapes):
        image = value[:, start : start + height * width].permute(0, 2, 3, 1).reshape(b * m, d, height, width)
        start += height * width
        grid = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)  # [BM, Q, P, 2]
        sample = F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        weight = weights[:, :, :, level].transpose(1, 2).flatten(0, 1).unsqueeze(1)  # [BM, 1, Q, P]
        out = out + (sample * weight).sum(-1)
    return out.view(b, m * d, q).transpose(1, 2)


def test_agrees_with_grid_sample(backend):
    tensors = random_inputs(2, 13, 3, 8, 5, dtype=torch.float64)
    inputs = [t.clone().requires_grad_() for t in tensors[:3]]
    out = grid_sample_form(inputs[0], SHAPES, *inputs[1:])
    expected = (out.detach(), *torch.autograd.grad(out, inputs, tensors[3]))
    for found, wanted in zip(run(tensors, backend), expected):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("channels", [1, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64])
def test_any_number_of_channels(channels, backend):
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-11)):
        tensors = random_inputs(2, 11, 3, channels, 5, dtype=dtype)
        exact = run([t.double() for t in tensors], "reference")
        for found, expected in zip(run(tensors, backend), exact):
            torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_half_precision(dtype, tolerance, backend):
    for channels in (3, 8, 16, 32):
        tensors = random_inputs(2, 11, 2, channels, 4, dtype=dtype)
        results, exact = run(tensors, backend), run([t.double() for t in tensors], "reference")
        assert [r.dtype for r in results] == [dtype, dtype, torch.float32, torch.float32]
        for found, expected in zip(results, exact):
            assert (found.double() - expected).abs().max() <= tolerance * expected.abs().max()


def test_gradcheck(backend):
    value, locations, weights, _ = random_inputs(1, 3, 2, 2, 2, ((3, 4), (2, 2)), torch.float64)
    inputs = [t.requires_grad_() for t in (value, locations, weights)]
    function = lambda v, lo, w: ms_deform_attn(v, ((3, 4), (2, 2)), lo, w, backend=backend)
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize(
    "size",
    [(0, 4, 2, 8, 3), (2, 0, 2, 8, 3), (1, 1, 1, 1, 1), (2, 70, 5, 16, 1), (1, 3, 8, 8, 9), (2, 4, 2, 8, 0)],
    ids=["empty_batch", "no_queries", "one_of_each", "odd_heads", "many_points", "no_points"],
)
def test_odd_shapes(size, backend):
    tensors = random_inputs(*size)
    results, exact = run(tensors, backend), run([t.double() for t in tensors], "reference")
    for found, expected in zip(results, exact):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 1e8])
def test_wild_locations_sample_nothing(bad, backend):
    for dtype in (torch.float32, torch.float64):
        value, locations, weights, grad_out = random_inputs(2, 9, 2, 8, 5, dtype=dtype)
        locations[:, ::2, :, :, 1:3, 0] = bad
        results = run((value, locations, weights, grad_out), backend)
        harmless = torch.where(torch.isfinite(locations), locations, 1e4)
        for found, wanted in zip(results, run((value, harmless, weights, grad_out), "reference")):
            assert found.isfinite().all()
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_non_contiguous_input(kernels):
    tensors = random_inputs(2, 11, 3, 8, 5)
    strided = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in tensors]
    assert not strided[0].is_contiguous()
    for found, expected in zip(run(strided, "cpp"), run(tensors, "cpp")):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("size", [(1, 300, 8, 16, 4), (2, 100, 3, 8, 4), (5, 64, 4, 12, 2)], ids=str)
def test_number_of_threads_changes_no_bit(size, set_threads, kernels):
    tensors = random_inputs(*size)
    set_threads(1)
    one = run(tensors, "cpp")
    for threads in (2, 3, 7):
        set_threads(threads)
        for found, expected in zip(run(tensors, "cpp"), one):
            assert torch.equal(found, expected)


def test_shapes_may_be_a_tensor():
    value, locations, weights, _ = random_inputs(1, 5, 2, 8, 3)
    found = ms_deform_attn(value, torch.tensor(SHAPES), locations, weights)
    assert torch.equal(found, ms_deform_attn(value, SHAPES, locations, weights))


def test_wrong_shapes_and_dtypes_name_themselves():
    value, locations, weights, _ = random_inputs(1, 5, 2, 8, 3)
    with pytest.raises(ValueError, match=r"hold 64 tokens but value has 76; got value \[1, 76, 2, 8\]"):
        ms_deform_attn(value, SHAPES[:1] + SHAPES[2:], locations, weights)
    with pytest.raises(ValueError, match=r"attention_weights \[1, 5, 2, 3, 3\]; got .*\[1, 5, 2, 3, 2\]"):
        ms_deform_attn(value, SHAPES, locations, weights[..., :-1])
    with pytest.raises(ValueError, match=r"sampling_locations must be \[1, 5, 2, 3, 3, 2\]"):
        ms_deform_attn(value, SHAPES, locations[:, :, :1], weights)
    with pytest.raises(ValueError, match=r"expected value \[B, S, M, D\].*got value \[76, 2, 8\]"):
        ms_deform_attn(value[0], SHAPES, locations, weights)
    with pytest.raises(ValueError, match="at least 1"):
        ms_deform_attn(value, (*SHAPES, (0, 4)), locations, weights)
    with pytest.raises(TypeError, match=r"attention_weights must be float32.*got torch.int32"):
        ms_deform_attn(value, SHAPES, locations, weights.int())
    with pytest.raises(TypeError, match="float64 cannot be mixed"):
        ms_deform_attn(value.double(), SHAPES, locations, weights)
