"""Builds the CUDA kernels of ops/csrc/cuda for the host (emulation/cuda_shim.h) as operators `drivestack_emulation::*`
that take CPU tensors. Their fibers run one thread at a time: for small tests only."""

import ctypes
import os
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.utils.cpp_extension

from drivestack.ops.dispatch.operators import OPERATORS

HERE = Path(__file__).resolve().parent / "emulation"
CSRC = HERE.parents[2] / "ops/csrc"
NAMESPACE = "drivestack_emulation"


def compiler() -> list[str] | None:
    """The C++ compiler as a command, None if there is none."""
    command = (os.environ.get("CXX") or "c++").split()
    return command if shutil.which(command[0]) else None


def build(folder: Path) -> Path:
    """Compile and link into `folder`; the path of the shared object."""
    includes = [HERE, *torch.utils.cpp_extension.include_paths(), sysconfig.get_paths()["include"]]
    flags = ["-std=c++17", "-O1", "-fPIC", "-w", "-x", "c++", *(f"-I{path}" for path in includes)]
    macros = {
        "TORCH_TARGET_VERSION": "0x020b000000000000",
        "DRIVESTACK_LIBRARY": NAMESPACE,
        "DRIVESTACK_DEVICE": "CPU",
    }
    flags += [f"-D{name}={value}" for name, value in macros.items()]
    sources = [*sorted((CSRC / "cuda").glob("*.c*")), CSRC / "register_cuda.cpp", HERE / "order.cpp"]
    sources = [path for path in sources if path.suffix in (".cu", ".cpp")]

    def compile_one(source: Path) -> str:
        made = folder / f"{source.name}.o"
        run([*compiler(), *flags, "-c", str(source), "-o", str(made)])
        return str(made)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources))
    library = folder / "emulation.so"
    linked = [f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch_cpu", "-ltorch", "-lc10"]
    run([*compiler(), "-shared", *objects, *linked, "-o", str(library)])
    return library


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-4000:]}"


def load(library: Path) -> ctypes.CDLL:
    """Register the operators; gives the library for drivestack_cuda_set_limits and emulation_run_backwards."""
    for name, operator in OPERATORS.items():
        torch.library.define(f"{NAMESPACE}::{name}", f"({operator.schema}) -> Tensor")
        backward = f"({operator.backward_schema}) -> (Tensor, Tensor, Tensor)"
        torch.library.define(f"{NAMESPACE}::{name}_backward", backward)
    torch.ops.load_library(library)
    handle = ctypes.CDLL(str(library))
    handle.drivestack_cuda_set_limits.argtypes = [ctypes.c_int64, ctypes.c_int64]
    return handle
