"""Paths that stand inside files of data sets, also where the files were made on Windows."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath, PureWindowsPath

from ...core.errors import DataError

_MAX_PART = 250  # letters; file systems take 255 bytes
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


def is_windows_path(text: str) -> bool:
    """Whether a path was written on Windows: it has a drive letter or backslashes."""
    return "\\" in text or _DRIVE.match(text) is not None


def portable_path(text: str) -> PurePosixPath:
    """A path out of a file, with slashes; one of Windows loses its drive letter and becomes relative.

    Raises DataError for what no file system takes as a path.
    """
    if not isinstance(text, str) or "\0" in text or max(map(len, re.split(r"[\\/]", text))) > _MAX_PART:
        raise DataError(f"{str(text)[:60]!r} cannot be the path of a file; correct the entry that names it")
    if not is_windows_path(text):
        return PurePosixPath(text)
    path = PureWindowsPath(text)
    return PurePosixPath(*path.parts[1 if path.anchor else 0 :])


def path_below(root: Path, text: str) -> Path:
    """Where a file lies that a data set names: below ``root``, or where an absolute path says.

    A path of Windows names folders of another machine: the longest end of it that exists below ``root`` is meant, or
    the whole of it where none does.
    """
    path = portable_path(text)
    if not is_windows_path(text):
        return root / path
    ends = (root.joinpath(*path.parts[i:]) for i in range(len(path.parts)))
    return next((place for place in ends if place.exists()), root / path)
