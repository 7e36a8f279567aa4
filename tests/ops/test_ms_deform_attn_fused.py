"""Deformable attention from offsets and logits: as locations and weights made by hand give it; layouts; wrong input."""

import pytest
import torch

from drivestack.ops import ms_deform_attn, ms_deform_attn_fused

SHAPES = ((7, 9), (4, 3), (1, 2))
SIZES = torch.tensor([(w, h) for h, w in SHAPES])  # (x, y)


def inputs(b=2, q=11, m=3, d=8, p=4, r=2, rows=None, over=1, dtype=torch.float64, shapes=SHAPES):
    torch.manual_seed(b * q)
    tokens = sum(h * w for h, w in shapes)
    return [
        torch.randn(b, tokens, m, d, dtype=dtype),
        torch.rand(rows or b, q, over, r, 2, dtype=dtype),
        2 * torch.randn(b, q, m, len(shapes), p, 2, dtype=dtype),
        torch.randn(b, q, m, len(shapes), p, dtype=dtype),
    ]


def by_hand(value, reference, offsets, logits):
    """Locations and weights as Deformable DETR and BEVFormer make them."""
    b, q, m, n_levels, p = logits.shape
    r = reference.shape[3]
    centre = reference.expand(b, q, n_levels, r, 2)[:, :, None, :, None]  # [B, Q, 1, L, 1, R, 2]
    grouped = offsets.view(b, q, m, n_levels, p // r, r, 2)  # point p belongs to reference p % R
    locations = (centre + grouped / SIZES[:, None, None]).view(offsets.shape)
    return ms_deform_attn(
        value, SHAPES, locations, logits.flatten(3).softmax(-1).view(logits.shape), backend="reference"
    )


def run(function, tensors):
    tensors = [t.detach().clone().requires_grad_() for t in tensors]
    out = function(*tensors)
    return out.detach(), *torch.autograd.grad(out, tensors, torch.linspace(-1, 1, out.numel()).view(out.shape).to(out))


@pytest.mark.parametrize(
    "form", [{}, {"rows": 1}, {"over": 3}, {"r": 1}, {"r": 4}, {"p": 8, "r": 4, "rows": 1}], ids=str
)
def test_agrees_with_locations_and_weights_made_by_hand(form, backend):
    tensors = inputs(**form)
    found = run(lambda *t: ms_deform_attn_fused(t[0], SHAPES, *t[1:], backend=backend), tensors)
    for result, expected in zip(found, run(by_hand, tensors)):
        torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)


def test_mean_of_levels_that_share_tokens(backend):
    """Temporal attention without a past: both maps are the current one. Softmax per map, then the mean."""
    shapes = ((4, 5), (4, 5))
    value, reference, offsets, logits = inputs(shapes=shapes)
    value = value[:, :20]
    options = {"level_mean": True, "level_starts": (0, 0), "backend": backend}
    together = lambda *t: ms_deform_attn_fused(t[0], shapes, *t[1:], **options)
    found = run(together, (value, reference, offsets, logits))

    def two_calls(value, reference, offsets, logits):
        one = lambda i: ms_deform_attn_fused(
            value, shapes[:1], reference, offsets[:, :, :, i : i + 1], logits[:, :, :, i : i + 1], backend="reference"
        )
        return (one(0) + one(1)) / 2

    for result, expected in zip(found, run(two_calls, (value, reference, offsets, logits))):
        torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)


def test_one_packed_projection_feeds_it(kernels):
    """Slices of [B, Q, M * L * P * 3] give what contiguous tensors give, bit by bit."""
    value, reference, offsets, logits = inputs(dtype=torch.float32)
    packed = torch.cat([offsets.flatten(2), logits.flatten(2)], -1).requires_grad_()
    parts = packed.split((offsets[0, 0].numel(), logits[0, 0].numel()), -1)
    found = ms_deform_attn_fused(value, SHAPES, reference, parts[0].view(offsets.shape), parts[1].view(logits.shape))
    expected = ms_deform_attn_fused(value, SHAPES, reference, offsets.requires_grad_(), logits.requires_grad_())
    assert torch.equal(found, expected)
    weights = torch.randn_like(found)
    (gradient,) = torch.autograd.grad((found * weights).sum(), packed)
    wanted = torch.autograd.grad((expected * weights).sum(), (offsets, logits))
    assert torch.equal(gradient, torch.cat([g.flatten(2) for g in wanted], -1))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30, 1e8])
def test_wild_reference_points_sample_nothing(bad, backend):
    for dtype in (torch.float32, torch.float64):
        tensors = inputs(dtype=dtype)
        tensors[1][:, ::2, :, 0, 0] = bad
        function = lambda *t: ms_deform_attn_fused(t[0], SHAPES, *t[1:], backend=backend)
        found = run(function, tensors)
        tensors[1] = torch.where(tensors[1].isfinite(), tensors[1], 1e4)
        for result, expected in zip(found, run(function, tensors)):
            assert result.isfinite().all()
            torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_shapes_may_be_a_tensor(backend):
    value, *rest = inputs()
    found = ms_deform_attn_fused(value, torch.tensor(SHAPES), *rest, backend=backend)
    assert torch.equal(found, ms_deform_attn_fused(value, SHAPES, *rest, backend=backend))


def test_wrong_shapes_and_dtypes_name_themselves():
    value, reference, offsets, logits = inputs()
    call = ms_deform_attn_fused
    with pytest.raises(ValueError, match=r"need 77 tokens from token 0 on, value has 76; got value \[2, 76, 3, 8\]"):
        call(value[:, 1:], SHAPES, reference, offsets, logits)
    with pytest.raises(ValueError, match=r"need 83 tokens.*levels \[\(7, 9, 20\)"):
        call(value, SHAPES, reference, offsets, logits, level_starts=(20, 0, 0))
    with pytest.raises(ValueError, match="2 level_starts for 3 levels"):
        call(value, SHAPES, reference, offsets, logits, level_starts=(0, 0))
    with pytest.raises(ValueError, match=r"offsets must be \[2, 11, 3, 3, 4, 2\] and logits \[2, 11, 3, 3, 4\]"):
        call(value, SHAPES, reference, offsets[:, :, :2], logits)
    with pytest.raises(
        ValueError, match=r"reference_points must be \[2 or 1, 11, 3 or 1, R >= 1, 2\]; got .*\[2, 11, 1, 2\]|expected"
    ):
        call(value, SHAPES, reference[..., 0], offsets, logits)
    with pytest.raises(ValueError, match=r"reference_points must be \[2 or 1, 11, 3 or 1, R >= 1, 2\]"):
        call(value, SHAPES, reference.expand(-1, -1, 2, -1, -1), offsets, logits)
    with pytest.raises(TypeError, match="float64 cannot be mixed"):
        call(value, SHAPES, reference.float(), offsets, logits)
    with pytest.raises(TypeError, match=r"logits must be float32.*got torch.int64"):
        call(value, SHAPES, reference, offsets, logits.long())
