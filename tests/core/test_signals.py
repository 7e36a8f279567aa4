"""Signals end a program through its `finally` blocks, and can be held back where it must not stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from drivestack.core import signals
from drivestack.core.signals import Terminated, hold_termination, terminate_as_exception


@pytest.fixture(autouse=True)
def every_signal_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_ONE_REQUEST_S", 0.0)


@pytest.mark.parametrize("number", signals.ENDING)
def test_a_signal_becomes_an_exception_and_the_handlers_go_back(number: signal.Signals) -> None:
    if signal.getsignal(number) is signal.SIG_IGN:  # under nohup, or as a background job
        signal.signal(number, signal.SIG_DFL)
    before = signal.getsignal(number)
    with terminate_as_exception(), pytest.raises(Terminated) as stopped:
        os.kill(os.getpid(), number)
        time.sleep(5)
    assert stopped.value.code == 128 + number
    assert stopped.value.signal is number
    assert signal.getsignal(number) is before


def test_an_ignored_signal_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with terminate_as_exception():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_step_is_finished_before_the_program_ends() -> None:
    steps, saved = 0, False
    with terminate_as_exception(), pytest.raises(Terminated), hold_termination() as held:
        while steps < 10 and not held.requested:
            if steps == 3:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)
            steps += 1
        saved = True
    assert (steps, saved) == (4, True)


def test_a_second_signal_does_not_wait() -> None:
    with terminate_as_exception(), pytest.raises(Terminated), hold_termination():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        pytest.fail("the second signal was held too")


def test_an_error_within_is_the_one_that_is_seen() -> None:
    with terminate_as_exception(), pytest.raises(ValueError, match="own"), hold_termination():
        os.kill(os.getpid(), signal.SIGTERM)
        raise ValueError("own")


def test_signals_of_one_request_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_ONE_REQUEST_S", 60.0)
    with terminate_as_exception():
        with pytest.raises(Terminated):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGHUP)  # the closed terminal, a moment later: cleaning up goes on


def test_a_forked_child_dies_of_the_signal(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import os, signal, time\n"
        "from drivestack.core.signals import terminate_as_exception\n"
        "with terminate_as_exception():\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        time.sleep(30)\n"
        "        os._exit(3)\n"
        "    time.sleep(0.2)\n"
        "    os.kill(child, signal.SIGTERM)\n"
        "    print(os.WTERMSIG(os.waitpid(child, 0)[1]))\n"
    )
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == str(int(signal.SIGTERM)), done.stderr
