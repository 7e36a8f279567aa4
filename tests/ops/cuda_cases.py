"""Inputs and checks of the CUDA kernels, for a GPU (test_cuda.py) and for the same kernels run on the host
(test_cuda_emulated.py). Everything is compared with the reference in float64."""

from dataclasses import dataclass

import torch
from torch import Tensor

from drivestack.ops.dispatch.operators import OPERATORS
from drivestack.ops.reference import output_size

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
DTYPES = [(F64, F64), (F32, F32), (F16, F16), (F16, F32), (BF16, BF16), (BF16, F32)]  # of value, of taps
DTYPE_IDS = ["f64", "f32", "f16", "f16-f32", "bf16", "bf16-f32"]
TOLERANCE = {F64: 1e-12, F32: 4e-6, F16: 7e-4, BF16: 5e-3}  # of the largest number; half: rounding of the result


@dataclass
class Case:
    op: str
    inputs: list
    """As the schema has them, floating tensors in float64."""

    def cast(self, value: torch.dtype, taps: torch.dtype, device: str = "cpu") -> list:
        """Inputs with `value` and taps of these dtypes; positions that must not be rounded keep float32."""
        arithmetic = F64 if value == F64 else F32
        out = list(self.inputs)
        for i, x in enumerate(out):
            if not isinstance(x, Tensor):
                continue
            if x.dtype == F64:
                rounded = i in OPERATORS[self.op].differentiated_at and self.op != "ms_deform_attn"
                taps_here = taps if rounded else arithmetic
                out[i] = cast_strided(x, value if i == 0 else taps_here, device)
            else:
                out[i] = x.to(device)
        return out


def cast_strided(x: Tensor, dtype: torch.dtype, device: str) -> Tensor:
    """`x` in another dtype or place with the same strides and storage offset."""
    base = x if x._base is None else x._base
    return base.to(device, dtype).as_strided(x.shape, x.stride(), x.storage_offset())


def randn(*shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, dtype=F64) * scale


def dcnv3(n, h, w, g, d, kernel=(3, 3), stride=1, pad=1, dilation=1, scale=1.25, center=False, softmax=True, packed=""):
    """packed: "projection" has offsets and masks in one tensor, "groups" as DCNv4 does, group by group."""
    k = kernel[0] * kernel[1] - center
    ho, wo = output_size((h, w), kernel, (stride,) * 2, (pad,) * 2, (dilation,) * 2)
    both = randn(n, ho, wo, 3 * g * k, scale=1.5)
    if packed == "groups":
        by_group = both.view(n, ho, wo, g, 3 * k)
        offset, mask = by_group[..., : 2 * k], by_group[..., 2 * k :]
    elif packed == "projection":
        offset, mask = both.split([2 * g * k, g * k], -1)
    else:
        offset, mask = both[..., : 2 * g * k].clone(), both[..., 2 * g * k :].clone()
    window = (*kernel, stride, stride, pad, pad, dilation, dilation, g, scale, center, softmax)
    return Case("dcnv3", [randn(n, h, w, g * d), offset, mask, *window])


def levels_from(shapes) -> list[int]:
    flat, start = [], 0
    for h, w in shapes:
        flat += [h, w, start]
        start += h * w
    return flat


def attention(b, q, m, d, p, shapes):
    tokens = sum(h * w for h, w in shapes)
    locations = torch.rand(b, q, m, len(shapes), p, 2, dtype=F64) * 1.4 - 0.2
    inputs = [randn(b, tokens, m, d), [x for s in shapes for x in s], locations, randn(b, q, m, len(shapes), p)]
    return Case("ms_deform_attn", inputs)


def fused(b, q, m, d, p, shapes, references=1, mean=False, one_batch=False, one_level=False, packed=False, levels=None):
    levels = levels or levels_from(shapes)
    tokens = max(h * w + s for h, w, s in zip(levels[::3], levels[1::3], levels[2::3]))
    count = len(shapes)
    both = randn(b, q, 3 * m * count * p, scale=1.5)
    offsets, logits = both.split([2 * m * count * p, m * count * p], -1)
    offsets, logits = offsets.unflatten(-1, (m, count, p, 2)), logits.unflatten(-1, (m, count, p))
    if not packed:
        offsets, logits = offsets.clone(), logits.clone()
    reference = torch.rand(1 if one_batch else b, q, 1 if one_level else count, references, 2, dtype=F64)
    return Case("ms_deform_attn_fused", [randn(b, tokens, m, d), levels, reference, offsets, logits, mean])


def cross_attention(b, n, q, m, d, p, shapes, references=2, seen=0.4):
    inner = fused(b, q, m, d, p, shapes, packed=True).inputs
    tokens = inner[0].shape[1]
    reference = torch.rand(b, n, q, references, 2, dtype=F64)
    visible = torch.rand(b, n, q) < seen
    return Case(
        "spatial_cross_attention", [randn(b, n, tokens, m, d), inner[1], reference, visible, inner[3], inner[4]]
    )


# Sizes that divide nothing; each path of the kernels is there: wide and narrow vectors, scalars, whole 3 x 3 windows
# and others, four and eight lanes, more points than lanes, lanes without channels.
CASES = {
    "dcnv3": lambda: dcnv3(2, 7, 9, 2, 16),
    "dcnv3-strided-packed": lambda: dcnv3(3, 9, 7, 3, 32, stride=2, packed="projection"),
    "dcnv3-eight-lanes": lambda: dcnv3(2, 4, 5, 1, 64, stride=2),
    "dcnv3-few-channels": lambda: dcnv3(2, 4, 5, 3, 8, softmax=False, packed="projection"),
    "dcnv3-by-group": lambda: dcnv3(2, 5, 6, 2, 16, softmax=False, packed="groups"),
    "dcnv3-5x3": lambda: dcnv3(1, 9, 8, 3, 8, kernel=(5, 3), pad=2, dilation=2),
    "dcnv3-no-center": lambda: dcnv3(2, 6, 5, 2, 24, center=True, packed="projection"),
    "dcnv3-odd-channels": lambda: dcnv3(2, 5, 7, 3, 7, softmax=False),
    "dcnv3-many-channels": lambda: dcnv3(1, 3, 3, 1, 520),
    "dcnv3-many-groups": lambda: dcnv3(1, 3, 5, 70, 4, softmax=False),
    "msda": lambda: attention(2, 70, 2, 32, 4, [(5, 6), (3, 2)]),
    "msda-wide": lambda: attention(1, 11, 2, 64, 8, [(5, 6), (3, 4), (1, 1)]),
    "msda-odd": lambda: attention(2, 9, 3, 5, 3, [(4, 3), (2, 7)]),
    "msda-many-channels": lambda: attention(1, 3, 1, 264, 2, [(4, 3)]),
    "fused": lambda: fused(2, 66, 2, 32, 4, [(5, 6), (3, 2)], packed=True),
    "fused-mean": lambda: fused(
        2, 13, 2, 32, 4, [(5, 6), (5, 6)], mean=True, one_batch=True, levels=[5, 6, 0, 5, 6, 0]
    ),
    "fused-references": lambda: fused(2, 7, 2, 16, 9, [(5, 6), (3, 2)], references=4, one_level=True),
    "fused-odd": lambda: fused(1, 9, 3, 5, 3, [(4, 3), (2, 7)], references=2, mean=True),
    "cross-attention": lambda: cross_attention(2, 3, 67, 2, 32, 8, [(5, 6), (3, 2)], references=4),
    "cross-attention-wide": lambda: cross_attention(1, 2, 9, 2, 40, 3, [(5, 6)], references=1),
    "cross-attention-odd": lambda: cross_attention(2, 6, 5, 2, 3, 4, [(5, 6)]),
}


def make(name: str) -> Case:
    torch.manual_seed(sum(map(ord, name)))
    return CASES[name]()


def reference_of(case: Case, inputs: list) -> tuple[Tensor, list[Tensor], Tensor]:
    """(output, gradients, grad_out) of the reference in float64, for inputs as the kernels get them."""
    places = OPERATORS[case.op].differentiated_at
    exact = [x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs]
    for i in places:
        exact[i] = exact[i].detach().requires_grad_()
    with torch.enable_grad():
        out = OPERATORS[case.op].reference(*exact)
    torch.manual_seed(1)
    grad_out = torch.randn(out.shape).to(inputs[0])
    return out.detach(), list(torch.autograd.grad(out, [exact[i] for i in places], grad_out.double())), grad_out


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype, what: str) -> None:
    assert actual.dtype == dtype, what
    assert actual.shape == expected.shape and actual.is_contiguous(), what
    largest = expected.abs().max().item() if expected.numel() else 0.0
    error = (actual.double() - expected).abs().max().item() if expected.numel() else 0.0
    assert error <= TOLERANCE[dtype] * largest + 1e-30, f"{what}: error {error:.2e} of {largest:.2e}"


def check(ops, case: Case, value: torch.dtype, taps: torch.dtype, device: str = "cpu", modes=(False, True)) -> None:
    """Forward and backward, in both modes of the backward pass, against the reference."""
    inputs = case.cast(value, taps, device)
    out, grads, grad_out = reference_of(case, inputs)
    assert_near(getattr(ops, case.op)(*inputs), out, value, "out")
    for deterministic in modes:
        found = getattr(ops, f"{case.op}_backward")(grad_out, *inputs, deterministic)
        for i, actual, expected in zip(OPERATORS[case.op].differentiated_at, found, grads):
            assert_near(actual, expected, inputs[i].dtype, f"gradient to input {i}, deterministic={deterministic}")


def results(ops, case: Case, inputs: list, deterministic: bool) -> list[Tensor]:
    """Output and gradients."""
    out = getattr(ops, case.op)(*inputs)
    torch.manual_seed(2)
    grad_out = torch.randn(out.shape).to(out)
    return [out, *getattr(ops, f"{case.op}_backward")(grad_out, *inputs, deterministic)]


# What kernels of others get wrong: blocks across two images, sums that points outside leave uninitialised, locations in
# half precision, the visibility of the first sample for all, sums in the storage type.


def check_images_are_separate(ops, device: str = "cpu") -> None:
    """Images whose pixels do not fill the blocks: each image of a batch is what it is alone, to the bit."""
    torch.manual_seed(0)
    for case in (dcnv3(9, 7, 7, 2, 16), dcnv3(5, 14, 14, 1, 8), attention(5, 13, 2, 32, 4, [(3, 3)])):
        inputs = case.cast(F16, F16, device)
        whole = getattr(ops, case.op)(*inputs)
        for n in range(whole.shape[0]):
            alone = getattr(ops, case.op)(*(x[n : n + 1] if isinstance(x, Tensor) else x for x in inputs))
            assert torch.equal(whole[n : n + 1], alone), f"{case.op}: image {n}"


def check_points_outside(ops, device: str = "cpu") -> None:
    """Points outside, NaN and infinite: nothing of them in the result, and gradients of exactly zero."""
    torch.manual_seed(0)
    far = torch.tensor([1e9, -1e9, float("nan"), float("inf"), float("-inf"), 1e30, 3e38, 40.0], dtype=F64)
    for case in (dcnv3(2, 6, 5, 2, 16, softmax=False), attention(2, 8, 2, 32, 4, [(5, 6), (3, 2)])):
        where = {"dcnv3": 1, "ms_deform_attn": 2}[case.op]
        points = case.inputs[where]
        chosen = torch.rand(points.shape[:-1]) < 0.3 if case.op == "ms_deform_attn" else None
        if chosen is None:  # one coordinate of some points
            pairs = points.view(*points.shape[:-1], -1, 2)
            chosen = torch.rand(pairs.shape[:-1]) < 0.3
        else:
            pairs = points
        pairs[..., 0][chosen] = far[torch.arange(int(chosen.sum())) % len(far)]
        check(ops, case, F32, F32, device)
        inputs = case.cast(F32, F32, device)
        _, grad_value, grad_points, grad_weights = results(ops, case, inputs, False)
        assert grad_value.isfinite().all()
        assert (grad_points.view(pairs.shape)[chosen.to(device)] == 0).all()
        assert (grad_weights.view(chosen.shape)[chosen.to(device)] == 0).all()
        for i, x in enumerate(inputs):
            if i == where:
                x.fill_(float("nan"))
        assert all((x == 0).all() for x in results(ops, case, inputs, True))


def check_expanded_inputs(ops, device: str = "cpu") -> None:
    """Strides of zero: one mask for all pixels, one number for all masks, one value for all pixels."""
    torch.manual_seed(0)
    for case in (dcnv3(2, 5, 6, 2, 16, softmax=False), attention(2, 5, 2, 32, 4, [(5, 6), (3, 2)])):
        inputs = case.cast(F32, F32, device)
        places = OPERATORS[case.op].differentiated_at
        for i, kept in ((places[2], 1), (places[2], 0), (places[1], 1), (places[0], 1)):
            given = list(inputs)
            shape = inputs[i].shape
            given[i] = inputs[i][(0,) * (len(shape) - kept)].expand(shape)
            dense = [x.contiguous() if isinstance(x, Tensor) else x for x in given]
            for actual, expected in zip(results(ops, case, given, True), results(ops, case, dense, True)):
                assert torch.equal(actual, expected), (case.op, i, kept)


def check_float_locations(ops, device: str = "cpu") -> None:
    """Half values with float32 locations on a map 1000 wide: positions rounded to half would be off by 0.25 cells."""
    ramp = torch.arange(1000, dtype=F64).view(1, -1, 1, 1).expand(1, 1000, 1, 8) / 1000
    x = torch.linspace(0.6, 0.9, 50, dtype=F64).view(1, 50, 1, 1, 1, 1)
    locations = torch.cat([x, torch.full_like(x, 0.5)], -1)
    case = Case("ms_deform_attn", [ramp.contiguous(), [1, 1000], locations, torch.ones(1, 50, 1, 1, 1, dtype=F64)])
    out = ops.ms_deform_attn(*case.cast(F16, F32, device)).cpu().double()
    expected = (x.view(1, 50, 1) * 1000 - 0.5) / 1000
    assert (out - expected).abs().max() < 6e-4  # storage: half an ulp of half is 2.4e-4
    bad = case.cast(F16, F32, device)
    bad[2] = bad[2].half()
    try:
        ops.ms_deform_attn(*bad)
    except RuntimeError as error:
        assert "locations and weights must be" in str(error)
    else:
        raise AssertionError("half locations must be refused")


def check_masks_per_sample(ops, device: str = "cpu") -> None:
    """Each sample of a batch has its own visibility; a query that no camera sees is zero and has no gradients."""
    torch.manual_seed(0)
    case = cross_attention(3, 4, 9, 2, 32, 4, [(5, 6)])
    visible = case.inputs[3]
    visible[0], visible[1], visible[2] = True, False, torch.rand(4, 9) < 0.5
    check(ops, case, F32, F32, device)
    out, grad_value, grad_offsets, grad_logits = results(ops, case, case.cast(F32, F32, device), False)
    assert all((x[1] == 0).all() for x in (out, grad_value, grad_offsets, grad_logits))
    assert (out[0] != 0).any()


def check_sums_are_float(ops, device: str = "cpu") -> None:
    """Sums longer than half precision can count: 4000 taps of one, and 3000 queries that share a pixel."""
    points, queries = 1000, 3000
    ones = torch.ones(1, 1, 1, 8, dtype=F16, device=device)
    middle = torch.full((1, 1, 1, 1, points, 2), 0.5, device=device)
    weights = torch.ones(1, 1, 1, 1, points, device=device) * 4
    assert (ops.ms_deform_attn(ones, [1, 1], middle, weights) == 4 * points).all()
    one_tap = torch.ones(1, queries, 1, 1, 1, device=device)
    middle = torch.full((1, queries, 1, 1, 1, 2), 0.5, device=device)
    grad_out = torch.ones(1, queries, 8, dtype=F16, device=device)
    for deterministic in (False, True):
        grads = ops.ms_deform_attn_backward(grad_out, ones, [1, 1], middle, one_tap, deterministic)
        assert (grads[0] == queries).all()
