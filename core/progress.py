"""Progress of long jobs: a bar on a terminal, a plain line every tenth elsewhere.

Standard error decides which; lines go to the logger ``drivestack``. Both give the time that is left.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

logger = logging.getLogger("drivestack")

T = TypeVar("T")


def track(
    iterable: Iterable[T], what: str, total: int | None = None, *, unit: str = "", shown: bool = True
) -> Iterator[T]:
    """The items of ``iterable``, while a display of ``total`` steps (default: its length) moves on with each."""
    if total is None:
        assert isinstance(iterable, Sized), "track needs the total of an iterable without a length"
        total = len(iterable)
    with ProgressDisplay(what, total, unit=unit, shown=shown) as display:
        for item in iterable:
            yield item
            display.advance()


class ProgressDisplay:
    """A context manager: ``with ProgressDisplay("predict", 80) as display: display.advance()``.

    what: the job; total: its steps; done: those that an earlier run has made; unit: what a step is, plural.
    shown: False shows nothing, for callers that pass a switch on.
    lines: False leaves out the lines where there is no terminal, for callers that write richer ones.
    """

    def __init__(
        self, what: str, total: int, *, done: int = 0, unit: str = "", shown: bool = True, lines: bool = True
    ) -> None:
        self.what, self.total, self.done, self.unit = what, total, done, unit
        self.on_terminal = shown and sys.stderr is not None and sys.stderr.isatty()
        self._lines = shown and lines and not self.on_terminal
        self._done_before, self._started_s = done, time.monotonic()
        self._bar: Progress | None = None
        self._task: Any = None

    def __enter__(self) -> ProgressDisplay:
        self._started_s = time.monotonic()
        if self.on_terminal:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = [TextColumn(self.what), BarColumn(), MofNCompleteColumn(), TextColumn(self.unit)]
            columns += [TimeRemainingColumn(), TextColumn("{task.fields[note]}")]
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task(self.what, total=self.total, completed=self.done, note="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        """``steps`` more are done; ``note`` is shown beside the bar from now on."""
        self.move_to(self.done + steps, note)

    def move_to(self, done: int, note: str | None = None) -> None:
        """``done`` steps are done in all. Never goes back."""
        before, self.done = self.done, max(self.done, done)
        if self._bar:
            fields: dict[str, Any] = {} if note is None else {"note": note}
            self._bar.update(self._task, completed=self.done, **fields)
        elif self._lines and self.total > 0 and self.done * 10 // self.total > before * 10 // self.total:
            unit = f" {self.unit}" if self.unit else ""
            logger.info("%s %d/%d%s  eta %s", self.what, self.done, self.total, unit, self.eta())

    def eta(self) -> str:
        """The time that is left, ``minutes:seconds`` or ``hours:minutes:seconds``; ``?`` before the first step."""
        made = self.done - self._done_before
        if made <= 0:
            return "?"
        return clock_time((time.monotonic() - self._started_s) / made * max(self.total - self.done, 0))


def clock_time(seconds: float) -> str:
    """``75`` to ``1:15``, ``3675`` to ``1:01:15``."""
    minutes, rest_s = divmod(round(seconds), 60)
    hours, rest_min = divmod(minutes, 60)
    return f"{hours}:{rest_min:02d}:{rest_s:02d}" if hours else f"{rest_min}:{rest_s:02d}"
