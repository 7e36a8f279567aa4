"""Kernels that get no scratch memory: an error of the call with the operator's name, in any thread; the process lives.

The kernels get theirs from aligned_alloc, which is replaced in a process of its own by one that can be made to fail.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .emulated import compiler

ALLOCATOR = """
#include <stdlib.h>
static size_t limit = (size_t)-1;
void fail_from(size_t bytes) { limit = bytes; }
void* aligned_alloc(size_t alignment, size_t bytes) {
  void* memory = 0;
  return bytes >= limit || posix_memalign(&memory, alignment, bytes) ? 0 : memory;
}
"""
PROGRAM = """
import ctypes, re, sys
import torch
from drivestack.ops.norm import depthwise_norm
from drivestack.tests.ops.conftest import CASES

fail_from = ctypes.CDLL(sys.argv[1]).fail_from
fail_from.argtypes = [ctypes.c_size_t]
NEVER = 2**64 - 1


def expect_failure(name, call, limit, expected):
    fail_from(limit)
    try:
        call()
    except RuntimeError as error:
        message = str(error)
    else:
        message = "no error"
    fail_from(NEVER)
    found = re.search(rf"drivestack::{name}: out of memory: a thread asked for (\\d+) bytes", message)
    assert found and int(found[1]) >= limit, (name, limit, message)
    for tensor, wanted in zip(call(), expected):
        assert torch.equal(tensor, wanted), name  # the next call is sound


for threads in (1, 4):
    torch.set_num_threads(threads)
    for case in CASES.values():
        inputs = case.raw(*case.tensors(4, 400, torch.float32))  # enough for several threads
        forward = lambda: [getattr(torch.ops.drivestack, case.name)(*inputs)]
        out = forward()
        expect_failure(case.name, forward, 1, out)
        backward = lambda: getattr(torch.ops.drivestack, f"{case.name}_backward")(out[0], *inputs, True)
        expect_failure(f"{case.name}_backward", backward, 1, backward())
    torch.manual_seed(0)
    tensors = [torch.randn(4, 190, 190, channels) for channels in (32, 32, 72, 36)]
    backward = lambda: torch.ops.drivestack.dcnv3_backward(*tensors, 3, 3, 1, 1, 1, 1, 1, 1, 4, 1.0, False, False, True)
    # The sum over an image: more than the 4 MiB that a thread keeps from one call to the next.
    expect_failure("dcnv3_backward", backward, 4_300_000, backward())
    x, kernel, vector = torch.randn(2, 40, 40, 32), torch.randn(32, 1, 3, 3), torch.randn(32)
    norm = lambda: [depthwise_norm(x, kernel, vector, vector, vector, 1e-6, padding=1)]
    expect_failure("depthwise_norm", norm, 1, norm())
print("alive")
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not compiler(), reason="needs LD_PRELOAD and a C++ compiler"
)
def test_no_scratch_memory_is_an_error_of_the_call(tmp_path: Path, kernels: str) -> None:
    source, library = tmp_path / "allocator.c", tmp_path / "allocator.so"
    source.write_text(ALLOCATOR)
    subprocess.run([*compiler(), "-shared", "-fPIC", "-x", "c", source, "-o", library], check=True)
    environment = os.environ | {"LD_PRELOAD": f"{os.environ.get('LD_PRELOAD', '')} {library}".strip()}
    command = [sys.executable, "-c", PROGRAM, str(library)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and done.stdout == "alive\n", done.stdout + done.stderr[-3000:]
