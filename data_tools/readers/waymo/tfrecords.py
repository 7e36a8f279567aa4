"""TFRecord files without TensorFlow: where their records lie, and records to write.

A record is its length (8 bytes), a checksum of these, the payload, and a checksum of that, all little-endian. Checksums
are CRC-32C (Castagnoli), masked: https://www.tensorflow.org/tutorials/load_data/tfrecord.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ....core.errors import DataError

_POLYNOMIAL = 0x82F63B78  # of CRC-32C, least significant bit first
_ONES = 0xFFFFFFFF
_HEAD = struct.Struct("<QI")
_SMALL = 1 << 12  # bytes, below which a plain loop is quicker
_GZIP = b"\x1f\x8b"


@contextmanager
def mapped_file(path: Path) -> Iterator[mmap.mmap]:
    """A file's content without reading it. Raises DataError where it cannot be opened, or is empty."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if hasattr(mmap, "MADV_RANDOM"):  # not what lies behind the few bytes that are needed
                content.madvise(mmap.MADV_RANDOM)
            yield content
    except ValueError as error:
        if "empty" not in str(error):
            raise
        raise DataError(f"{path}: is empty; fetch it again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path, or fetch it again") from None


def record_places(content: mmap.mmap | bytes, path: Path, checksums: bool = False) -> list[tuple[int, int]]:
    """Where the payload of each record begins and ends. Lengths are always held against their checksums.

    checksums: those of the payloads, too, which reads the whole file.
    Raises DataError naming file and record for a damaged or truncated file, and one that is none of records.
    """
    places: list[tuple[int, int]] = []
    position, size = 0, len(content)
    while position < size:
        where = f"{path}: record {len(places) + 1}, at byte {position}"
        head = bytes(content[position : position + _HEAD.size])
        if head.startswith(_GZIP) and not position:
            raise DataError(f"{path}: is compressed; unpack it (gunzip), for images are read in place")
        if len(head) < _HEAD.size:
            raise DataError(f"{where}: the file ends within its head; it is truncated: fetch it again")
        length, checksum = _HEAD.unpack(head)
        if masked_crc32c(head[:8]) != checksum:
            what = "no TFRecord file, or damaged" if not places else "damaged"
            raise DataError(f"{where}: checksum of its length is wrong: the file is {what}; fetch it again")
        begin = position + _HEAD.size
        end = begin + length
        if end + 4 > size:
            raise DataError(f"{where}: needs {length} bytes, but the file ends; it is truncated: fetch it again")
        if checksums and masked_crc32c(content[begin:end]) != struct.unpack("<I", content[end : end + 4])[0]:
            raise DataError(f"{where}: checksum of its content is wrong: the file is damaged; fetch it again")
        places.append((begin, end))
        position = end + 4
    return places


def record(payload: bytes) -> bytes:
    """A whole record of a payload."""
    length = struct.pack("<Q", len(payload))
    return b"".join(
        [length, struct.pack("<I", masked_crc32c(length)), payload, struct.pack("<I", masked_crc32c(payload))]
    )


def masked_crc32c(data: bytes) -> int:
    """As TFRecords store it: turned by 15 bits, plus a constant."""
    crc = crc32c()(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & _ONES


@lru_cache(maxsize=1)
def crc32c() -> Callable[[bytes], int]:
    """The quickest CRC-32C that is installed: of the package google-crc32c or crc32c, else our own."""
    try:
        import google_crc32c

        return google_crc32c.value
    except ImportError:
        pass
    try:
        import crc32c as package

        return package.crc32c
    except ImportError:
        return own_crc32c


def own_crc32c(data: bytes) -> int:
    """CRC-32C in NumPy, several hundred times as quick as a loop over bytes for records of megabytes.

    The data is cut into parts of equal length, which are all worked on at once, then joined in pairs: the checksum of
    A and B is that of A followed by zeros for the length of B, xor that of B (both from state 0).
    """
    if len(data) < _SMALL:
        state = _ONES
        small = _small_table()
        for byte in data:
            state = small[(state ^ byte) & 255] ^ (state >> 8)
        return state ^ _ONES
    parts = 1 << (len(data).bit_length() // 2 + 1)
    length = -(-len(data) // parts)
    padded = np.zeros(parts * length, np.uint8)  # zeros ahead leave state 0 as it is
    padded[-len(data) :] = np.frombuffer(data, np.uint8)
    padded[-len(data) : 4 - len(data)] ^= 255  # the same as beginning with all ones
    columns = np.ascontiguousarray(padded.reshape(parts, length).T)
    table, states = _table(), np.zeros(parts, np.uint32)
    for column in columns:
        states = table[(states ^ column) & 255] ^ (states >> 8)
    shift = _zeros(length)
    while len(states) > 1:
        states = _apply(shift, states[0::2]) ^ states[1::2]
        shift = _apply(shift, shift)
    return int(states[0]) ^ _ONES


@lru_cache(maxsize=1)
def _table() -> NDArray[np.uint32]:
    """[256] what each byte does to state 0."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(_POLYNOMIAL), table >> 1)
    return table.astype(np.uint32)


@lru_cache(maxsize=1)
def _small_table() -> list[int]:
    return _table().tolist()


def _apply(matrix: NDArray[np.uint32], states: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """A linear map over bits, matrix [32]: what becomes of each bit of a state."""
    out = np.zeros_like(states)
    for bit in range(32):
        out ^= matrix[bit] * (states >> np.uint32(bit) & np.uint32(1))
    return out


def _zeros(length: int) -> NDArray[np.uint32]:
    """[32] the linear map of so many zero bytes."""
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    power, out = _table()[bits & 255] ^ bits >> np.uint32(8), bits
    while length:
        if length & 1:
            out = _apply(power, out)
        power, length = _apply(power, power), length >> 1
    return out
