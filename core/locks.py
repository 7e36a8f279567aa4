"""Locks on files that the operating system ends with their process.

A lock is held on an open hidden file. After `kill -9` the file is left but not locked, so it is no obstacle, and
whoever writes there next removes it.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: without locks
    fcntl = None  # type: ignore[assignment]

_NOT_SUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}

_open_locks: set[int] = set()


class NoLocks(Exception):
    """This file system has no locks."""


def lock_file(path: Path, create: bool = True) -> int | None:
    """The handle of the file, locked for this process; None while another one has it. End with `unlock`.

    create: make the file if it is missing. Raises OSError where it cannot be opened, NoLocks where the file system
    does not support locks.
    """
    if fcntl is None:
        raise NoLocks
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
    while True:
        handle = os.open(path, flags, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            if isinstance(error, BlockingIOError):
                return None
            if error.errno in _NOT_SUPPORTED:
                raise NoLocks from None
            raise
        _open_locks.add(handle)
        if _is_at(handle, path):
            return handle
        unlock(handle)  # its last owner removed it in between


def unlock(handle: int, remove: Path | None = None) -> None:
    """Release and close a handle of `lock_file`; first ``remove`` its file, if this path is still the same one."""
    if handle not in _open_locks:  # a forked child has closed its copies
        return
    if remove is not None and _is_at(handle, remove):
        with suppress(OSError):
            remove.unlink()
    _open_locks.remove(handle)
    os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    try:
        there, mine = os.stat(path, follow_symlinks=False), os.fstat(handle)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)


def _close_copies() -> None:
    """A forked child does not hold the locks of its parent: they end with the parent."""
    for handle in _open_locks:
        os.close(handle)
    _open_locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_copies)
