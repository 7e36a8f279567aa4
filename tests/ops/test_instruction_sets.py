"""The tests of the CPU kernels again, in processes of their own: the other instruction sets, and offsets of 64 bits.

Both are chosen when the kernels are loaded, once for a process.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
USED = "from drivestack.ops import backend_report; print(backend_report()['instruction_set'])"


def run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        command, env=os.environ | environment, cwd=HERE.parents[1], capture_output=True, text=True, timeout=900
    )


def passes(environment: dict[str, str], chosen: str, files: str) -> None:
    found = sorted(str(path) for path in HERE.glob(files))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, *found]
    done = run(command, environment)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.parametrize("name", ["avx512", "avx2", "baseline"])
def test_each_instruction_set(name, kernels):
    environment = {"DRIVESTACK_OPS_ISA": name}
    used = run([sys.executable, "-c", USED], environment).stdout.strip()
    if used != name:
        pytest.skip(f"this processor has no {name}")
    if used == run([sys.executable, "-c", USED], {}).stdout.strip():
        pytest.skip(f"{name} is what this process tests")
    passes(environment, "cpp or (kernel and not any_shapes and not billion and not threads)", "test_[dmnps]*.py")


def test_offsets_of_64_bits(kernels):
    """Images count as too large for 32 bits; the choice is made for each image, the numbers stay those of 32 bits."""
    chosen = "every_type_and_layout or channels_and_taps or parity or threads_change_no_bit"
    passes({"DRIVESTACK_OPS_NARROW_ELEMENTS": "0"}, chosen, "test_*_kernel.py")
