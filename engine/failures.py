"""What fails while samples are read and a model runs, as one line: dead loader workers, memory, shapes, foreign data.

The data sets, hooks and models of a config are other people's code as far as the engine goes.
"""

from __future__ import annotations

import contextlib
import re
import signal
import threading
from collections.abc import Callable, Iterator

from torch import nn

from ..core.errors import LIBRARY_ERRORS, DataError, DrivestackError, TrainingError
from ..core.finite import is_finite
from ..core.weights.shards import own_part

_DEAD_WORKER = re.compile(r"DataLoader worker \(pid")
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|MemoryError", re.IGNORECASE)
_OTHER_RANK = re.compile(r"gloo|nccl|connection (closed|reset)", re.IGNORECASE)


@contextlib.contextmanager
def workers_die_quietly() -> Iterator[None]:
    """Within, a dead loader worker is noticed when its next batch is awaited (within 5 s), and nowhere else.

    torch raises from a SIGCHLD handler, in whatever line runs just then: a model's, or a checkpoint's being written. It
    sets the handler when workers start, so this is for the time after.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


@contextlib.contextmanager
def reading(samples: Callable[[], str], workers_option: str, again: str) -> Iterator[None]:
    """Within, whatever stops the next batch from being read is a DataError.

    samples: names the batch's samples, called on failure only; workers_option: what sets the number of loader
    workers; again: how to go on afterwards. Errors of our own pass unchanged.
    """
    try:
        yield
    except DrivestackError:
        raise
    except (*LIBRARY_ERRORS, OSError, ImportError) as error:
        text = _original(error)
        if _DEAD_WORKER.search(text):
            raise _dead_worker(samples(), text, workers_option, again) from error
        raise DataError(f"{samples()} cannot be read: {text}; look at these samples, then {again}") from error


@contextlib.contextmanager
def computing(
    where: Callable[[], str], batch_option: str, again: str, kind: type[DrivestackError] = TrainingError
) -> Iterator[None]:
    """Within, what torch or a model's code raises about a batch is an error of this ``kind`` that says what to change.

    where: names iteration and samples, called on failure only; batch_option: what sets the batch size.
    """
    try:
        yield
    except DrivestackError:
        raise
    except LIBRARY_ERRORS as error:
        text = _original(error)
        if _DEAD_WORKER.search(text):  # outside the main thread torch's handler stays
            raise _dead_worker(where(), text, "the number of loader workers", again) from error
        if _NO_MEMORY.search(text):
            advice = f"lower {batch_option} or the image size, or use precision bf16"
        elif _OTHER_RANK.search(text):
            advice = "another process of this run may have stopped: look at its message"
        elif "find_unused_parameters" in text:
            text, advice = text.partition(". ")[0], "set find_unused_parameters=True in the config"
        else:
            advice = "parts of the config (channels, sizes, classes) may not fit one another; --debug shows where"
        raise kind(f"{where()}: the model failed: {text}; {advice}; {again}") from error


def _dead_worker(samples: str, text: str, workers_option: str, again: str) -> DataError:
    return DataError(
        f"{samples}: a loader worker was killed ({text.rstrip('. ')}), most likely for memory: lower {workers_option} "
        f"or give the machine more memory or /dev/shm; {again}"
    )


def end_workers(batches: object) -> None:
    """End the loader workers of a DataLoader's iterator, also where a traceback still holds it."""
    shut_down = getattr(batches, "_shutdown_workers", None)
    if shut_down is not None:
        shut_down()
        for worker in batches._workers:  # type: ignore[attr-defined]
            if worker.is_alive():  # stuck, and started without signals
                worker.kill()


def bad_parameters(model: nn.Module, limit: int = 3) -> list[str]:
    """Names of parameters that hold NaN or infinity, and of buffers that hold NaN, the first ``limit``.

    Buffers may be masks of -inf. Of parameters that processes share out, this process looks at its own part.
    """
    bad = [name for name, value in model.named_parameters() if not is_finite(own_part(value.detach()))]
    bad += [name for name, value in model.named_buffers() if value.is_floating_point() and bool(value.isnan().any())]
    return bad[:limit]


def _original(error: BaseException) -> str:
    """One line of an error, also of one that torch brings from a loader worker with that worker's traceback."""
    text = str(error)
    if text.startswith("Caught ") and "Original Traceback" in text:
        kind = text.split()[1]
        _, found, words = text.rpartition(f"{kind}: ")
        text = f"{kind}: {words}" if found else kind
    else:
        text = f"{type(error).__name__}: {text}"
    text = " ".join(text.split())
    return text if len(text) <= 400 else text[:400] + "..."
