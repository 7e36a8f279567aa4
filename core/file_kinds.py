"""What a file is by its first bytes, to say so where it is given in place of another."""

from __future__ import annotations

import os
from pathlib import Path

_STARTS = (
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"ARROW1", "a Feather file, as Argoverse 2 has them"),
    (b"PAR1", "a Parquet file, as Waymo 2.0 has them"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    *((b"\x80" + bytes([protocol]), "a pickle") for protocol in (2, 3, 4, 5)),
)


def kind_of_file(path: str | os.PathLike[str]) -> str:
    """In words, such as "a zip archive"; '' where it is none of those that are known here, or cannot be read."""
    try:
        with Path(path).open("rb") as file:
            start = file.read(64)
    except OSError:
        return ""
    if start.lstrip()[:1] in (b"{", b"["):
        return "a JSON file"
    return next((kind for magic, kind in _STARTS if start.startswith(magic)), "")
