"""Signals that end a program: as exceptions, so that its `finally` blocks run, and held back where it must not stop.

Only the command line installs the handlers (`terminate_as_exception`); a library call changes no signal.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""What a cluster, a service manager or a closed terminal sends; Windows has no SIGHUP."""
_ONE_REQUEST_S = 2.0  # signals to a process group and to its leader often come twice: together they are one request

_held: list[Held] = []  # blocks of `hold_termination`, innermost last


class Terminated(SystemExit):
    """SIGTERM or SIGHUP was received. ``code`` is the exit code of a shell, 128 + the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)


class Held:
    """What `hold_termination` yields: whether a request to end has come meanwhile."""

    number: int | None = None

    @property
    def requested(self) -> bool:
        """True from the first signal on: reach a state worth keeping, save it, and leave the block."""
        return self.number is not None


@contextmanager
def terminate_as_exception() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP raise `Terminated` in the main thread. For programs, not for libraries.

    A signal that is ignored (``nohup``) stays ignored, and child processes keep the default. Outside the main thread
    nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner, first_s = os.getpid(), -_ONE_REQUEST_S

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first_s
        if os.getpid() != owner:  # a forked child that has not set its own
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if time.monotonic() - first_s < _ONE_REQUEST_S:
            return
        first_s = time.monotonic()
        if _held and not _held[-1].requested:
            _held[-1].number = number
            return
        raise Terminated(number)

    before = {number: signal.getsignal(number) for number in ENDING}
    taken = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in taken:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)


@contextmanager
def hold_termination() -> Iterator[Held]:
    """Within, the first SIGTERM or SIGHUP raises nothing but sets ``held.requested``; at the end of the block
    `Terminated` is raised. A second one raises at once.

    For loops that look at ``held.requested`` between two steps and save what they have:

        with hold_termination() as held:
            while not done and not held.requested:
                step()
            save()

    Without `terminate_as_exception` around it nothing is held. An exception of the block is not replaced.
    """
    held = Held()
    _held.append(held)
    try:
        yield held
    finally:
        _held.remove(held)
    if held.number is not None:
        raise Terminated(held.number)


@contextmanager
def start_children_without_signals() -> Iterator[None]:
    """Processes and threads that are started within get no SIGINT, SIGTERM or SIGHUP: their parent ends them.

    What comes meanwhile reaches the parent at the end of the block.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, *ENDING})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
