"""What other implementations of these operators get wrong (as read in their sources) must not happen here."""

import pytest
import torch
import torch.nn.functional as F

from drivestack.ops import dcnv3, dcnv4, ms_deform_attn, ms_deform_attn_fused, packed_width, spatial_cross_attention


def gradients(function, tensors, grad_out, **options):
    inputs = [t.detach().clone().requires_grad_() for t in tensors]
    out = function(*inputs, **options)
    return out.detach(), *torch.autograd.grad(out, inputs, grad_out)


@pytest.mark.parametrize("size", [7, 14])
def test_dcnv4_block_straddling_two_images(size, backend):
    """DCNv4 takes the image of a block from its first pixel: 7 x 7 or 14 x 14 pixels fill no block, the next image's
    pixels in it read rows below the first's. Eight images at once must equal each alone, bit by bit."""
    torch.manual_seed(0)
    value, packed = torch.randn(8, size, size, 32), 2 * torch.randn(8, size, size, packed_width(2))
    grad_out = torch.randn(8, size, size, 32)
    together = gradients(dcnv4, (value, packed), grad_out, groups=2, backend=backend)
    for i in range(8):
        image = slice(i, i + 1)
        alone = gradients(dcnv4, (value[image], packed[image]), grad_out[image], groups=2, backend=backend)
        for whole, part in zip(together, alone):
            assert torch.equal(whole[image], part)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gradients_of_points_outside_are_zero_not_uninitialised(dtype, backend):
    """FlashDeformAttn never writes the gradient of a point outside, and then sends it through the softmax."""
    torch.manual_seed(0)
    value, offsets = torch.randn(2, 12, 2, 8).to(dtype), torch.randn(2, 9, 2, 1, 4, 2).to(dtype)
    logits, reference = torch.randn(2, 9, 2, 1, 4).to(dtype), torch.full((1, 9, 1, 1, 2), 0.5)
    offsets[:, ::2, :, :, 1::2] = 1000.0  # half of the points; queries 0, 2, ...
    grad_out = torch.randn(2, 9, 16).to(dtype)
    call = lambda v, o, w: ms_deform_attn_fused(v, ((3, 4),), reference.to(v.dtype), o, w, backend=backend)
    for _ in range(3):  # whatever lies in freed memory
        junk = [torch.full((2**k,), float("nan")) for k in range(4, 16)]
        del junk
        out, grad_value, grad_offsets, grad_logits = gradients(call, (value, offsets, logits), grad_out)
        assert all(g.isfinite().all() for g in (out, grad_value, grad_offsets, grad_logits))
        assert (grad_offsets[:, ::2, :, :, 1::2] == 0).all()
    # A point outside takes weight away from the others: its logit has a gradient, and all of a softmax add up to zero.
    assert (grad_logits[:, ::2, :, :, 1::2] != 0).any()
    assert grad_logits.double().sum(-1).abs().max() < 100 * torch.finfo(dtype).eps

    everything_outside = torch.full_like(offsets, -1e4)
    results = gradients(call, (value, everything_outside, logits), grad_out)
    assert all((r == 0).all() for r in results)
    masked = gradients(
        lambda v, o, m: dcnv3(v, o, m, groups=2, mask_softmax=True, backend=backend),
        (
            torch.randn(2, 5, 6, 8).to(dtype),
            torch.full((2, 5, 6, 36), 1e4).to(dtype),
            torch.randn(2, 5, 6, 18).to(dtype),
        ),
        torch.randn(2, 5, 6, 8).to(dtype),
    )
    assert all((r == 0).all() for r in masked)


def test_locations_are_not_rounded_to_half_precision(backend):
    """FlashDeformAttn's module casts locations to float16: up to 0.1 pixels off on a map 400 wide. With half-precision
    values, offsets and logits the reference points stay float32 here."""
    ramp = torch.arange(400.0).view(1, 400, 1, 1).expand(1, 400, 1, 8)  # the value is the column
    columns = torch.linspace(1, 398, 300)
    location = torch.full((1, 300, 1, 1, 1, 2), 0.5)
    location[..., 0] = ((columns + 0.5) / 400).view(1, 300, 1, 1, 1)
    ones = torch.ones(1, 300, 1, 1, 1)
    scaled = (ramp / 512).half()  # exact to 1 / 4096 of a column's step at least
    exact = columns / 512
    plain = ms_deform_attn(scaled, ((1, 400),), location, ones, backend=backend)
    zeros = torch.zeros_like(location).half()
    fused = ms_deform_attn_fused(scaled, ((1, 400),), location[:, :, 0], zeros, ones.half(), backend=backend)
    seen = torch.ones(1, 1, 300, dtype=torch.bool)
    cameras = spatial_cross_attention(
        scaled.unsqueeze(1), ((1, 400),), location.view(1, 1, 300, 1, 2), seen, zeros, ones.half(), backend=backend
    )
    for found in (plain, fused, cameras):
        assert (
            (found[0, :, 0].float() - exact) * 512
        ).abs().max() < 0.26  # half a unit of float16 at 0.5 to 1, in columns
    rounded = location.half().float()
    assert ((rounded - location)[..., 0] * 400).abs().max() > 0.09  # what would be lost before sampling even starts


def test_every_sample_has_its_own_visibility(backend):
    """BEVFormer takes the cameras that see a query from sample 0 of the batch."""
    torch.manual_seed(0)
    value, reference = torch.randn(3, 4, 20, 2, 8), torch.rand(3, 4, 11, 2, 2)
    offsets, logits = torch.randn(3, 11, 2, 1, 4, 2), torch.randn(3, 11, 2, 1, 4)
    visible = torch.rand(3, 4, 11) > 0.6
    visible[1] = ~visible[0]
    call = lambda v, r, s, o, w: spatial_cross_attention(v, ((4, 5),), r, s, o, w, backend=backend)
    together = call(value, reference, visible, offsets, logits)
    for i in range(3):
        sample = slice(i, i + 1)
        alone = call(value[sample], reference[sample], visible[sample], offsets[sample], logits[sample])
        assert torch.equal(together[sample], alone)
    unseen = ~visible.any(1)
    assert unseen.any() and (together[unseen] == 0).all() and (together[~unseen] != 0).any(-1).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_are_not_kept_in_half_precision(dtype, backend):
    """The kernels around (mmcv, TensorRT plugins) add up in the dtype of the values: 1 + 1/256 is 1 in bfloat16, and a
    sum of many small terms stops growing. Ones times 64 weights of 1/64, and 4096 gradients into one pixel."""
    value = torch.ones(1, 4, 1, 8, dtype=dtype)
    queries, points = 256, 16
    locations = torch.full((1, queries, 1, 4, points, 2), 0.5)
    weights = torch.full((1, queries, 1, 4, points), 1 / 64)
    shapes = ((1, 1),) * 4
    call = lambda v, lo, w: ms_deform_attn(v, shapes, lo, w, backend=backend)
    out, grad_value, _, grad_weights = gradients(
        call, (value, locations, weights), torch.ones(1, queries, 8, dtype=dtype)
    )
    assert (out == 1).all() and (grad_weights == 8).all()
    assert (grad_value == queries * points / 64).all()  # 4096 terms of 1/64 for each level

    size = 48
    image, mask = torch.ones(1, size, size, 8, dtype=dtype), torch.full((1, size, size, 9), 1 / 32, dtype=dtype)
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    steps = torch.tensor([-1, 0, 1])
    taps_x, taps_y = steps.repeat_interleave(3), steps.repeat(3)
    offset = torch.stack((-columns[..., None] - taps_x, -rows[..., None] - taps_y), -1)  # every tap to pixel (0, 0)
    offset = offset.view(1, size, size, 18).to(dtype)
    call = lambda v, o, m: dcnv3(v, o, m, groups=1, backend=backend)
    out, grad_value, _, _ = gradients(call, (image, offset, mask), torch.ones_like(image))
    assert (out == 9 / 32).all()
    assert (grad_value[0, 0, 0] == 9 * size * size / 32).all() and grad_value[0, 1:].abs().max() == 0


def test_padding_of_a_window_that_is_not_square_is_not_swapped(backend):
    """Upstream's DCNv3 fallback hands (vertical, horizontal) padding to F.pad, which wants the last axis first."""
    torch.manual_seed(0)
    value = torch.randn(2, 6, 9, 8, dtype=torch.float64)
    for kernel, padding, stride in (((3, 5), (1, 2), (1, 1)), ((3, 3), (0, 2), (1, 2)), ((1, 3), (2, 0), (2, 1))):
        out_h, out_w = ((s + 2 * p - k) // t + 1 for s, p, k, t in zip((6, 9), padding, kernel, stride))
        taps = kernel[0] * kernel[1]
        mask = torch.randn(taps, dtype=torch.float64)
        found = dcnv3(
            value,
            torch.zeros(2, out_h, out_w, 2 * taps, dtype=torch.float64),
            mask.expand(2, out_h, out_w, taps),
            kernel_size=kernel,
            padding=padding,
            stride=stride,
            groups=1,
            backend=backend,
        )
        window = mask.view(kernel[1], kernel[0]).t().expand(8, 1, *kernel)  # taps go column by column
        expected = F.conv2d(value.permute(0, 3, 1, 2), window.contiguous(), None, stride, padding, groups=8)
        torch.testing.assert_close(found, expected.permute(0, 2, 3, 1))


def test_float64_is_float64(backend):
    """Upstream's DCNv3 fallback builds its grid in float32: 3e-7 off in float64. A ramp is sampled exactly."""
    ramp = torch.arange(1000, dtype=torch.float64).view(1, 1, 1000, 1).expand(1, 1, 1000, 4)
    offset = torch.zeros(1, 1, 1000, 2, dtype=torch.float64)
    offset[..., 0] = 1e-9 * torch.arange(1000)
    found = dcnv3(
        ramp,
        offset,
        torch.ones(1, 1, 1000, 1, dtype=torch.float64),
        kernel_size=1,
        padding=0,
        groups=1,
        backend=backend,
    )
    expected = ramp + offset[..., :1]
    torch.testing.assert_close(found[:, :, :-1], expected[:, :, :-1], rtol=0, atol=2e-13)
