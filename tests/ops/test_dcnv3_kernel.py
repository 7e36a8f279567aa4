"""The CPU kernels of DCNv3 and DCNv4, called at the dispatcher: every storage type and layout against the reference in
float64, the softmax and threads."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drivestack.ops.dispatch import registration  # noqa: F401  (defines the operators)
from drivestack.ops.dispatch.backend import extension
from drivestack.ops.reference import dcnv3_reference, output_size

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
TOLERANCE = {F32: 2e-5, F64: 1e-11, BF16: 2e-2, F16: 3e-3}
LAYOUTS = ("apart", "packed", "by_group", "packed_by_group", "padded_by_group", "transposed")


def arguments(
    groups=1, kernel=(3, 3), stride=(1, 1), pad=(1, 1), dilation=(1, 1), scale=1.0, no_center=False, soft=False
):
    """Window and flags as the schema has them."""
    return (*kernel, *stride, *pad, *dilation, groups, scale, no_center, soft)


def lay_out(offset, mask, layout):
    """The same numbers (offset [N, Ho, Wo, G, 2K], mask [N, Ho, Wo, G, K]) in another place."""
    flat_offset, flat_mask = offset.flatten(3), mask.flatten(3)
    widths = offset.shape[4], mask.shape[4]
    if layout == "apart":
        return flat_offset.contiguous(), flat_mask.contiguous()
    if layout == "packed":  # one projection of InternImage's layer
        return torch.cat((flat_offset, flat_mask), -1).split((flat_offset.shape[3], flat_mask.shape[3]), -1)
    if layout == "by_group":
        return offset.contiguous(), mask.contiguous()
    if layout == "packed_by_group":  # DCNv4's
        return torch.cat((offset, mask), -1).split(widths, -1)
    if layout == "padded_by_group":  # DCNv4's, its last axis padded to a multiple of 8
        packed = torch.cat((offset, mask), -1).flatten(3)
        room = packed.new_full((*packed.shape[:3], -(-packed.shape[3] // 8) * 8 + 8), 7.0)
        room[..., : packed.shape[3]] = packed
        return room[..., : packed.shape[3]].unflatten(3, mask.shape[3:4] + (sum(widths),)).split(widths, -1)
    return flat_offset.transpose(1, 2).contiguous().transpose(1, 2), flat_mask.flip(3).contiguous().flip(3)


def inputs(size, groups, channels, window, dtype=F32, tap_dtype=None, layout="apart", spread=1.0, seed=0):
    """value, offset, mask, grad_out for the window, drawn in float64 and rounded to their dtypes."""
    generator = torch.Generator().manual_seed(seed)
    tap_dtype = tap_dtype or dtype
    out = output_size(size[1:], *(window[i : i + 2] for i in range(0, 8, 2)))
    taps = window[0] * window[1] - window[10]
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=F64)
    value, grad_out = draw(*size, groups * channels).to(dtype), draw(size[0], *out, groups * channels).to(dtype)
    offset, mask = spread * draw(size[0], *out, groups, 2 * taps), draw(size[0], *out, groups, taps)
    return value, *lay_out(offset.to(tap_dtype), mask.to(tap_dtype), layout), grad_out


def run(tensors, window):
    """out, grad_value, grad_offset, grad_mask of the kernels."""
    value, offset, mask, grad_out = tensors
    out = torch.ops.drivestack.dcnv3(value, offset, mask, *window)
    return out, *torch.ops.drivestack.dcnv3_backward(grad_out, value, offset, mask, *window, True)


def reference(tensors, window):
    """The same from the reference's formula and autograd, in float64."""
    value, offset, mask, grad_out = (t.double() for t in tensors)
    leaves = [t.detach().clone().requires_grad_() for t in (value, offset, mask)]
    out = dcnv3_reference(*leaves, *(window[i : i + 2] for i in range(0, 8, 2)), *window[8:])
    return out.detach(), *torch.autograd.grad(out, leaves, grad_out)


def check(tensors, window, tolerance=None):
    names = ("out", "grad_value", "grad_offset", "grad_mask")
    for name, found, expected, like in zip(names, run(tensors, window), reference(tensors, window), (None, *tensors)):
        assert found.is_contiguous() and found.dtype == (tensors[0] if like is None else like).dtype
        limit = tolerance or TOLERANCE[found.dtype if found.dtype != F32 else tensors[0].dtype]
        torch.testing.assert_close(
            found.double(), expected, rtol=limit, atol=limit * max(1.0, expected.abs().max().item()), msg=name
        )


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("types", [(F32, F32), (F64, F64), (BF16, BF16), (BF16, F32), (F16, F16), (F16, F32)], ids=str)
def test_every_type_and_layout(types, soft, kernels):
    window = arguments(groups=3, soft=soft)
    for layout in LAYOUTS:
        check(inputs((2, 4, 5), 3, 16, window, *types, layout), window)


@pytest.mark.parametrize("channels", [1, 3, 8, 16, 20, 24, 32, 64])
@pytest.mark.parametrize("kernel", [(1, 1), (2, 2), (3, 3), (1, 4), (5, 5)], ids=str)
def test_channels_and_taps(channels, kernel, kernels):
    window = arguments(groups=2, kernel=kernel, soft=True)
    check(inputs((1, 4, 6), 2, channels, window), window)
    if kernel != (1, 1) and kernel[0] == kernel[1]:
        window = arguments(groups=2, kernel=kernel, no_center=True)
        check(inputs((1, 4, 6), 2, channels, window, layout="packed"), window)


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 1, 7), (1, 7, 1), (1, 2, 2), (2, 5, 20)], ids=str)
@pytest.mark.parametrize("spread", [0.0, 1.0, 20.0])
def test_sizes_and_spreads(size, spread, kernels):
    for groups in (1, 3):
        window = arguments(groups=groups, soft=True)
        check(inputs(size, groups, 16, window, spread=spread, layout="packed"), window)


@pytest.mark.parametrize(
    "options",
    [
        {"stride": (2, 2)},
        {"stride": (2, 3), "pad": (0, 2), "dilation": (2, 1), "kernel": (3, 2)},
        {"pad": (4, 3), "scale": 2.0},
        {"pad": (0, 0), "scale": 0.5, "dilation": (3, 2)},
    ],
    ids=str,
)
def test_windows(options, kernels):
    window = arguments(groups=4, soft=True, **options)
    check(inputs((2, 15, 14), 4, 16, window, layout="packed_by_group"), window)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_shape(data):
    if extension("cpu").reason:
        pytest.skip(extension("cpu").reason)
    small = lambda high, low=1: data.draw(st.integers(low, high))
    pair = lambda high, low=1: (small(high, low), small(high, low))
    kernel, groups, channels, dtype = pair(4), small(6), small(20), data.draw(st.sampled_from((F32, F64, BF16)))
    no_center = kernel[0] * kernel[1] > 1 and data.draw(st.booleans())
    window = arguments(
        groups,
        kernel,
        pair(3),
        pair(3, 0),
        pair(2),
        data.draw(st.sampled_from((1.0, 0.5, 2.0))),
        no_center,
        data.draw(st.booleans()),
    )
    reach = [window[6 + i] * (kernel[i] - 1) + 1 - 2 * window[4 + i] for i in (0, 1)]
    size = (small(2), *(max(1, reach[i]) + small(8, 0) for i in (0, 1)))
    layout = data.draw(st.sampled_from(LAYOUTS))
    check(inputs(size, groups, channels, window, dtype, layout=layout, seed=small(1000)), window)


@pytest.mark.parametrize("shape", [((1, 20, 18), 5, 16), ((2, 7, 7), 8, 8), ((3, 5, 4), 1, 12)], ids=str)
@pytest.mark.parametrize("soft", [False, True])
def test_threads_change_no_bit(shape, soft, kernels, set_threads):
    size, groups, channels = shape
    window = arguments(groups=groups, soft=soft)
    tensors = inputs(size, groups, channels, window, layout="packed")
    tensors = tuple(t.repeat(1, 3, 3, 1) for t in tensors)  # enough work for several threads
    set_threads(1)
    alone = run(tensors, window)
    for threads in (2, 3, 5):
        set_threads(threads)
        assert all(torch.equal(found, expected) for found, expected in zip(run(tensors, window), alone))


def test_softmax_of_wild_logits(kernels):
    """Groups of very different logits share a pass; infinities and NaN stay in their group."""
    window = arguments(groups=4, soft=True)
    for dtype in (F32, F64, BF16):
        value, offset, mask, grad_out = inputs((1, 5, 6), 4, 16, window, dtype)
        mask = mask * 5
        mask[:, 1, :, 9:18] += 300
        mask[:, 2, :, 18:27] -= 2000
        mask[:, 3, :, 3] = -float("inf")
        check((value, offset, mask, grad_out), window)
        mask[0, 0, 0, 2], mask[0, 4, 0, 9:18], mask[0, 4, 1, 30] = float("nan"), -float("inf"), float("inf")
        found, expected = (f((value, offset, mask, grad_out), window) for f in (run, reference))
        assert torch.equal(found[0].isnan(), expected[0].isnan())
        assert torch.equal(found[3].isnan(), expected[3].isnan())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30, -3e9])
def test_wild_offsets_sample_nothing(bad, kernels):
    window = arguments(groups=2)
    for dtype in (F32, F64, BF16):
        value, offset, mask, grad_out = inputs((1, 4, 5), 2, 16, window, dtype)
        offset[:, ::2, :, ::3] = bad
        harmless = torch.where(offset.isfinite(), offset, 1e4)
        for found, expected in zip(
            run((value, offset, mask, grad_out), window), reference((value, harmless, mask, grad_out), window)
        ):
            assert found.isfinite().all()
            limit = TOLERANCE[dtype]
            torch.testing.assert_close(found.double(), expected, rtol=limit, atol=limit * 10)


def test_a_pixel_of_nan_reaches_only_its_neighbours(kernels):
    window = arguments(groups=1)
    value, offset, mask, grad_out = inputs((1, 9, 9), 1, 16, window, spread=0.2)
    value[0, 4, 4] = float("nan")
    out, grad_value, grad_offset, grad_mask = run((value, offset, mask, grad_out), window)
    assert grad_value.isfinite().all()
    for t in (out, grad_offset, grad_mask):
        touched = t.isnan().any(-1)[0]
        assert touched[4, 4] and touched[3:6, 3:6].sum() >= 9 and not touched[:2].any() and not touched[7:].any()


@pytest.mark.parametrize("size", [(0, 5, 6), (2, 5, 6)], ids=["no images", "no channels"])
def test_empty_inputs(size, kernels):
    window = arguments(groups=2)
    tensors = inputs(size, 2, 0 if size[0] else 8, window)
    out, grad_value, grad_offset, grad_mask = run(tensors, window)
    assert out.shape == tensors[3].shape and grad_value.shape == tensors[0].shape
    assert not grad_offset.any() and not grad_mask.any()


def test_wrong_calls_are_refused():
    if extension("cpu").reason:
        pytest.skip(extension("cpu").reason)
    window = arguments(groups=2)
    value, offset, mask, grad_out = inputs((1, 5, 6), 2, 8, window)
    forward, backward = torch.ops.drivestack.dcnv3, torch.ops.drivestack.dcnv3_backward
    for call in (
        lambda: forward(value[0], offset, mask, *window),
        lambda: forward(value, offset[:, :4], mask, *window),
        lambda: forward(value, offset, mask[..., 1:], *window),
        lambda: forward(value, offset, mask.half(), *window),
        lambda: forward(value, offset.double(), mask.double(), *window),
        lambda: forward(value, offset, mask, *arguments(groups=3)),
        lambda: forward(value, offset, mask, *arguments(groups=2, kernel=(0, 3))),
        lambda: backward(grad_out[:, 1:], value, offset, mask, *window, True),
        lambda: backward(grad_out.double(), value, offset, mask, *window, True),
    ):
        with pytest.raises(RuntimeError):
            call()
