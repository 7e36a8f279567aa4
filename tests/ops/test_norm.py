"""Layer norm and depthwise convolution + norm + GELU: kernels against PyTorch in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from drivestack.ops.norm import depthwise_norm, layer_norm

EPS = 1e-6
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3, torch.float64: 1e-12}


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def close(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(3, 64), (17, 5, 80), (1, 2, 33, 7), (2, 1), (40, 16), (0, 8), (5, 515)])
def test_layer_norm_is_pytorchs(backend, dtype, shape, gelu):
    channels = shape[-1]
    x, weight, bias = 3 * randn(*shape, dtype=dtype) + 1, randn(channels), randn(channels + 1)[1:]
    expected = F.layer_norm(x.double(), (channels,), weight.double(), bias.double(), EPS)
    expected = F.gelu(expected) if gelu else expected
    close(layer_norm(x, weight, bias, EPS, gelu=gelu, backend=backend), expected, dtype)
    residual = randn(*shape, dtype=dtype).flip(0)
    found = layer_norm(x, weight, bias, EPS, gelu=gelu, residual=residual, backend=backend)
    close(found, expected + residual.double(), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "padding"),
    [
        ((1, 9, 14, 64), 3, 1, 1),
        ((2, 7, 5, 24), 5, 1, 2),
        ((1, 4, 35, 19), 3, 2, 1),
        ((1, 6, 6, 16), 3, 1, 0),
        ((2, 3, 2, 48), 7, 1, 3),  # the kernel is larger than the map
        ((1, 5, 4, 8), 1, 2, 0),
        ((1, 3, 4, 16), 4, 3, 2),
    ],
)
def test_depthwise_norm_is_pytorchs(backend, dtype, shape, kernel, stride, padding):
    channels = shape[-1]
    x, taps, taps_bias = randn(*shape, dtype=dtype), randn(channels, 1, kernel, kernel), randn(channels)
    weight, bias = randn(channels) + 2, randn(channels)
    y = F.conv2d(
        x.double().permute(0, 3, 1, 2), taps.double(), taps_bias.double(), stride, padding, groups=channels
    ).permute(0, 2, 3, 1)
    expected = F.gelu(F.layer_norm(y, (channels,), weight.double(), bias.double(), EPS))
    found = depthwise_norm(
        x, taps, taps_bias, weight, bias, EPS, gelu=True, stride=stride, padding=padding, backend=backend
    )
    assert found.is_contiguous()
    close(found, expected, dtype)


def test_any_strides(kernels):
    x = randn(2, 8, 6, 5).permute(0, 2, 3, 1)
    weight, bias = randn(8), randn(8)
    assert torch.equal(layer_norm(x, weight, bias, EPS, backend=kernels), layer_norm(x.contiguous(), weight, bias, EPS))
    taps = randn(8, 1, 3, 3)
    found = depthwise_norm(x, taps, bias, weight, bias, EPS, padding=1, backend=kernels)
    dense = depthwise_norm(x.contiguous(), taps, bias, weight, bias, EPS, padding=1)
    assert torch.equal(found, dense)


def test_gelu_over_its_whole_range(backend):
    """The norm of (x, -x) is (1, -1) for any x > 0, so the weight is what GELU sees."""
    values = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([float("nan"), 1e30, -1e30])])
    row = torch.tensor([1.0, -1.0])
    zero = torch.zeros(2)
    found = torch.stack([layer_norm(row, v.expand(2), zero, 0.0, gelu=True, backend=backend)[0] for v in values])
    torch.testing.assert_close(found.double(), F.gelu(values.double()), rtol=1e-6, atol=2e-6, equal_nan=True)


def test_same_bits_for_any_number_of_threads(kernels, set_threads):
    x, taps, other = randn(2, 13, 11, 40), randn(40, 1, 3, 3), randn(40)
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        results.append(depthwise_norm(x, taps, other, other, other, EPS, gelu=True, padding=1, backend=kernels))
        results.append(layer_norm(results[-1], other, other, EPS, backend=kernels))
    assert all(torch.equal(a, b) for a, b in zip(results, results[2:]))


def test_opcheck(kernels):
    x, weight = randn(2, 4, 4, 8), randn(8)
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.drivestack.layer_norm.default, (x, weight, weight, EPS, True, x), test_utils=checks)
    arguments = (x, randn(8, 1, 3, 3), weight, weight, weight, EPS, True, 1, 1)
    torch.library.opcheck(torch.ops.drivestack.depthwise_norm.default, arguments, test_utils=checks)


def test_shapes_that_do_not_fit():
    x, weight = randn(2, 4, 4, 8), randn(8)
    with pytest.raises(ValueError, match=r"layer_norm: weight \[7\]"):
        layer_norm(x, weight[:7], weight, EPS)
    with pytest.raises(ValueError, match=r"residual torch\.bfloat16"):
        layer_norm(x, weight, weight, EPS, residual=x.bfloat16())
    for kernel in (randn(8, 3, 3), randn(7, 1, 3, 3), randn(8, 1, 3, 2)):
        with pytest.raises(ValueError, match="do not fit x"):
            depthwise_norm(x, kernel, weight, weight, weight, EPS, padding=1)
    with pytest.raises(ValueError, match="padding 3"):
        depthwise_norm(x, randn(8, 1, 3, 3), weight, weight, weight, EPS, padding=3)
