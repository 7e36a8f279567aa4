"""The border of the command line: whatever a verb raises ends in one line on standard error and an exit code."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import re
import select
import signal
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from ..core.errors import DrivestackError, OutputError
from ..core.signals import Terminated, start_children_without_signals, terminate_as_exception

USER_ERROR = 2
INTERRUPTED = 128 + signal.SIGINT
NO_READER = 128 + 13  # SIGPIPE: `drivestack ... | head`

_PACKAGE = Path(__file__).resolve().parents[1]
_LIBRARIES = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")]
_LIBRARIES_ARE_WITHIN = not any(_PACKAGE.is_relative_to(folder) for folder in _LIBRARIES)  # .venv of a checkout
_NO_MEMORY = ("DefaultCPUAllocator", "out of memory", "Unable to allocate", "Cannot allocate memory")
_IN_TRACEBACK = re.compile(r'File "([^"]+)", line (\d+)')


def run_verb(options: argparse.Namespace) -> int:
    """The exit code of ``options.run(options)``; errors, signals and a closed output end in one line."""
    with terminate_as_exception(), _any_letter(sys.stdout):
        try:
            _import_torch()
            code = options.run(options)
            _flush(sys.stdout)
            return code
        except KeyboardInterrupt:
            _say(f"interrupted; {options.again}")
            return INTERRUPTED
        except Terminated as ended:
            _say(f"ended by {ended.signal.name}; {options.again}")
            return int(ended.code or USER_ERROR)
        except BrokenPipeError as error:
            if _has_reader(sys.stdout):
                return _report(error, options.debug)
            _discard_output()
            _say(f"nobody reads the output any more: stopped; {options.again}")
            return NO_READER
        except (Exception, SystemExit) as error:
            return _report(error, options.debug)


def _import_torch() -> None:
    """Every verb needs it; a signal that interrupts the start of its C++ parts would abort the process."""
    with start_children_without_signals(), contextlib.suppress(Exception):  # the verb meets the exception again
        import torch  # noqa: F401


def _report(error: BaseException, debug: bool) -> int:
    if debug:
        _say("".join(traceback.format_exception(error)).rstrip())
    _discard_output()
    _say(f"error: {line_of(error)}")
    return USER_ERROR


def line_of(error: BaseException) -> str:
    """An error as one line: what is wrong, where, and what can be done."""
    if isinstance(error, DrivestackError):
        return one_line(_own_text(error))
    if isinstance(error, OSError) and error.strerror and error.errno != errno.ENOMEM:
        place = f" ({os.fsdecode(error.filename)})" if isinstance(error.filename, (str, bytes)) else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT) and not place:
            place = f" (of standard output, or of the temporary folder {os.environ.get('TMPDIR', '/tmp')})"
        return one_line(f"{error.strerror}{place}; check path, permissions and free disk space")
    text, kind = _own_text(error), type(error).__name__
    if isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY):
        return one_line(
            f"out of memory{': ' * bool(text)}{text[:300]}; ask for less at once (--batch-size, --workers, smaller "
            "images or another model), or give this machine or GPU more"
        )
    if isinstance(error, ImportError):
        return one_line(f"{text}; `drivestack doctor` shows what is missing and how to install it")
    if isinstance(error, OSError):  # of a library, without a number
        return one_line(f"{text or kind}; check path, permissions and free disk space")
    place, ours = _place(error)
    whose = "this may be a bug of drivestack" if ours else "correct it there"
    if isinstance(error, RecursionError):
        text = "data or calls nested too deeply"
    return one_line(f"unexpected {kind} in {place}: {text[:300] or 'no message'}; {whose}: --debug shows where")


def one_line(text: str) -> str:
    """Lines joined by semicolons, runs of spaces by one."""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    return "; ".join(lines).replace(":; ", ": ")


def _own_text(error: BaseException) -> str:
    """The message without the traceback that torch adds to those of a loader's process."""
    text = str(error)
    if text.startswith("Caught ") and "Original Traceback" in text:
        text = text.rpartition(f"{type(error).__name__}: ")[2]
    return text


def _place(error: BaseException) -> tuple[str, bool]:
    """``file:line`` of the innermost call in drivestack or in a user's own file, and whether it is drivestack's."""
    calls = [(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__)]
    text = str(error)
    if text.startswith("Caught ") and "Original Traceback" in text:
        calls += [(name, int(number)) for name, number in _IN_TRACEBACK.findall(text)]
    for name, number in reversed(calls):
        path = Path(name).resolve()
        of_library = any(path.is_relative_to(folder) for folder in _LIBRARIES)
        if path.is_relative_to(_PACKAGE) and not (of_library and _LIBRARIES_ARE_WITHIN):
            return f"{path.relative_to(_PACKAGE)}:{number}", True
        if not name.startswith("<") and not of_library:
            return f"{name}:{number}", False
    return "the Python installation", False


# ---------------------------------------------------------------------------------------------------------- output


def _say(line: str) -> None:
    """On standard error, if that can be written."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def _flush(stream: TextIO | None) -> None:
    """Print all, so that a closed pipe or a full disk shows while it can still be reported."""
    try:
        if stream is not None:
            stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"standard output: {error.strerror}; make room where it is written to") from error


def _has_reader(stream: TextIO | None) -> bool:
    """Whether the other end of a pipe is still open."""
    try:
        if stream is None:
            return True
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
        return not any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # no file, closed, or a system without poll
        return True


def _discard_output() -> None:
    """What is left in the buffer of a standard output that cannot be written is not tried again at exit."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), sys.stdout.fileno())
    except AttributeError:  # no standard output
        pass


@contextlib.contextmanager
def _any_letter(stream: TextIO | None) -> Iterator[None]:
    """Within, a letter that the terminal's encoding lacks is printed as its number."""
    if not isinstance(stream, io.TextIOWrapper):
        yield
        return
    before = stream.errors
    stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            stream.reconfigure(errors=before)
