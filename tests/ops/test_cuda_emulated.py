"""The CUDA kernels, the very source, run block by block on the CPU against the reference (no GPU needed)."""

import pytest
import torch

from . import cuda_cases as cases
from . import emulated
from .cuda_cases import F16, F32, F64

INT32_MAX = 2**31 - 1
pytestmark = pytest.mark.timeout(900)  # the first test also compiles

if emulated.compiler() is None:
    pytest.skip("no C++ compiler", allow_module_level=True)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return emulated.load(emulated.build(tmp_path_factory.mktemp("emulated")))


@pytest.fixture
def ops(library):
    """The operators; what they leave unwritten is NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield torch.ops.drivestack_emulation
    torch.use_deterministic_algorithms(before)
    library.emulation_run_backwards(0)
    library.drivestack_cuda_set_limits(65535, INT32_MAX)


@pytest.mark.parametrize("value,taps", cases.DTYPES, ids=cases.DTYPE_IDS)
@pytest.mark.parametrize("name", cases.CASES)
def test_parity(ops, name, value, taps):
    if name.startswith("msda") and value != taps and taps == F32:
        pytest.skip("plain attention has one type of locations")
    cases.check(ops, cases.make(name), value, taps)


@pytest.mark.parametrize("name", ["dcnv3", "dcnv3-by-group", "msda", "fused-mean", "cross-attention"])
def test_offsets_of_64_bits_and_images_in_chunks(ops, library, name):
    case = cases.make(name)
    inputs = case.cast(F32, F32)
    expected = cases.results(ops, case, inputs, False)
    library.drivestack_cuda_set_limits(1, 100)  # one image per launch; every image has more than 100 elements
    cases.check(ops, case, F16, F16)
    for actual, wanted in zip(cases.results(ops, case, inputs, False), expected):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value,taps", [(F32, F32), (F16, F16), (F64, F64)], ids=["f32", "f16", "f64"])
@pytest.mark.parametrize("name", ["dcnv3", "msda", "fused-references", "cross-attention"])
def test_order_of_threads(ops, library, name, value, taps):
    """Deterministic: the same bits in any order of blocks and threads. All but grad_value is so in either mode."""
    case = cases.make(name)
    inputs = case.cast(value, taps)
    forwards = {mode: cases.results(ops, case, inputs, mode) for mode in (True, False)}
    library.emulation_run_backwards(1)
    for mode, expected in forwards.items():
        for i, (actual, wanted) in enumerate(zip(cases.results(ops, case, inputs, mode), expected)):
            assert torch.equal(actual, wanted) or (i == 1 and not mode), (mode, i)


def test_images_are_separate(ops):
    cases.check_images_are_separate(ops)


def test_points_outside(ops):
    cases.check_points_outside(ops)


def test_expanded_inputs(ops):
    cases.check_expanded_inputs(ops)


def test_float_locations_with_half_values(ops):
    cases.check_float_locations(ops)


def test_masks_per_sample(ops):
    cases.check_masks_per_sample(ops)


def test_sums_are_float(ops):
    cases.check_sums_are_float(ops)
