"""Warnings that are printed once, however often their cause occurs."""

from __future__ import annotations

import logging

_printed: set[str] = set()
_MOST = 10_000  # texts kept: a long run must not grow without end


def warn_once(text: str) -> None:
    """Log a warning unless this process has logged the same text before."""
    if text in _printed or len(_printed) >= _MOST:
        return
    _printed.add(text)
    logging.getLogger("drivestack").warning(text)


def forget_warnings() -> None:
    """Every warning is printed again, as in a new process (tests, long sessions)."""
    _printed.clear()
