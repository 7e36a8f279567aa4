"""Fixtures of the operator tests: which implementation and how many threads, put back afterwards."""

import ctypes

import pytest
import torch

from drivestack.ops.backend import extension


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def kernels():
    """Value for `backend=`; skips where the CPU kernels cannot serve."""
    if extension("cpu").reason:
        pytest.skip(extension("cpu").reason)
    return "cpp"


@pytest.fixture(params=["cpp", "reference"])
def kernel_or_twin(request):
    """Value for `backend=`: the kernels as this processor runs them, and the twin."""
    return request.getfixturevalue("kernels") if request.param == "cpp" else request.param


@pytest.fixture(params=["avx512", "avx2", "baseline", "reference"])
def backend(request):
    """Value for `backend=`: the kernels with each instruction set that this processor has, and the twin."""
    if request.param == "reference":
        yield "reference"
        return
    found = extension("cpu")
    if found.reason:
        pytest.skip(found.reason)
    library = ctypes.CDLL(found.path)
    if not library.drivestack_choose_instruction_set(request.param.encode()):
        pytest.skip(f"this processor has no {request.param}")
    yield "cpp"
    library.drivestack_choose_instruction_set(found.variant.encode())
