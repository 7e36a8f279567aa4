"""Which implementation an operator call uses: the compiled kernels or the reference implementation in PyTorch.

The CPU kernels lie in one shared object, `ops/_C*.so`, those for NVIDIA GPUs in another, `ops/_C_cuda*.so`. Each is
loaded when the first tensor of its kind comes (an import never compiles, loads or fails). Where one is missing the
reference implementation runs, and one warning says so and how to build the kernels.

Environment: DRIVESTACK_OPS_BACKEND=auto|cpp|cuda|reference; the `backend=` argument of an operator wins over it.
    auto       the kernels where they can run, else the reference implementation
    cpp        the kernels for whatever device the tensors are on, or BackendUnavailableError
    cuda       the CUDA kernels, or BackendUnavailableError (also for tensors that are not on a GPU)
    reference  the reference implementation
DRIVESTACK_OPS_FOLDER: where the shared objects are looked for instead of here (`make sanitize` has its own there).
DRIVESTACK_OPS_ISA=avx512|avx2|baseline: the instruction set of the CPU kernels, if this processor has it. Read once.
"""

import ctypes
import json
import os
import platform
import warnings
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch

from ...core.errors import DrivestackError

BACKENDS = ("auto", "cpp", "cuda", "reference")
BACKEND_VARIABLE = "DRIVESTACK_OPS_BACKEND"
# Raised together with kInterfaceVersion in csrc/register_cpu.cpp whenever a schema (registration.py) changes.
INTERFACE_VERSION = 3
_FOLDER = Path(os.environ.get("DRIVESTACK_OPS_FOLDER") or Path(__file__).parent.parent).resolve()
_OBJECTS = {"cpu": "_C", "cuda": "_C_cuda"}
_KEYS = {"cpu": "CPU", "cuda": "CUDA"}


class BackendFallbackWarning(UserWarning):
    """The slow reference implementation runs where a kernel could."""


class BackendUnavailableError(DrivestackError, RuntimeError):
    """`backend="cpp"` or "cuda" was requested and the compiled kernels cannot run."""


@dataclass(frozen=True)
class Extension:
    """A shared object, or why there is none."""

    path: str | None
    variant: str | None
    """What it was compiled for: the instruction set chosen here (avx512, avx2, baseline), or GPU architectures."""
    reason: str | None
    """Why the kernels cannot run; None if they can."""


_extensions: dict[str, Extension] = {}
_with_kernel: set[tuple[str, str]] = set()
"""(operator, device type) that have a kernel, determined on the first call."""
_warned: set[str] = set()


def how_to_build(device_type: str = "cpu") -> str:
    command, needs = "python setup.py build_ext --inplace", "a C++17 compiler"
    root = Path(__file__).resolve().parents[2]
    if not (root / "setup.py").is_file():
        command = "pip install --no-build-isolation ."
    if device_type == "cuda":
        command, needs = f"DRIVESTACK_CUDA=1 {command}", "nvcc and a CUDA build of torch"
    first = build_record(device_type).get("fix")  # of what was missing when it was built last
    first = f"{first}, then " if first and "setup.py" not in first and "DRIVESTACK_CUDA=1" not in first else ""
    where = root if (root / "setup.py").is_file() else "a checkout"
    return f"{first}run `{command}` in {where} (needs {needs})"


def build_record(device_type: str) -> dict:
    """What setup.py recorded of the last build of these kernels; empty if nothing. Keys: see Outcome in setup.py."""
    try:
        return json.loads((_FOLDER / "_build.json").read_text(encoding="utf-8"))[device_type]
    except (OSError, ValueError, KeyError):
        return {}


def _gpu_problem(architectures: str) -> str | None:
    """Why code for these architectures ("75 80 90+PTX") does not run on the current GPU. Empty: not known."""
    if not architectures or not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    for name in architectures.split():
        number = int("".join(c for c in name.removesuffix("+PTX") if c.isdigit()))
        same_family = number // 10 == major and number % 10 <= minor
        if same_family or (name.endswith("+PTX") and number <= 10 * major + minor):
            return None
    return f"they are built for {architectures}, the GPU here is {major}{minor}"


def _load(device_type: str) -> Extension:
    name = _OBJECTS[device_type]
    path = next((p for p in (_FOLDER / f"{name}{suffix}" for suffix in EXTENSION_SUFFIXES) if p.is_file()), None)
    if path is None:
        why = build_record(device_type).get("reason")
        reason = f"no compiled operators ({name}*.so) in {_FOLDER}" + (f", not built: {why}" if why else "")
        return Extension(None, None, reason)
    if device_type == "cuda" and torch.version.cuda is None:
        return Extension(str(path), None, f"torch {torch.__version__} has no CUDA")
    try:
        library = ctypes.CDLL(str(path))
        version = library.drivestack_interface_version()
        if version != INTERFACE_VERSION:
            reason = f"{path} is of another drivestack version (interface {version}, not {INTERFACE_VERSION})"
            return Extension(str(path), None, reason)
        describe = library.drivestack_instruction_set if device_type == "cpu" else library.drivestack_cuda_architectures
        describe.restype = ctypes.c_char_p
        variant = describe().decode()
        problem = _gpu_problem(variant) if device_type == "cuda" else None
        if problem is None:
            torch.ops.load_library(path)
        return Extension(str(path), variant, problem)
    except (OSError, AttributeError) as error:
        return Extension(str(path), None, f"{path} does not load: {error}")


def extension(device_type: str = "cpu") -> Extension:
    """Load the kernels for "cpu" or "cuda" once; the outcome is kept."""
    found = _extensions.get(device_type)
    if found is None:
        found = _extensions[device_type] = _load(device_type)
    return found


def _problem(op: str, device_type: str) -> tuple[str | None, str]:
    """Why no kernel can be used (None: one can) and what to do."""
    if device_type not in _OBJECTS:
        return f"there are no kernels for {device_type} tensors", "expect about 10x less speed there"
    problem = extension(device_type).reason
    if problem is None and not torch._C._dispatch_has_kernel_for_dispatch_key(f"drivestack::{op}", _KEYS[device_type]):
        problem = f"{extension(device_type).path} holds no kernel for {op}"
    return problem, how_to_build(device_type)


def use_kernel(op: str, backend: str | None, device_type: str) -> bool:
    """Whether a call of `op` on tensors of this device type uses the kernel (True) or the reference (False).

    Raises:
        ValueError: `backend` or the environment variable names no backend.
        BackendUnavailableError: kernels are demanded and cannot run.
    """
    choice = backend if backend is not None else os.environ.get(BACKEND_VARIABLE, "auto")
    if choice not in BACKENDS:
        origin = "backend" if backend is not None else BACKEND_VARIABLE
        raise ValueError(f"{origin} must be one of {', '.join(BACKENDS)}; got {choice!r}")
    if backend is None and torch.compiler.is_exporting():
        return True  # an exported program keeps the operators: kernel or reference is chosen where it runs
    if choice == "reference" or device_type == "meta":
        return choice != "reference"  # meta tensors need no kernel, the operators know their shapes
    if choice == "cuda" and device_type != "cuda":
        raise BackendUnavailableError(f"{op}: the CUDA kernels were requested, but the tensors are on {device_type}")
    if (op, device_type) in _with_kernel:
        return True
    problem, fix = _problem(op, device_type)
    if problem is None:
        _with_kernel.add((op, device_type))
        return True
    if choice != "auto":
        raise BackendUnavailableError(f"{op}: the compiled kernels were requested, but {problem}; {fix}")
    if device_type not in _warned:
        _warned.add(device_type)
        message = f"the operators use their slow PyTorch implementation: {problem}; {fix}"
        warnings.warn(
            message,
            BackendFallbackWarning,
            stacklevel=4,  # whoever called the operator
        )
    return False


# torch.compile takes the answer as a constant instead of tracing the loading of a library.
use_kernel._dynamo_marked_constant = True  # type: ignore[attr-defined]  # the mark that torch.compile looks for


def backend_report() -> dict:
    """What operator calls use here, for `drivestack doctor`.

    Keys, on CPU tensors: `backend` (cpp or reference), `path` of the shared object, `instruction_set`, `threads`,
    `machine`, `reason` why the kernels cannot run and the `fix`, both None if they can. `cuda` holds the same for CUDA
    tensors: `path`, `architectures`, `reason`, `fix`.
    """
    found, cuda = extension("cpu"), extension("cuda")
    cuda_reason = cuda.reason
    if cuda_reason is None and not torch.cuda.is_available():
        cuda_reason = "torch sees no GPU"
    return {
        "backend": "reference" if found.reason else "cpp",
        "path": found.path,
        "instruction_set": found.variant,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "reason": found.reason,
        "fix": how_to_build() if found.reason else None,
        "cuda": {
            "path": cuda.path,
            "architectures": cuda.variant,
            "reason": cuda_reason,
            "fix": how_to_build("cuda") if cuda.reason else None,
        },
    }
