"""Which implementation serves an operator call: the C++ kernels or the PyTorch twins.

The kernels lie in one shared object, `ops/_C*.so`, that the installation builds. It is loaded on the first call (an
import never compiles, loads or fails). If it is missing the twins serve, and one warning says so and how to mend it.

Environment: DRIVESTACK_OPS_BACKEND=auto|cpp|reference; the `backend=` argument of an operator wins over it.
"""

import ctypes
import os
import platform
import warnings
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch

from ..errors import DrivestackError

BACKENDS = ("auto", "cpp", "reference")
BACKEND_VARIABLE = "DRIVESTACK_OPS_BACKEND"
# Raised together with kInterfaceVersion in csrc/register_cpu.cpp whenever a schema changes.
INTERFACE_VERSION = 2
_FOLDER = Path(__file__).resolve().parent


class BackendFallbackWarning(UserWarning):
    """The slow PyTorch twin serves where a kernel could."""


class BackendUnavailableError(DrivestackError, RuntimeError):
    """`backend="cpp"` was asked for and the C++ kernels cannot serve."""


@dataclass(frozen=True)
class Extension:
    """The shared object, or why there is none."""

    path: str | None
    instruction_set: str | None
    """The code path chosen for this processor: avx512, avx2 or baseline."""
    reason: str | None
    """Why the kernels cannot serve; None if they can."""


_extension: Extension | None = None
_warned: set[str] = set()


def how_to_build() -> str:
    return f"run `python setup.py build_ext --inplace` in {_FOLDER.parent} (needs a C++17 compiler)"


def _load() -> Extension:
    candidates = [_FOLDER / f"_C{suffix}" for suffix in EXTENSION_SUFFIXES]
    path = next((p for p in candidates if p.is_file()), None)
    if path is None:
        return Extension(None, None, f"no compiled operators (_C*.so) in {_FOLDER}")
    try:
        library = ctypes.CDLL(str(path))
        version = library.drivestack_interface_version()
        if version != INTERFACE_VERSION:
            reason = f"{path} is of another drivestack version (interface {version}, not {INTERFACE_VERSION})"
            return Extension(str(path), None, reason)
        torch.ops.load_library(path)
        library.drivestack_instruction_set.restype = ctypes.c_char_p
        return Extension(str(path), library.drivestack_instruction_set().decode(), None)
    except (OSError, AttributeError) as error:
        return Extension(str(path), None, f"{path} does not load: {error}")


def extension() -> Extension:
    """Load the kernels once; the outcome is kept."""
    global _extension
    if _extension is None:
        _extension = _load()
    return _extension


def kernel_serves(backend: str | None, device_type: str) -> bool:
    """Whether the kernel (True) or the twin (False) answers a call on tensors of this device type.

    Raises:
        ValueError: `backend` or the environment variable names no backend.
        BackendUnavailableError: `cpp` is demanded and cannot serve.
    """
    origin = "backend" if backend is not None else BACKEND_VARIABLE
    choice = backend if backend is not None else os.environ.get(BACKEND_VARIABLE, "auto")
    if choice not in BACKENDS:
        raise ValueError(f"{origin} must be one of {', '.join(BACKENDS)}; got {choice!r}")
    if choice == "reference" or device_type == "meta":
        return False
    if device_type == "cpu":
        problem, fix = extension().reason, how_to_build()
    else:
        problem, fix = f"there are no kernels for {device_type} tensors", "expect about 10x less speed there"
    if problem is None:
        return True
    if choice == "cpp":
        raise BackendUnavailableError(f"the C++ operators were asked for, but {problem}; {fix}")
    if device_type not in _warned:
        _warned.add(device_type)
        message = f"the slow PyTorch twins of dcnv3 and ms_deform_attn serve: {problem}; {fix}"
        warnings.warn(message, BackendFallbackWarning, stacklevel=3)
    return False


# torch.compile takes the answer as a constant instead of tracing the loading of a library.
kernel_serves._dynamo_marked_constant = True


def backend_report() -> dict[str, str | int | None]:
    """What serves operator calls on CPU tensors here, for `drivestack doctor`.

    Keys: `backend` (cpp or reference), `path` of the shared object, `instruction_set`, `threads`, `machine`,
    `reason` why the kernels cannot serve and the `fix`; both None if they do.
    """
    found = extension()
    return {
        "backend": "reference" if found.reason else "cpp",
        "path": found.path,
        "instruction_set": found.instruction_set,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "reason": found.reason,
        "fix": how_to_build() if found.reason else None,
    }
