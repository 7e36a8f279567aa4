"""Spatial cross-attention in one operator: the same as BEVFormer's gather, padded rebatch, attention and scatter."""

import pytest
import torch

from drivestack.ops import ms_deform_attn, spatial_cross_attention

SHAPES = ((6, 10), (3, 5))
TOKENS = 75


def inputs(b=2, cameras=3, q=17, m=2, d=8, p=4, r=2, seen=0.4, dtype=torch.float64):
    """value, reference points, visible, offsets, logits."""
    torch.manual_seed(q)
    return [
        torch.randn(b, cameras, TOKENS, m, d, dtype=dtype),
        torch.rand(b, cameras, q, r, 2, dtype=dtype),
        torch.rand(b, cameras, q) < seen,
        2 * torch.randn(b, q, m, 2, p, 2, dtype=dtype),
        torch.randn(b, q, m, 2, p, dtype=dtype),
    ]


def rebatched(value, reference, visible, offsets, logits):
    """Upstream's way, with every sample's own mask: the queries that a camera sees, padded to the fullest camera."""
    b, cameras, q = visible.shape
    m, p, r = logits.shape[2], logits.shape[4], reference.shape[3]
    most = int(visible.sum(-1).max())
    sizes = torch.tensor([(w, h) for h, w in SHAPES])[:, None, None].to(value.dtype)
    weights = logits.flatten(3).softmax(-1).view(logits.shape)
    out = value.new_zeros(b, q, m * value.shape[-1])
    pad = lambda t: torch.cat([t, t.new_zeros(most - len(t), *t.shape[1:])])
    for camera in range(cameras):
        indices = [seen.nonzero().squeeze(-1) for seen in visible[:, camera]]
        take = lambda t, indices=indices: torch.stack([pad(sample[i]) for sample, i in zip(t, indices)])
        centre = take(reference[:, camera])[:, :, None, None, None]  # [B, K, 1, 1, 1, R, 2]
        grouped = take(offsets).view(b, most, m, 2, p // r, r, 2)
        locations = (centre + grouped / sizes).view(b, most, m, 2, p, 2)
        attended = ms_deform_attn(value[:, camera], SHAPES, locations, take(weights), backend="reference")
        out = torch.stack([o.index_add(0, i, a[: len(i)]) for o, i, a in zip(out, indices, attended)])
    return out / visible.sum(1).clamp(min=1).unsqueeze(-1)


def run(function, tensors):
    leaves = [t.detach().clone().requires_grad_() for t in (tensors[0], tensors[3], tensors[4])]
    out = function(leaves[0], tensors[1], tensors[2], *leaves[1:])
    return out.detach(), *torch.autograd.grad(out, leaves, torch.linspace(-1, 1, out.numel()).view(out.shape).to(out))


@pytest.mark.parametrize("form", [{}, {"cameras": 1}, {"seen": 1.0}, {"p": 8, "r": 4}, {"r": 1, "q": 1}], ids=str)
def test_agrees_with_the_padded_rebatch(form, backend):
    tensors = inputs(**form)
    found = run(lambda v, *t: spatial_cross_attention(v, SHAPES, *t, backend=backend), tensors)
    for result, expected in zip(found, run(rebatched, tensors)):
        torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_other_dtypes(dtype, tolerance, backend):
    tensors = [t.to(dtype) if t.is_floating_point() else t for t in inputs()]
    tensors[1] = tensors[1].float()
    doubles = [t.double() if t.is_floating_point() else t for t in tensors]
    found = run(lambda v, *t: spatial_cross_attention(v, SHAPES, *t, backend=backend), tensors)
    for result, expected in zip(found, run(rebatched, doubles)):
        assert result.dtype == dtype
        assert (result.double() - expected).abs().max() <= tolerance * expected.abs().max()


def test_what_no_camera_sees_is_zero_and_has_no_gradient(backend):
    """And the reference points there may be anything, NaN too."""
    tensors = inputs(seen=0.5)
    tensors[2][:, :, ::3] = False
    tensors[1][~tensors[2]] = torch.nan
    out, grad_value, grad_offsets, grad_logits = run(
        lambda v, *t: spatial_cross_attention(v, SHAPES, *t, backend=backend), tensors
    )
    for result in (out[:, ::3], grad_offsets[:, ::3], grad_logits[:, ::3]):
        assert (result == 0).all()
    assert grad_value.isfinite().all() and grad_value.abs().sum() > 0
    nothing = inputs(seen=-1.0)
    for result in run(lambda v, *t: spatial_cross_attention(v, SHAPES, *t, backend=backend), nothing):
        assert (result == 0).all()


def test_one_packed_projection_feeds_it(kernels):
    value, reference, visible, offsets, logits = inputs(dtype=torch.float32)
    packed = torch.cat([offsets.flatten(2), logits.flatten(2)], -1)
    parts = packed.split((offsets[0, 0].numel(), logits[0, 0].numel()), -1)
    views = parts[0].view(offsets.shape), parts[1].view(logits.shape)
    found = spatial_cross_attention(value, SHAPES, reference, visible, *views)
    assert torch.equal(found, spatial_cross_attention(value, SHAPES, reference, visible, offsets, logits))


def test_wrong_shapes_and_dtypes_name_themselves():
    value, reference, visible, offsets, logits = inputs()
    call = spatial_cross_attention
    with pytest.raises(ValueError, match=r"expected value \[B, N, S, M, D\].*got value \[2, 75, 2, 8\]"):
        call(value[:, 0], SHAPES, reference, visible, offsets, logits)
    with pytest.raises(ValueError, match=r"hold 75 tokens but value has 76"):
        call(torch.cat([value, value[:, :, :1]], 2), SHAPES, reference, visible, offsets, logits)
    with pytest.raises(ValueError, match=r"visible must be \[2, 3, 17\].*got visible \[2, 2, 17\]"):
        call(value, SHAPES, reference, visible[:, :2], offsets, logits)
    with pytest.raises(ValueError, match=r"reference_points \[2, 3, 17, 'R >= 1', 2\]; got .*\[2, 3, 16, 2, 2\]"):
        call(value, SHAPES, reference[:, :, 1:], visible, offsets, logits)
    with pytest.raises(TypeError, match=r"visible must be a bool tensor on cpu, got torch\.uint8 on cpu"):
        call(value, SHAPES, reference, visible.byte(), offsets, logits)
    with pytest.raises(TypeError, match="float64 cannot be mixed"):
        call(value, SHAPES, reference, visible, offsets.float(), logits)
