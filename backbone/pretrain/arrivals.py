"""Images as they come into a folder while it is watched."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ...core.errors import DataError
from .image_files import is_image_name


def arrivals(
    folder: str | Path,
    *,
    existing: bool = True,
    interval_s: float = 0.2,
    seconds: float | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Path]:
    """Images as they come into ``folder``, each once, when they are whole: of one size and time on two looks.

    existing: begin with those that lie there. A file that is written anew under its name comes again. Ends after
    ``seconds`` (None: never), or when ``stop()`` says so, but not between images that are there already. Order: by
    time, then by name. Raises DataError where there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder to watch; make it, or name another")
    deadline_s = None if seconds is None else time.monotonic() + seconds
    done = {} if existing else _state(folder)
    before: dict[Path, tuple[int, int]] = {}
    while True:
        last_look = stop() or (deadline_s is not None and time.monotonic() >= deadline_s)
        now = _state(folder)
        whole = [path for path, state in now.items() if before.get(path) == state and done.get(path) != state]
        for path in sorted(whole, key=lambda path: (now[path][0], path.name)):
            done[path] = now[path]
            yield path
        done = {path: state for path, state in done.items() if path in now}  # a deleted file is forgotten
        if last_look:
            return
        before = now
        time.sleep(interval_s)


def _state(folder: Path) -> dict[Path, tuple[int, int]]:
    """(time in ns, bytes) of each image in the folder itself."""
    found = {}
    for path in folder.iterdir():
        if is_image_name(path.name):
            try:
                status = path.stat()
            except OSError:  # it went while we looked
                continue
            if status.st_size:
                found[path] = (status.st_mtime_ns, status.st_size)
    return found
