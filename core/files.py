"""Writing files so that no reader gets an incomplete one."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import DataError, OutputError


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside ``path``, same suffix, that becomes ``path`` when the block ends without an exception.

    The parent folder is made if missing. After an exception the temporary file is removed and ``path`` is as before.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}-", suffix=target.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes private files
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], content: Any, indent: int | None = None) -> None:
    """Write JSON atomically. Raises ValueError on NaN and infinity, which JSON does not have."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=indent, allow_nan=False)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raises OutputError if a file cannot be written there; call it before long work; it leaves nothing behind."""
    target = Path(path)
    folder = next(parent for parent in target.absolute().parents if parent.exists())
    if target.is_dir():
        raise OutputError(f"{target}: is a folder; name a file, or remove it")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror}); choose another place") from error


def replace_folder(built: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Rename the finished folder ``built`` to ``target``, on the same disk, which must be missing or empty.

    Raises OSError if ``target`` holds anything; both are then as before.
    """
    target = Path(target)
    if target.is_dir():
        target.rmdir()
    Path(built).replace(target)


def writable_folder(folder: str | os.PathLike[str]) -> Path:
    """Make ``folder`` if it is missing and check with a temporary file that it is writable.

    For jobs that write at their end, to fail before they begin. Raises OutputError.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error
    return folder


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
