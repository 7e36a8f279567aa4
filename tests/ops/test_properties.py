"""Any shape, dtype, layout and number of threads: the kernels agree with the reference in float64 (hypothesis).

Tolerances are in units of the largest result: sums of a handful of terms are off by a few roundings of the dtype.
"""

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drivestack.ops import dcnv3, dcnv4, ms_deform_attn, ms_deform_attn_fused, packed_width, spatial_cross_attention
from drivestack.ops.reference import output_size

TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 3e-3}
quick = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
dtypes = st.sampled_from(list(TOLERANCE))
small = st.integers(1, 3)
spread = st.sampled_from([0.0, 0.7, 20.0])  # of offsets, in pixels: none, as trained, mostly outside
channels = st.sampled_from([1, 3, 4, 8, 12, 16, 24, 32, 40])
layouts = st.lists(st.sampled_from(["dense", "padded", "transposed", "shifted"]), min_size=5, max_size=5)
seeds = st.integers(0, 2**20)


def laid_out(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """The same numbers with other strides or another alignment."""
    if layout == "padded":  # a slice of a wider last axis
        return torch.cat([tensor, tensor.new_full((*tensor.shape[:-1], 3), torch.nan)], -1)[..., : tensor.shape[-1]]
    if layout == "transposed":
        return tensor.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "shifted":  # off the 64-byte grid
        return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)
    return tensor


def check(function: Callable, tensors: list[torch.Tensor], dtype: torch.dtype, fixed: tuple[int, ...] = ()) -> None:
    """Output and gradients of the kernel on `tensors` against the reference's in float64."""
    leaves = [i for i in range(len(tensors)) if i not in fixed]
    results = []
    for backend in ("cpp", "reference"):
        inputs = list(tensors)
        for i in leaves:
            inputs[i] = tensors[i].detach() if backend == "cpp" else tensors[i].detach().double()
            inputs[i].requires_grad_()
        if backend == "reference":
            inputs = [t.double() if t.is_floating_point() else t for t in inputs]
        out = function(*inputs, backend=backend)
        grad_out = torch.linspace(-1, 1, max(out.numel(), 2), dtype=torch.float64)[: out.numel()].view(out.shape)
        grads = torch.autograd.grad(out, [inputs[i] for i in leaves], grad_out.to(dtype).to(out.dtype))
        results.append((out.detach(), *grads))
    for place, (found, exact) in enumerate(zip(*results)):
        assert found.shape == exact.shape
        kind = dtype if place == 0 else tensors[leaves[place - 1]].dtype
        assert found.dtype == kind
        scale = max(exact.abs().max().item(), 1.0) if exact.numel() else 1.0
        error = (found.double() - exact).abs().max().item() if exact.numel() else 0.0
        assert error <= TOLERANCE[dtype] * scale, f"result {place}: {error:.3g} off where {scale:.3g} is largest"


pair = lambda low, high: st.tuples(st.integers(low, high), st.integers(low, high))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("form", ["flat", "packed", "dcnv4"])
@quick
@given(
    n=st.integers(0, 3), size=pair(1, 11), groups=small, d=channels, kernel=pair(1, 4), stride=small,
    padding=pair(0, 3), dilation=pair(1, 2), scale=st.sampled_from([1.0, 0.5, 2.0]), remove_center=st.booleans(),
    softmax=st.booleans(),
    dtype=dtypes, wide_taps=st.booleans(), spread=spread, layouts=layouts, seed=seeds,
)  # fmt: skip
def test_dcnv3(
    form, n, size, groups, d, kernel, stride, padding, dilation, scale, remove_center, softmax, dtype, wide_taps,
    spread, layouts, seed,
):  # fmt: skip
    out_h, out_w = output_size(size, kernel, (stride, stride), padding, dilation)
    taps = kernel[0] * kernel[1] - remove_center
    if min(out_h, out_w, taps) < 1:
        return
    torch.manual_seed(seed)
    options = {
        "kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation, "groups": groups,
        "offset_scale": scale, "remove_center": remove_center,
    }  # fmt: skip
    tap_dtype = torch.float32 if wide_taps and dtype.itemsize == 2 else dtype
    value = laid_out(torch.randn(n, *size, groups * d).to(dtype), layouts[0])
    if form == "dcnv4":
        packed = torch.randn(n, out_h, out_w, packed_width(groups, kernel, remove_center))
        packed[..., : groups * 3 * taps].unflatten(-1, (groups, 3 * taps))[..., : 2 * taps] *= spread
        packed = laid_out(packed.to(tap_dtype), layouts[1])
        check(lambda v, p, backend: dcnv4(v, p, **options, backend=backend), [value, packed], dtype)
        return
    offset = (spread * torch.randn(n, out_h, out_w, groups * taps * 2)).to(tap_dtype)
    mask = torch.randn(n, out_h, out_w, groups * taps).to(tap_dtype)
    if form == "packed":  # one projection, offsets first
        offset, mask = laid_out(torch.cat([offset, mask], -1), layouts[1]).split((offset.shape[-1], mask.shape[-1]), -1)
    else:
        offset, mask = laid_out(offset, layouts[1]), laid_out(mask, layouts[2])
    options["mask_softmax"] = softmax
    check(lambda v, o, m, backend: dcnv3(v, o, m, **options, backend=backend), [value, offset, mask], dtype)


levels = st.lists(pair(1, 7), min_size=1, max_size=4)


@pytest.mark.usefixtures("kernels")
@quick
@given(
    b=st.integers(0, 3), q=st.integers(0, 9), m=small, d=channels, shapes=levels, p=st.integers(1, 9), dtype=dtypes,
    layouts=layouts, spread=spread, seed=seeds,
)  # fmt: skip
def test_ms_deform_attn(b, q, m, d, shapes, p, dtype, layouts, spread, seed):
    torch.manual_seed(seed)
    wide = dtype if dtype == torch.float64 else torch.float32
    tokens = sum(h * w for h, w in shapes)
    tensors = [
        torch.randn(b, tokens, m, d).to(dtype),
        (0.5 + spread * torch.randn(b, q, m, len(shapes), p, 2)).to(wide),
        torch.randn(b, q, m, len(shapes), p).to(wide),
    ]
    tensors = [laid_out(t, layout) for t, layout in zip(tensors, layouts)]
    check(lambda v, *t, backend: ms_deform_attn(v, shapes, *t, backend=backend), tensors, dtype)


def queries(b: int, q: int, m: int, n_levels: int, p: int, spread: float, dtype: torch.dtype, packed: bool):
    """Offsets and logits, from one projection or from two."""
    samples = m * n_levels * p
    together = torch.randn(b, q, 3 * samples)
    together[..., : 2 * samples] *= spread
    together = together.to(dtype)
    offsets, logits = together.split((2 * samples, samples), -1)
    if not packed:
        offsets, logits = offsets.contiguous(), logits.contiguous()
    return offsets.unflatten(-1, (m, n_levels, p, 2)), logits.unflatten(-1, (m, n_levels, p))


@pytest.mark.usefixtures("kernels")
@quick
@given(
    b=st.integers(0, 3), q=st.integers(0, 9), m=small, d=channels, shapes=levels, p=st.integers(1, 9),
    shared=st.tuples(st.booleans(), st.booleans()), r=st.integers(1, 4), level_mean=st.booleans(),
    overlap=st.booleans(), dtype=dtypes, wide_queries=st.booleans(), packed=st.booleans(), layouts=layouts,
    spread=spread, seed=seeds,
)  # fmt: skip
def test_ms_deform_attn_fused(
    b, q, m, d, shapes, p, shared, r, level_mean, overlap, dtype, wide_queries, packed, layouts, spread, seed
):
    torch.manual_seed(seed)
    wide = dtype if dtype == torch.float64 else torch.float32
    tokens = sum(h * w for h, w in shapes)
    starts = [seed % (tokens - h * w + 1) for h, w in shapes] if overlap else None
    reference = torch.rand(1 if shared[0] else b, q, 1 if shared[1] else len(shapes), r, 2).to(wide)
    kind = torch.float32 if wide_queries and dtype.itemsize == 2 else dtype
    offsets, logits = queries(b, q, m, len(shapes), p, spread, kind, packed)
    value = laid_out(torch.randn(b, tokens, m, d).to(dtype), layouts[0])
    function = lambda v, *t, backend: ms_deform_attn_fused(
        v, shapes, *t, level_mean=level_mean, level_starts=starts, backend=backend
    )
    check(function, [value, laid_out(reference, layouts[1]), offsets, logits], dtype)


@pytest.mark.usefixtures("kernels")
@quick
@given(
    b=st.integers(0, 3), cameras=st.integers(1, 4), q=st.integers(0, 9), m=small, d=channels, shapes=levels,
    p=st.integers(1, 9), r=st.integers(1, 4), seen=st.sampled_from([0.0, 0.3, 1.0]), dtype=dtypes,
    wide_queries=st.booleans(), packed=st.booleans(), layouts=layouts, spread=spread, seed=seeds,
)  # fmt: skip
def test_spatial_cross_attention(
    b, cameras, q, m, d, shapes, p, r, seen, dtype, wide_queries, packed, layouts, spread, seed
):
    torch.manual_seed(seed)
    wide = dtype if dtype == torch.float64 else torch.float32
    visible = torch.rand(b, cameras, q) < seen
    reference = torch.rand(b, cameras, q, r, 2).to(wide)
    reference[~visible] = torch.nan  # behind the camera: anything
    kind = torch.float32 if wide_queries and dtype.itemsize == 2 else dtype
    offsets, logits = queries(b, q, m, len(shapes), p, spread, kind, packed)
    value = laid_out(torch.randn(b, cameras, sum(h * w for h, w in shapes), m, d).to(dtype), layouts[0])
    tensors = [value, laid_out(reference, layouts[1]), laid_out(visible, "transposed"), offsets, logits]
    function = lambda v, *t, backend: spatial_cross_attention(v, shapes, *t, backend=backend)
    check(function, tensors, dtype, fixed=(1, 2))


@pytest.mark.parametrize("threads", [2, 5])
def test_number_of_threads_changes_no_bit(call_case, kernels, set_threads, threads):
    tensors = call_case.tensors(3, 67, torch.float32, requires_grad=True)
    leaves, results = call_case.differentiated(tensors), []
    for count in (1, threads):
        set_threads(count)
        out = call_case.function(*tensors)
        results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    assert all(torch.equal(one, many) for one, many in zip(*results))
