"""Whatever a verb raises ends in one line and an exit code; the line says where and what to do."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from drivestack.cli.border import line_of, run_verb
from drivestack.core.files import file_name
from drivestack.core.signals import Terminated


def outcome(run: Callable[[], object], capsys: pytest.CaptureFixture[str], debug: bool = False) -> tuple[int, str]:
    """Exit code and standard error of a verb that runs this."""
    options = argparse.Namespace(run=lambda _: run() or 0, debug=debug, again="the same command goes on")
    code = run_verb(options)
    return code, capsys.readouterr().err


def fail(error: BaseException) -> Callable[[], object]:
    def run() -> object:
        raise error

    return run


def deep(levels: int = 0) -> int:
    return deep(levels + 1)


MEMORY = "ask for less at once (--batch-size"
CASES: dict[str, tuple[Callable[[], object], int, str]] = {
    "bug": (lambda: file_name("a", None) + 1, 2, "error: unexpected TypeError in "),  # type: ignore[operator]
    "bug inside": (lambda: np.zeros(2) @ np.zeros(3), 2, "error: unexpected ValueError in "),
    "no message": (fail(AssertionError()), 2, "no message"),
    "numpy memory": (lambda: np.empty(1 << 60, np.uint8), 2, MEMORY),
    "torch memory": (lambda: torch.empty(1 << 60, dtype=torch.uint8), 2, MEMORY),
    "gpu memory": (fail(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")), 2, MEMORY),
    "system memory": (fail(OSError(12, "Cannot allocate memory")), 2, MEMORY),
    "recursion": (deep, 2, "nested too deeply"),
    "no module": (fail(ModuleNotFoundError("No module named 'cv2'")), 2, "drivestack doctor"),
    "library of the system": (fail(OSError("libcudart.so.13: cannot open shared object file")), 2, "libcudart.so.13"),
    "missing file": (lambda: Path("/nowhere/x").read_text(), 2, "No such file or directory (/nowhere/x)"),
    "exit of foreign code": (lambda: sys.exit(0), 2, "unexpected SystemExit"),
    "several lines": (fail(RuntimeError("first\n\n  second  line")), 2, "first; second line"),
    "interrupt": (fail(KeyboardInterrupt()), 130, "interrupted; the same command goes on"),
    "termination": (fail(Terminated(15)), 143, "ended by SIGTERM; the same command goes on"),
}


@pytest.mark.parametrize("name", CASES)
def test_every_error_is_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    run, code, words = CASES[name]
    found, text = outcome(run, capsys)
    assert found == code
    assert text.count("\n") == 1
    assert words in text


def test_an_unexpected_error_names_our_line_or_the_users_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from drivestack.core import files

    _, text = outcome(lambda: files.sync_files([1]), capsys)  # type: ignore[list-item]
    assert text.startswith("error: unexpected AttributeError in core/files.py:")
    assert text.endswith("this may be a bug of drivestack: --debug shows where\n")
    own = tmp_path / "my_reader.py"
    own.write_text("\nvalue = {}['nothing']\n")
    _, text = outcome(lambda: exec(compile(own.read_text(), str(own), "exec")), capsys)
    assert text == f"error: unexpected KeyError in {own}:2: 'nothing'; correct it there: --debug shows where\n"


def test_debug_adds_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = outcome(fail(TypeError("oh")), capsys, debug=True)
    assert code == 2
    assert text.startswith("Traceback")
    assert text.splitlines()[-1].startswith("error: unexpected TypeError")


class Broken(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        return {}[index]


def test_an_error_of_a_loaders_process_names_its_own_line() -> None:
    with pytest.raises(KeyError) as caught:
        list(torch.utils.data.DataLoader(Broken(), num_workers=1))
    line = line_of(caught.value)
    assert "test_border.py" in line
    assert "Traceback" not in line


def program(body: str, **settings: object) -> subprocess.CompletedProcess[str]:
    text = (
        "import argparse, sys\nfrom drivestack.cli.border import run_verb\n"
        f"def run(options):\n{body}\n    return 0\n"
        "sys.exit(run_verb(argparse.Namespace(run=run, debug=False, again='the same command goes on')))\n"
    )
    command = [sys.executable, "-c", text]
    settings.setdefault("env", {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"})
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=60, **settings)  # type: ignore[call-overload]


def test_a_reader_that_leaves_ends_the_program_quietly() -> None:
    read, write = os.pipe()
    os.close(read)
    done = program("    print('x' * 100000)", stdout=write)
    os.close(write)
    assert done.returncode == 141
    assert done.stderr == "nobody reads the output any more: stopped; the same command goes on\n"


def test_a_full_disk_behind_standard_output_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = program("    print('x')", stdout=full)
    assert done.returncode == 2
    assert done.stderr == "error: standard output: No space left on device; make room where it is written to\n"


def test_letters_that_the_terminal_lacks_are_numbers() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = program("    print('\\u00fc \\udcff')", stdout=subprocess.PIPE, env=environment)
    assert (done.returncode, done.stdout) == (0, "\\xfc \\udcff\n")


def test_closed_output_streams_are_no_error() -> None:
    done = program("    print('x')", stdout=subprocess.DEVNULL, preexec_fn=lambda: (os.close(1), os.close(2)))
    assert done.returncode == 0
