"""npy, npz and zip files read with limits: names, sizes, shapes and dtypes are looked at before memory is taken.

A file of 8 MB can claim 10^15 voxels in its header, or inflate to 8 GB; numpy.load and zipfile would try. Here headers
come first, a caller compares them with what it expects, and only then is an array read.
"""

from __future__ import annotations

import io
import lzma
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .errors import LIBRARY_ERRORS, DataError, DrivestackError

MAX_ARRAY_BYTES = 1 << 28
"""Of one array: 256 MB, ten times OpenOccupancy's largest grid; a voxel grid of Occ3D has 0.6 MB."""
MAX_FILE_BYTES = 1 << 29
"""Of all arrays of a file together, and of one member of an archive."""
MAX_MEMBERS = 200_000
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others inflate without a limit
_ENCRYPTED = 0x1
_MAX_HEADER_BYTES = 10_000
_BROKEN = (
    OSError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, SyntaxError, tokenize.TokenError,
    *LIBRARY_ERRORS,
)  # fmt: skip


@dataclass(frozen=True)
class ArrayHeader:
    """What an .npy file says of its array before the numbers begin."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran_order: bool = False

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@contextmanager
def _readable(what: str, kind: type[DrivestackError], fix: str) -> Iterator[None]:
    """Within, whatever the libraries raise about a damaged file is one line."""
    try:
        yield
    except _BROKEN as error:
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise kind(f"{what} ({text}); {fix}") from None


def open_zip(
    path: str | os.PathLike[str],
    kind: type[DrivestackError] = DataError,
    fix: str = "",
    max_members: int = MAX_MEMBERS,
) -> zipfile.ZipFile:
    """A zip archive to read with ``read_member``. Raises ``kind`` for one that is broken or has too many members."""
    fix = fix or "make the archive again"
    with _readable(f"{path}: not a readable zip file", kind, fix):
        archive = zipfile.ZipFile(path)
    if len(archive.infolist()) > max_members:
        raise kind(f"{path}: {len(archive.infolist())} members, more than {max_members}; {fix}")
    return archive


def is_plain_name(name: str) -> bool:
    """Whether an archive member's name stays inside of the folder it is unpacked to, on every system."""
    parts = name.replace("\\", "/").split("/")
    return not (name.startswith(("/", "\\")) or ".." in parts or parts[0][1:] == ":" or "\0" in name)


def check_member(info: zipfile.ZipInfo, place: str, kind: type[DrivestackError], fix: str, max_bytes: int) -> None:
    """Raises ``kind`` for a member that is encrypted, packed in a way that cannot be limited, or too large."""
    if info.flag_bits & _ENCRYPTED:
        raise kind(f"{place}: is encrypted, remove the password; {fix}")
    if info.compress_type not in _COMPRESSIONS:
        raise kind(f"{place}: is packed with method {info.compress_type}; stored and deflated are read; {fix}")
    if info.file_size > max_bytes:
        raise kind(f"{place}: unpacks to {info.file_size / 1e6:.0f} MB, more than {max_bytes / 1e6:.0f}; {fix}")


def read_member(
    archive: zipfile.ZipFile,
    name: str,
    place: str,
    kind: type[DrivestackError] = DataError,
    fix: str = "make the archive again",
    max_bytes: int = MAX_FILE_BYTES,
) -> bytes:
    """The bytes of a member, at most ``max_bytes``. Raises ``kind``, naming ``place``, for one that cannot be read."""
    with _readable(f"{place}: not readable in the archive", kind, fix):
        info = archive.getinfo(name)
        check_member(info, place, kind, fix, max_bytes)
        with archive.open(info) as member:
            content = member.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise kind(f"{place}: unpacks to more than {max_bytes / 1e6:.0f} MB; {fix}")
    return content


class ArrayFile:
    """An open .npz file (or one .npy, whose array is called "arr_0"): headers at once, arrays when they are asked for.

    Close it, or use it in ``with``. Raises ``kind``, naming ``place`` and the array, for a file that is no such file,
    members of one name or encrypted, and arrays that hold Python objects, are too large, or end too early.
    """

    def __init__(
        self, source: Path | bytes, place: str, kind: type[DrivestackError] = DataError, fix: str = ""
    ) -> None:
        self.place, self._kind, self._fix = place, kind, fix or "fetch or make the file again"
        self._stack = ExitStack()
        try:
            with _readable(f"{place}: not a readable .npz file", kind, self._fix):
                stream = (
                    io.BytesIO(source) if isinstance(source, bytes) else self._stack.enter_context(source.open("rb"))
                )
            self._members = self._open(stream)
            self.headers = {name: self._header(name) for name in self._members}
            if sum(header.nbytes for header in self.headers.values()) > MAX_FILE_BYTES:
                largest = max(self.headers, key=lambda name: self.headers[name].nbytes)
                raise self._wrong(
                    f"its arrays need more than {MAX_FILE_BYTES / 1e6:.0f} MB, {largest} is {self.headers[largest]}"
                )
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> ArrayFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def names(self) -> list[str]:
        return list(self.headers)

    def read(self, name: str) -> NDArray[Any]:
        """The array of this name, which the file must have."""
        header = self.headers[name]
        with _readable(f"{self.place}: array {name} is not readable", self._kind, self._fix), self._at(name) as stream:
            self._read_header(stream)
            content = stream.read(header.nbytes + 1)
        if len(content) != header.nbytes:
            state = "ends too early" if len(content) < header.nbytes else "is longer than its header says"
            raise self._wrong(f"array {name}, {header}, {state}")
        flat = np.frombuffer(bytearray(content), header.dtype)
        return flat.reshape(header.shape, order="F" if header.fortran_order else "C")

    def _wrong(self, problem: str) -> DrivestackError:
        return self._kind(f"{self.place}: {problem}; {self._fix}")

    def _open(self, stream: IO[bytes]) -> dict[str, tuple[Any, str]]:
        """Array name -> (archive, member's name), or the stream of a single array."""
        with _readable(f"{self.place}: not a readable .npz file", self._kind, self._fix):
            start = stream.read(len(np.lib.format.MAGIC_PREFIX))
            stream.seek(0)
            if start == np.lib.format.MAGIC_PREFIX:
                return {"arr_0": (stream, "")}
            archive = self._stack.enter_context(zipfile.ZipFile(stream))
            infos = archive.infolist()
        if len(infos) > 1000:
            raise self._wrong(f"{len(infos)} members, which no file of arrays has")
        if twice := [name for name, count in Counter(info.filename for info in infos).items() if count > 1]:
            raise self._wrong(f"holds {twice[0]!r} twice")
        for info in infos:
            check_member(info, f"{self.place}: {info.filename!r}", self._kind, self._fix, MAX_FILE_BYTES)
        return {info.filename.removesuffix(".npy"): (archive, info.filename) for info in infos}

    @contextmanager
    def _at(self, name: str) -> Iterator[IO[bytes]]:
        source, member = self._members[name]
        if not member:
            source.seek(0)
            yield source
        else:
            with source.open(member) as stream:
                yield stream

    def _header(self, name: str) -> ArrayHeader:
        with _readable(f"{self.place}: not a readable .npz file", self._kind, self._fix), self._at(name) as stream:
            header = self._read_header(stream)
            sane = all(isinstance(n, int) and n >= 0 for n in header.shape) and header.dtype.itemsize > 0
        if header.dtype.hasobject:
            raise self._wrong(f"array {name} holds Python objects, which are not loaded: write numbers")
        if not sane:
            raise self._wrong(f"array {name} has the impossible shape {header}")
        if header.nbytes > MAX_ARRAY_BYTES:
            raise self._wrong(f"array {name} is {header}, {header.nbytes / 1e6:.0f} MB")
        return header

    @staticmethod
    def _read_header(stream: IO[bytes]) -> ArrayHeader:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version} of the .npy format")
        length = stream.read(2 if version == (1, 0) else 4)
        num_bytes = int.from_bytes(length, "little")
        if num_bytes > _MAX_HEADER_BYTES:  # numpy would read up to 4 GB before it looks
            raise ValueError(f"a header of {num_bytes} bytes")
        parse = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = parse(io.BytesIO(length + stream.read(num_bytes)))
        return ArrayHeader(tuple(shape), dtype, bool(fortran_order))
