"""Writing files so that no reader gets an incomplete one, and errors of writing that name the place.

A file is written under a temporary name beside it, `.NAME.drivestack-tmp.SUFFIX`, locked while it is written. What a
killed process leaves there is used or removed by the next one that writes the same file.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import DataError, DrivestackError, OutputError
from .locks import NoLocks, lock_file, unlock

_MARK = "drivestack-tmp"
_OURS = re.compile(rf"\..+\.{_MARK}[\w-]*(\.[^.]*)?")
_MAX_BYTES = 255  # of a name, on all file systems in use
_MAX_WRITERS = 100  # of one file at one time
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
_PROBE_BYTES, _LEAST_BYTES = 1 << 20, 1 << 12


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, sync: bool = True) -> Iterator[Path]:
    """A temporary path beside ``path``, same suffix, that becomes ``path`` when the block ends without an exception.

    The parent folder is made if missing. After an exception the temporary file is removed and ``path`` is as before.
    sync: the content is on the disk before ``path`` names it; False for one of many files that `sync_files` gets.

    Raises OutputError, naming ``path``, for a full disk in whatever words a library reports it, and for a place that
    cannot be written.
    """
    target = Path(path)
    with write_errors(target):
        _check_target(target)
        _existing_parent(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary, handle = _temporary_file(target)
    left: Path | None = temporary
    try:
        with write_errors(target, temporary, handle):
            yield temporary
            if sync:
                sync_files([temporary])
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            temporary.replace(target)
            left = None  # from here on the temporary name is free for others
    finally:
        if left is not None:
            with suppress(OSError):
                left.unlink(missing_ok=True)
        unlock(handle)


def sync_files(paths: Iterable[Path]) -> None:
    """Return when the files' content is on the disk."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())


def write_json(path: str | os.PathLike[str], content: Any, indent: int | None = None) -> None:
    """Write JSON atomically. Raises ValueError on NaN and infinity, which JSON does not have."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=indent, allow_nan=False)


# ----------------------------------------------------------------------------------------------- temporary files


def _temporary_file(target: Path) -> tuple[Path, int]:
    """An empty file that this process alone writes, and its locked handle."""
    for number in range(_MAX_WRITERS):
        temporary = target.with_name(_temporary_name(target, str(number) if number else ""))
        try:
            handle = lock_file(temporary)
        except (NoLocks, PermissionError):  # without locks no name is shared; a file of another user is not ours
            break
        if handle is not None:
            os.truncate(handle, 0)
            return temporary, handle
    name = _temporary_name(target, "-").removesuffix(target.suffix)
    handle, made = tempfile.mkstemp(dir=target.parent, prefix=name, suffix=target.suffix)
    os.close(handle)
    try:
        return Path(made), lock_file(Path(made)) or -1
    except NoLocks:
        return Path(made), -1


def _temporary_name(target: Path, number: str) -> str:
    stem, ending = target.stem, f".{_MARK}{number}{target.suffix}"
    if len(os.fsencode(stem + ending)) > _MAX_BYTES - 10:  # a dot ahead, letters of mkstemp behind
        stem = hashlib.sha1(os.fsencode(stem), usedforsecurity=False).hexdigest()
    return f".{stem}{ending}"


def remove_stale_files(folder: Path, inner: bool = False) -> None:
    """Remove the temporary files of `atomic_path` that nobody writes any more; inner: in all folders below, too.

    Locks tell: a file of a live process, here or on another machine, is left alone.
    """
    for place, folders, names in os.walk(folder):
        for name in names:
            if _OURS.fullmatch(name):
                with suppress(OSError, NoLocks):
                    _remove_unlocked(Path(place, name))
        if not inner:
            folders.clear()


def _remove_unlocked(path: Path) -> None:
    handle = lock_file(path, create=False)
    if handle is not None:
        unlock(handle, remove=path)


# -------------------------------------------------------------------------------------------------------- errors


@contextmanager
def write_errors(target: Path, temporary: Path | None = None, handle: int = -1) -> Iterator[None]:
    """Within, errors of writing ``target`` become an OutputError with its path, the reason and the fix.

    temporary, handle: the file that is written for it. With them other files may be read within: their errors pass.
    And as libraries report a full disk in their own words, or in none, more bytes are written there after any of
    their errors; if these cannot be, that is the reason.
    """
    try:
        yield
    except DrivestackError:
        raise
    except Exception as error:
        reason = error if isinstance(error, OSError) and error.errno is not None else _no_room(handle)
        if reason is None:
            raise
        names = {str(name) for name in (temporary, target)}
        if temporary is not None and reason.errno not in _NO_ROOM and str(reason.filename) not in names:
            raise
        raise OutputError(f"{target}: cannot be written ({_explained(reason, target)}") from error


def _no_room(handle: int) -> OSError | None:
    if handle < 0:
        return None
    try:
        end, left = os.fstat(handle).st_size, _PROBE_BYTES
        while left:
            written = os.pwrite(handle, bytes(left), end)
            end, left = end + written, left - written
        os.fsync(handle)
    except OSError as error:
        return error
    return None


def _explained(error: OSError, target: Path) -> str:
    if error.errno not in _NO_ROOM:
        return f"{error.strerror}); choose another place"
    with suppress(OSError):
        free_mb = shutil.disk_usage(_existing_parent(target)).free / 2**20
        return f"{error.strerror}; {free_mb:.1f} MB are free there); make room, or choose another place"
    return f"{error.strerror}); make room, or choose another place"


# --------------------------------------------------------------------------------------------- before long work


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raises OutputError if a file cannot be written there; call it before long work; it leaves nothing behind."""
    target = Path(path)
    with write_errors(target):
        _check_target(target)
        _try_writing(_existing_parent(target))


def check_writable_folder(folder: str | os.PathLike[str]) -> None:
    """The same for a folder, which may be missing, and the files that will be written into it."""
    folder = Path(folder)
    with write_errors(folder):
        check_name(folder)
        if os.path.lexists(folder) and not folder.is_dir():
            raise OutputError(f"{folder}: {_no_folder(folder)}; name a folder, or remove it")
        _try_writing(folder if folder.is_dir() else _existing_parent(folder))


def check_name(path: Path) -> None:
    """Raises OutputError for a path to write that no file system takes, or that breaks a line of text."""
    text = str(path)
    if bad := [letter for letter in text if ord(letter) < 32 or ord(letter) == 127]:
        raise OutputError(f"{text!r}: has {bad[0]!r} in its name; choose a name without control characters")
    if any(len(os.fsencode(part)) > _MAX_BYTES for part in path.parts):
        raise OutputError(f"{text}: a name is longer than {_MAX_BYTES} bytes; choose a shorter one")


def _check_target(target: Path) -> None:
    check_name(target)
    if target.is_dir():
        raise OutputError(f"{target}: is a folder; name a file, or remove it")
    if target.exists() and not target.is_file():
        raise OutputError(f"{target}: is a device or pipe; name a plain file")


def _existing_parent(target: Path) -> Path:
    """The nearest folder above that exists. Raises OutputError where it is a file, or a link to nothing."""
    for parent in target.absolute().parents:
        if os.path.lexists(parent):
            if not parent.is_dir():
                raise OutputError(f"{target}: cannot be written ({parent} {_no_folder(parent)}); choose another place")
            return parent
    raise OutputError(f"{target}: cannot be written (no folder above it exists); choose another place")


def _no_folder(path: Path) -> str:
    return "is a file" if path.exists() else "is a link to nothing"


def _try_writing(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(_LEAST_BYTES))
        file.flush()


def replace_folder(built: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Rename the finished folder ``built`` to ``target``, on the same disk, which must be missing or empty.

    Raises OSError if ``target`` holds anything; both are then as before.
    """
    target = Path(target)
    if target.is_dir():
        target.rmdir()
    Path(built).replace(target)


MAX_NAME_BYTES = 200  # file systems take 255; suffixes and temporary names need some


def file_name(text: object, what: str) -> str:
    """``text``, which comes out of a file, as the name of one file or folder; never a path out of its folder.

    Sample tokens, scene, camera and archive members' names pass through here before they become part of a path.
    what: the thing that is named so, for the message. Raises DataError for anything with a separator, a
    leading dot, control characters or more than MAX_NAME_BYTES bytes.
    """
    if (
        not isinstance(text, str)
        or not text
        or text.startswith(".")
        or any(letter in "/\\" or not letter.isprintable() for letter in text)
        or len(text.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES
    ):
        raise DataError(
            f"{what} {str(text)[:100]!r} cannot name a file: it must be one plain name without "
            "slashes, control characters or a dot ahead"
        )
    return text
