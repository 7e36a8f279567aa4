"""A verb that is ended takes its processes with it, leaves nothing half-written, and says how to go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drivestack.cli.main import main

PATIENCE_S = 120.0
PROGRAM = """
import sys, time
from drivestack.core.files import atomic_path
from drivestack.data_tools.synthetic.files import generate

def scene(root, recipe, split, index, on_keyframe=None):
    with atomic_path(root / f"scene_{index}.txt") as temporary:
        temporary.write_text("half")
        (root / f"begun_{index}").touch()
        time.sleep(600)

generate._one_scene = scene  # in the workers, too: they import this file

if __name__ == "__main__":
    from drivestack.cli.main import main
    sys.exit(main(["synthesize", sys.argv[1], "--scenes", "2", "--keyframes", "2", "--workers", "2"]))
"""


def wait_for(what: Callable[[], object], limit_s: float = PATIENCE_S) -> None:
    end_s = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < end_s, "it never came"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextmanager
def synthesizing(out: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A run of two processes that are in the middle of a file, and its children."""
    program = out.with_name("program.py")
    program.write_text(PROGRAM)
    command = [sys.executable, str(program), str(out)]
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job would ignore it
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heard) as run:
        try:
            wait_for(lambda: len(list(out.with_name(out.name + ".partial").glob("begun_*"))) == 2)
            yield run, children(run.pid)
        finally:
            run.kill()


def hidden(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if path.is_file()]


@pytest.mark.parametrize(
    ("number", "of_group", "code"),
    [
        (signal.SIGTERM, False, 143),
        (signal.SIGTERM, True, 143),
        (signal.SIGINT, False, 130),
        (signal.SIGINT, True, 130),
        (signal.SIGKILL, False, -signal.SIGKILL),
    ],
)
def test_no_process_of_synthesize_survives_it(
    tmp_path: Path, number: signal.Signals, of_group: bool, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with synthesizing(tmp_path / "set") as (run, processes):
        assert len(processes) >= 2
        assert main(["synthesize", str(tmp_path / "set"), "--scenes", "2"]) == 2  # a second run
        assert f"{tmp_path}/set: process {run.pid} on " in capsys.readouterr().err
        sent_s = time.monotonic()
        (os.killpg if of_group else os.kill)(run.pid, number)
        errors = run.communicate(timeout=PATIENCE_S)[1].splitlines()
        assert run.returncode == code
        wait_for(lambda: not any(map(is_running, processes)), 20.0)
        assert time.monotonic() - sent_s < 10.0
    assert not (tmp_path / "set").exists()
    if number == signal.SIGKILL:
        return
    assert hidden(tmp_path) == []
    (line,) = errors
    words = "interrupted" if number == signal.SIGINT else f"ended by {number.name}"
    assert line == f"{words}; the same command goes on with the scenes that are missing"


def test_what_a_killed_run_left_is_used_or_removed_by_the_next(tmp_path: Path) -> None:
    with synthesizing(tmp_path / "set") as (run, processes):
        run.kill()
        wait_for(lambda: not any(map(is_running, processes)), 20.0)
    assert len(hidden(tmp_path)) >= 3  # a lock, and two files that were being written
    arguments = ["--scenes", "2", "--keyframes", "2", "--image-width", "640", "--workers", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("drivestack.data_tools.synthetic.files.generate._run", stop)
        assert main(["synthesize", str(tmp_path / "set"), *arguments]) == 130
    assert hidden(tmp_path) == []


def stop(*_: object) -> None:
    raise KeyboardInterrupt
