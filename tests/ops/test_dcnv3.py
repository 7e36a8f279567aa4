"""DCNv3: agreement with the reference numbers, of kernel and reference, gradients, odd shapes, wrong input."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from drivestack.ops import dcnv3, dcnv4, packed_width
from drivestack.ops.reference import output_size, tap_grid

REFERENCE = Path(__file__).parents[1] / "reference" / "dcnv3_op"
CASES = json.loads((REFERENCE / "cases.json").read_text())
RESULTS = ("out", "grad_value", "grad_offset", "grad_mask")
HALF_TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 2e-3}


def window(hyper: dict) -> dict:
    pairs = {"kernel_size": "kernel", "stride": "stride", "padding": "pad", "dilation": "dilation"}
    window = {name: (hyper[f"{short}_h"], hyper[f"{short}_w"]) for name, short in pairs.items()}
    return window | {
        "groups": hyper["group"],
        "offset_scale": hyper["offset_scale"],
        "remove_center": bool(hyper["remove_center"]),
    }


def random_inputs(n, h, w, groups, channels, dtype=torch.float32, spread=0.7, seed=0, **options):
    """(value, offset, mask, grad_out) and the options, ready for dcnv3. channels: of one group."""
    generator = torch.Generator().manual_seed(seed)
    randn = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)
    options = {"kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)} | options
    out = output_size((h, w), *(options[k] for k in ("kernel_size", "stride", "padding", "dilation")))
    taps = groups * (options["kernel_size"][0] * options["kernel_size"][1] - options.get("remove_center", False))
    tensors = (
        randn(n, h, w, groups * channels),
        spread * randn(n, *out, 2 * taps),
        randn(n, *out, taps),
        randn(n, *out, groups * channels),
    )
    return tensors, options | {"groups": groups}


def run(tensors, options, backend):
    """out, grad_value, grad_offset, grad_mask."""
    inputs = [t.detach().clone().requires_grad_() for t in tensors[:3]]
    out = dcnv3(*inputs, **options, backend=backend)
    return out.detach(), *torch.autograd.grad(out, inputs, tensors[3])


@pytest.mark.parametrize("name", CASES)
def test_reference_numbers(name, backend):
    data = np.load(REFERENCE / f"{name}.npz")
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        tensors = [torch.from_numpy(data[key]).to(dtype) for key in ("value", "offset", "mask", "grad_out")]
        for key, found in zip(RESULTS, run(tensors, window(CASES[name]), backend)):
            expected = torch.from_numpy(data[f"{key}_cu64"])
            torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40, 64, 80])
@pytest.mark.parametrize("size", [(6, 5), (18, 17)], ids=["small", "interior_path"])
def test_any_number_of_channels(channels, size, backend):
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-12)):
        tensors, options = random_inputs(2, *size, 3, channels, dtype)
        exact = run([t.double() for t in tensors], options, "reference")
        for found, expected in zip(run(tensors, options, backend), exact):
            torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("float_taps", [False, True])
def test_half_precision(dtype, float_taps, backend):
    for channels, size in itertools.product((3, 8, 16), (7, 17)):
        tensors, options = random_inputs(2, size, size, 2, channels, dtype)
        if float_taps:
            tensors = (tensors[0], tensors[1].float(), tensors[2].float(), tensors[3])
        results = run(tensors, options, backend)
        exact = run([t.float() for t in tensors], options, "reference")
        assert [r.dtype for r in results] == [dtype, *(t.dtype for t in tensors[:3])]
        for found, expected in zip(results, exact):
            scale = expected.abs().max()
            assert (found.float() - expected).abs().max() <= HALF_TOLERANCE[dtype] * scale


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kernel_size": (2, 3), "stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
        {"remove_center": True, "offset_scale": 1.7},
    ],
    ids=["plain", "rectangular", "remove_center"],
)
def test_gradcheck(backend, options):
    tensors, options = random_inputs(1, 3, 4, 2, 2, torch.float64, spread=0.3, **options)
    inputs = [t.requires_grad_() for t in tensors[:3]]
    function = lambda *t: dcnv3(*t, **options, backend=backend)
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def test_matches_a_plain_convolution_window(backend):
    """Zero offsets and equal weights: a mean over the window, rectangular and anisotropic, outside is zero."""
    options = {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}
    (value, offset, mask, _), options = random_inputs(2, 7, 9, 1, 4, torch.float64, **options)
    found = dcnv3(value, torch.zeros_like(offset), torch.ones_like(mask), **options, backend=backend)
    kernel = torch.ones(4, 1, 3, 2, dtype=torch.float64)
    expected = torch.nn.functional.conv2d(value.permute(0, 3, 1, 2), kernel, None, (2, 1), (1, 2), (1, 2), groups=4)
    torch.testing.assert_close(found, expected.permute(0, 2, 3, 1))


def test_taps_go_column_by_column():
    assert list(zip(*tap_grid((3, 3), (1, 1), False)))[:4] == [(-1, -1), (-1, 0), (-1, 1), (0, -1)]
    assert (0, 0) not in list(zip(*tap_grid((3, 3), (2, 2), True)))
    assert list(zip(*tap_grid((2, 2), (1, 1), False))) == [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1, 1), (0, 5, 4, 2, 8), (2, 1, 9, 1, 16), (1, 30, 1, 3, 4), (3, 20, 20, 1, 16)], ids=str
)
def test_odd_shapes(shape, backend):
    tensors, options = random_inputs(*shape)
    results = run(tensors, options, backend)
    assert [r.shape for r in results] == [tensors[3].shape, *(t.shape for t in tensors[:3])]
    if shape[0]:
        exact = run([t.double() for t in tensors], options, "reference")
        for found, expected in zip(results, exact):
            torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_images_of_a_batch_do_not_touch(backend):
    """Regression idea: DCNv4's forward reads the neighbouring image where a block straddles two."""
    tensors, options = random_inputs(5, 7, 7, 4, 16, spread=3.0)
    together = run(tensors, options, backend)
    alone = [run([t[i : i + 1] for t in tensors], options, backend) for i in range(5)]
    for i, whole in enumerate(together):
        torch.testing.assert_close(whole, torch.cat([a[i] for a in alone]), rtol=0, atol=0)


def test_non_contiguous_input(kernels):
    tensors, options = random_inputs(2, 6, 17, 2, 8)
    strided = [t.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1) for t in tensors]
    assert not strided[0].is_contiguous()
    for found, expected in zip(run(strided, options, "cpp"), run(tensors, options, "cpp")):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("size", [(4, 5), (18, 18)], ids=["small", "interior_path"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 3e9, -70000.0])
def test_wild_offsets_sample_nothing(bad, size, backend):
    for dtype in (torch.float32, torch.float64):
        (value, offset, mask, grad_out), options = random_inputs(2, *size, 2, 8, dtype)
        offset[:, 1::2, 2, ::3] = bad
        results = run((value, offset, mask, grad_out), options, backend)
        harmless = torch.where(torch.isfinite(offset), offset, 1e4)
        expected = run((value, harmless, mask, grad_out), options, "reference")
        for found, wanted in zip(results, expected):
            assert found.isfinite().all()
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_exactly_one_pixel_outside_is_skipped(backend):
    """At x = -1 or x = W the sample is zero either way, but the gradient is the skipped one: zero."""
    value = torch.ones(1, 3, 3, 4, dtype=torch.float64)
    offset = torch.zeros(1, 3, 3, 2, dtype=torch.float64)
    offset[0, 0, 0] = torch.tensor([-1.0, 0.0])
    offset[0, 2, 2] = torch.tensor([0.0, 1.0])
    tensors = (value, offset, torch.ones(1, 3, 3, 1, dtype=torch.float64), value)
    options = {"kernel_size": 1, "padding": 0, "groups": 1}
    _, _, grad_offset, grad_mask = run(tensors, options, backend)
    assert grad_offset[0, 0, 0].abs().max() == 0 and grad_offset[0, 2, 2].abs().max() == 0
    assert grad_mask[0, 0, 0] == 0 and grad_mask[0, 1, 1] == 4


@pytest.mark.parametrize("shape", [(1, 20, 18, 5, 16), (3, 9, 9, 4, 12), (2, 7, 7, 8, 8)], ids=str)
def test_number_of_threads_changes_no_bit(shape, set_threads, kernels):
    tensors, options = random_inputs(*shape)
    set_threads(1)
    one = run(tensors, options, "cpp")
    for threads in (2, 3, 7):
        set_threads(threads)
        for found, expected in zip(run(tensors, options, "cpp"), one):
            assert torch.equal(found, expected)


def test_wrong_shapes_and_dtypes_name_themselves():
    (value, offset, mask, _), options = random_inputs(2, 6, 5, 2, 8)
    with pytest.raises(ValueError, match=r"offset must be \[2, 6, 5, 36\] or \[2, 6, 5, 2, 18\].*got \[2, 6, 5, 35\]"):
        dcnv3(value, offset[..., :-1], mask, **options)
    with pytest.raises(ValueError, match=r"mask must be \[2, 3, 3, 18\].*got \[2, 6, 5, 18\]"):
        dcnv3(value, offset[:, :3, :3], mask, **(options | {"stride": 2}))
    with pytest.raises(ValueError, match=r"16 channels of value \[2, 6, 5, 16\] do not divide into 3 groups"):
        dcnv3(value, offset, mask, **(options | {"groups": 3}))
    with pytest.raises(ValueError, match=r"must be \[N, H, W, C\], got \[6, 5, 16\]"):
        dcnv3(value[0], offset, mask, **options)
    with pytest.raises(ValueError, match="empty output"):
        dcnv3(value, offset, mask, **(options | {"kernel_size": 9}))
    with pytest.raises(ValueError, match="stride must be an int or two ints"):
        dcnv3(value, offset, mask, **(options | {"stride": 0}))
    with pytest.raises(TypeError, match=r"mask must be float32.*got torch.int64"):
        dcnv3(value, offset, mask.long(), **options)
    with pytest.raises(TypeError, match="float64 cannot be mixed"):
        dcnv3(value, offset.double(), mask, **options)
    with pytest.raises(TypeError, match=r"offset must be a torch.Tensor, got ndarray"):
        dcnv3(value, offset.numpy(), mask, **options)


def test_ints_stand_for_pairs():
    (value, offset, mask, _), options = random_inputs(1, 6, 5, 2, 8)
    short = {"kernel_size": 3, "stride": 1, "padding": [1, 1], "dilation": 1, "groups": 2}
    assert torch.equal(dcnv3(value, offset, mask, **short), dcnv3(value, offset, mask, **options))


def test_softmax_inside_is_the_softmax_outside(backend):
    for remove_center in (False, True):
        (value, offset, mask, grad_out), options = random_inputs(
            2, 6, 7, 3, 4, torch.float64, remove_center=remove_center
        )
        inputs = [t.requires_grad_() for t in (value, offset, mask)]
        outside = dcnv3(
            value, offset, mask.unflatten(-1, (3, -1)).softmax(-1).flatten(-2), **options, backend="reference"
        )
        found = dcnv3(*inputs, **options, mask_softmax=True, backend=backend)
        torch.testing.assert_close(found, outside, rtol=1e-12, atol=1e-12)
        expected = torch.autograd.grad(outside, inputs, grad_out)
        for gradient, wanted in zip(torch.autograd.grad(found, inputs, grad_out), expected):
            torch.testing.assert_close(gradient, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("groups, remove_center", [(2, False), (2, True), (3, False), (8, True)])
def test_dcnv4_reads_its_packed_layout(groups, remove_center, backend):
    """Per group K offsets (dx, dy), then K weights; the padding up to a multiple of 8 is not looked at."""
    taps = 9 - remove_center
    (value, offset, mask, grad_out), options = random_inputs(
        2, 6, 5, groups, 4, torch.float64, remove_center=remove_center
    )
    width = packed_width(groups, remove_center=remove_center)
    assert width % 8 == 0 and 0 <= width - groups * 3 * taps < 8
    packed = torch.full((2, 6, 5, width), torch.nan, dtype=torch.float64)
    grouped = packed[..., : groups * 3 * taps].unflatten(-1, (groups, 3 * taps))
    grouped[..., : 2 * taps] = offset.unflatten(-1, (groups, 2 * taps))
    grouped[..., 2 * taps :] = mask.unflatten(-1, (groups, taps))
    packed.requires_grad_()
    found = dcnv4(value.requires_grad_(), packed, **options, backend=backend)
    gradients = torch.autograd.grad(found, (value, packed), grad_out)
    expected = run((value, offset, mask, grad_out), options, "reference")
    torch.testing.assert_close(found.detach(), expected[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients[0], expected[1], rtol=1e-12, atol=1e-12)
    grouped = gradients[1][..., : groups * 3 * taps].unflatten(-1, (groups, 3 * taps))
    torch.testing.assert_close(grouped[..., : 2 * taps].flatten(-2), expected[2], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grouped[..., 2 * taps :].flatten(-2), expected[3], rtol=1e-12, atol=1e-12)
    assert (gradients[1][..., groups * 3 * taps :] == 0).all()


def test_dcnv4_names_what_is_wrong():
    (value, *_), options = random_inputs(1, 4, 4, 2, 4)
    with pytest.raises(
        ValueError, match=r"offset_mask must be \[N, Ho, Wo, 54\] or more \(padding\), got \[1, 4, 4, 53\]"
    ):
        dcnv4(value, torch.zeros(1, 4, 4, 53), **options)
    with pytest.raises(ValueError, match=r"dcnv4: offset must be .*\[1, 4, 4, 2, 18\].*got \[1, 3, 4, 2, 18\]"):
        dcnv4(value, torch.zeros(1, 3, 4, 56), **options)
