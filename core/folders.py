"""Two processes never write into one place: the second one is refused, and named who is there."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import OutputError
from .files import check_name, check_writable_folder, remove_stale_files, write_errors
from .locks import NoLocks, lock_file, unlock

_LOCK = ".drivestack.lock"


@contextmanager
def folder_lock(folder: str | os.PathLike[str], job: str) -> Iterator[Path]:
    """Within, no other process gets the lock of this folder; yields the folder, which is made if it is missing.

    job: what this process does there, for the message to others. Temporary files that killed processes have left in
    the folder are removed. At the end the lock file is removed, and the folder too if it was made here and is empty.

    Raises OutputError where another process is writing there (named), and where the folder cannot be written.
    """
    folder = Path(folder)
    with _made(folder, folder), _held(folder / _LOCK, folder, job):
        remove_stale_files(folder)
        yield folder


@contextmanager
def file_lock(path: str | os.PathLike[str], job: str) -> Iterator[Path]:
    """The same for a single file, or a folder that is put in place whole; the lock lies beside it."""
    path = Path(path)
    beside = path.absolute()
    with _made(beside.parent, path), _held(beside.with_name(f".{beside.name}{_LOCK}"), path, job):
        yield path


@contextmanager
def _made(folder: Path, place: Path) -> Iterator[None]:
    """The folder exists; at the end those that were made for it go again where nothing was put into them."""
    check_name(place)
    check_writable_folder(folder)
    with write_errors(place):
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for path in missing:
            with suppress(OSError):  # not empty
                path.rmdir()


@contextmanager
def _held(lock: Path, place: Path, job: str) -> Iterator[None]:
    try:
        with write_errors(place):
            handle = lock_file(lock)
    except NoLocks:
        yield
        return
    if handle is None:
        raise OutputError(f"{place}: {_owner(lock)} is writing here; wait for it, or choose another place")
    try:
        with write_errors(place):
            os.truncate(handle, 0)
            note = {"pid": os.getpid(), "host": socket.gethostname(), "job": job}
            os.pwrite(handle, json.dumps(note).encode(), 0)
        yield
    finally:
        unlock(handle, remove=lock)


def _owner(lock: Path) -> str:
    try:
        note = json.loads(lock.read_text(encoding="utf-8"))
        return f"process {note['pid']} on {note['host']} ({note['job']})"
    except (OSError, ValueError, KeyError, TypeError):  # it has just begun, or just ended
        return "another process"
