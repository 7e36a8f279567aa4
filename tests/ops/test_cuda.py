"""The CUDA kernels on a GPU; skipped where there is none. The same kernels run on the CPU in test_cuda_emulated.py."""

import ctypes

import pytest
import torch

from drivestack.ops import dcnv3, ms_deform_attn, ms_deform_attn_fused, spatial_cross_attention
from drivestack.ops.dispatch.backend import extension
from drivestack.ops.reference import levels_of

from . import cuda_cases as cases
from .cuda_cases import BF16, F16, F32, F64

if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)
if extension("cuda").reason:
    pytest.skip(f"no CUDA kernels: {extension('cuda').reason}", allow_module_level=True)

OPS = torch.ops.drivestack
INT32_MAX = 2**31 - 1


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan():
    """Results that a kernel leaves out do not pass by luck; also synchronises, so that a fault names its test."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    torch.cuda.synchronize()


@pytest.fixture
def set_limits():
    library = ctypes.CDLL(extension("cuda").path)
    library.drivestack_cuda_set_limits.argtypes = [ctypes.c_int64, ctypes.c_int64]
    yield library.drivestack_cuda_set_limits
    library.drivestack_cuda_set_limits(65535, INT32_MAX)


def needs_memory(gigabytes: float) -> None:
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0] / 1e9
    if free < gigabytes:
        pytest.skip(f"{gigabytes} GB of GPU memory needed, {free:.0f} GB free")


@pytest.mark.filterwarnings("ignore:.*deterministic")
@pytest.mark.parametrize("value,taps", cases.DTYPES, ids=cases.DTYPE_IDS)
@pytest.mark.parametrize("name", cases.CASES)
def test_parity(name, value, taps):
    if name.startswith("msda") and value != taps and taps == F32:
        pytest.skip("plain attention has one type of locations")
    cases.check(OPS, cases.make(name), value, taps, "cuda")


LARGE = {
    "dcnv3": lambda: cases.dcnv3(3, 56, 56, 4, 16, packed="projection"),
    "dcnv4": lambda: cases.dcnv3(2, 28, 28, 7, 16, softmax=False, packed="groups"),
    "dcnv3-wide": lambda: cases.dcnv3(5, 14, 14, 10, 32, stride=2),
    "msda": lambda: cases.attention(2, 900, 8, 32, 4, [(40, 60), (20, 30), (10, 15), (5, 8)]),
    "fused": lambda: cases.fused(2, 1600, 8, 32, 4, [(40, 40)] * 2, mean=True, levels=[40, 40, 0, 40, 40, 1600]),
    "cross-attention": lambda: cases.cross_attention(2, 6, 900, 8, 32, 8, [(16, 40), (8, 20), (4, 10)], references=4),
}


@pytest.mark.filterwarnings("ignore:.*deterministic")
@pytest.mark.parametrize("value,taps", [(F32, F32), (F16, F16), (BF16, F32)], ids=["f32", "f16", "bf16-f32"])
@pytest.mark.parametrize("name", LARGE)
def test_parity_at_real_sizes(name, value, taps):
    torch.manual_seed(0)
    cases.check(OPS, LARGE[name](), value, taps, "cuda")


@pytest.mark.parametrize(
    "check",
    [
        cases.check_images_are_separate,
        cases.check_points_outside,
        cases.check_expanded_inputs,
        cases.check_float_locations,
        cases.check_masks_per_sample,
        cases.check_sums_are_float,
    ],
    ids=lambda check: check.__name__,
)
@pytest.mark.filterwarnings("ignore:.*deterministic")
def test_special_cases(check):
    check(OPS, "cuda")


@pytest.mark.parametrize("name", ["dcnv3", "dcnv3-by-group", "msda", "fused-mean", "cross-attention"])
@pytest.mark.filterwarnings("ignore:.*deterministic")
def test_offsets_of_64_bits_and_images_in_chunks(set_limits, name):
    set_limits(1, 100)
    cases.check(OPS, cases.make(name), F32, F32, "cuda")


@pytest.mark.parametrize("value,taps", [(F32, F32), (BF16, BF16)], ids=["f32", "bf16"])
@pytest.mark.parametrize("name", LARGE)
def test_deterministic_mode_repeats_to_the_bit(name, value, taps):
    torch.manual_seed(0)
    case = LARGE[name]()
    inputs = case.cast(value, taps, "cuda")
    first = cases.results(OPS, case, inputs, True)
    for _ in range(5):
        for i, (again, expected) in enumerate(zip(cases.results(OPS, case, inputs, True), first)):
            assert torch.equal(again, expected), i
    others = [cases.results(OPS, case, inputs, False) for _ in range(2)]
    assert all(torch.equal(a, b) for i, (a, b) in enumerate(zip(*others)) if i != 1)  # all but grad_value


@pytest.mark.parametrize("name", ["dcnv3", "msda", "fused-references", "cross-attention"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_gradcheck(name, deterministic):
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    small = {
        "dcnv3": lambda: cases.dcnv3(1, 3, 4, 2, 4),
        "msda": lambda: cases.attention(1, 3, 2, 4, 2, [(3, 4), (2, 2)]),
        "fused-references": lambda: cases.fused(1, 3, 2, 4, 4, [(3, 4), (2, 2)], references=2),
        "cross-attention": lambda: cases.cross_attention(1, 2, 3, 2, 4, 4, [(3, 4)]),
    }[name]
    torch.manual_seed(3)
    case = small()
    inputs = case.cast(F64, F64, "cuda")
    functions = {
        "dcnv3": lambda v, o, m: dcnv3(
            v,
            o,
            m,
            kernel_size=3,
            stride=1,
            padding=1,
            dilation=1,
            groups=2,
            offset_scale=1.25,
            mask_softmax=True,
            backend="cuda",
        ),
        "ms_deform_attn": lambda v, x, w: ms_deform_attn(v, pairs(inputs[1]), x, w, backend="cuda"),
        "ms_deform_attn_fused": lambda v, r, o, a: ms_deform_attn_fused(v, triples(inputs[1]), r, o, a, backend="cuda"),
        "spatial_cross_attention": lambda v, o, a: spatial_cross_attention(
            v, triples(inputs[1]), inputs[2], inputs[3], o, a, backend="cuda"
        ),
    }
    places = {"dcnv3": (0, 1, 2), "ms_deform_attn": (0, 2, 3), "ms_deform_attn_fused": (0, 2, 3, 4)}
    leaves = [inputs[i].clone().requires_grad_() for i in places.get(case.op, (0, 4, 5))]
    assert torch.autograd.gradcheck(functions[case.op], leaves, nondet_tol=1e-10)
    if not deterministic:
        assert torch.autograd.gradgradcheck(functions[case.op], leaves, nondet_tol=1e-10)


def pairs(shapes: list[int]) -> list[tuple[int, int]]:
    return list(zip(shapes[::2], shapes[1::2]))


def triples(levels: list[int]) -> list[tuple[int, int]]:
    """Shapes of levels that lie one after the other."""
    shapes = list(zip(levels[::3], levels[1::3]))
    assert levels_of(shapes) == list(zip(levels[::3], levels[1::3], levels[2::3]))
    return shapes


@pytest.mark.parametrize("value,taps", [(F32, F32), (F16, F32)], ids=["f32", "f16-f32"])
@pytest.mark.parametrize("name", ["dcnv3", "dcnv3-by-group", "msda", "fused-references", "cross-attention"])
def test_opcheck(name, value, taps):
    case = cases.make(name)
    inputs = case.cast(value, taps, "cuda")
    utilities = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(getattr(OPS, case.op).default, tuple(inputs), test_utils=utilities)
    grad_out = torch.randn_like(getattr(OPS, case.op)(*inputs))
    backward = getattr(OPS, f"{case.op}_backward").default
    torch.library.opcheck(backward, (grad_out, *inputs, True), test_utils=utilities[:2])


@pytest.mark.parametrize("name", LARGE)
def test_runs_on_the_current_stream(name):
    """On a side stream, after a long wait there; the kernels must wait too, also those of the backward pass."""
    torch.manual_seed(0)
    case = LARGE[name]()
    inputs = case.cast(F32, F32, "cuda")
    expected = cases.results(OPS, case, inputs, True)
    late = [
        torch.full_like(x, float("nan")) if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs
    ]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for x, y in zip(late, inputs):
            if isinstance(x, torch.Tensor) and x is not y:
                x.copy_(y)
        found = cases.results(OPS, case, late, True)
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_captured_in_a_graph():
    """No kernel waits for the host: a whole step can be captured and replayed."""
    torch.manual_seed(0)
    case = LARGE["cross-attention"]()
    inputs = case.cast(F16, F32, "cuda")
    grad_out = torch.randn_like(OPS.spatial_cross_attention(*inputs))
    step = lambda: (
        OPS.spatial_cross_attention(*inputs),
        *OPS.spatial_cross_attention_backward(grad_out, *inputs, True),
    )
    expected = step()
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        found = step()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_tensors_on_another_device_than_the_current():
    case = cases.make("dcnv3")
    on_first = cases.results(OPS, case, case.cast(F32, F32, "cuda:0"), True)
    on_second = cases.results(OPS, case, case.cast(F32, F32, "cuda:1"), True)
    assert torch.cuda.current_device() == 0
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(on_first, on_second))
    mixed = case.cast(F32, F32, "cuda:0")
    mixed[1] = mixed[1].to("cuda:1")
    with pytest.raises(RuntimeError, match="one device"):
        OPS.dcnv3(*mixed)


def test_tensors_of_the_host_are_refused():
    case = cases.make("dcnv3")
    inputs = case.cast(F32, F32, "cuda")
    inputs[2] = inputs[2].cpu()
    with pytest.raises(RuntimeError, match="one device"):
        OPS.dcnv3(*inputs)


def test_image_of_more_than_2_31_elements():
    needs_memory(30)
    height, width, channels, stride = 33_000, 2_048, 32, 64
    row = torch.arange(height, device="cuda", dtype=F16).remainder(97).view(1, -1, 1, 1)
    value = row.expand(1, height, width, channels).contiguous()
    value[:, :, -64:] += 1
    out_h, out_w = (height - 1) // stride + 1, (width - 1) // stride + 1
    offset = torch.zeros(1, out_h, out_w, 4, device="cuda", dtype=F16)
    mask = torch.ones(1, out_h, out_w, 2, device="cuda", dtype=F16)
    window = (1, 1, stride, stride, 0, 0, 1, 1, 2, 1.0, False, False)
    out = OPS.dcnv3(value, offset, mask, *window)
    assert torch.equal(out, value[:, ::stride, ::stride])
    grad_value, _, grad_mask = OPS.dcnv3_backward(torch.ones_like(out), value, offset, mask, *window, False)
    assert torch.equal(grad_mask.float(), out.view(1, out_h, out_w, 2, 16).float().sum(-1))
    assert (grad_value[:, ::stride, ::stride] == 1).all() and grad_value.sum(dtype=F64) == out.numel()


def test_batch_of_more_than_2_31_elements():
    needs_memory(20)
    value = torch.zeros(1100, 256, 256, 32, device="cuda", dtype=F16)
    value[-1] = 3
    offset = torch.zeros(1100, 256, 256, 2, device="cuda", dtype=F16)
    mask = torch.ones(1100, 256, 256, 1, device="cuda", dtype=F16)
    out = OPS.dcnv3(value, offset, mask, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1.0, False, False)
    assert (out[-1] == 3).all() and not out[:-1].any()


def test_empty_tensors():
    case = cases.make("dcnv3")
    inputs = [x[:0] if isinstance(x, torch.Tensor) else x for x in case.cast(F32, F32, "cuda")]
    assert [t.numel() for t in cases.results(OPS, case, inputs, False)] == [0] * 4
    case = cases.make("fused")
    inputs = case.cast(F32, F32, "cuda")
    inputs[2], inputs[3], inputs[4] = inputs[2][:, :0], inputs[3][:, :0], inputs[4][:, :0]
    out, grad_value, *_ = cases.results(OPS, case, inputs, True)
    assert out.numel() == 0 and grad_value.shape == inputs[0].shape and not grad_value.any()
