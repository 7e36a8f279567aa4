"""Records: checksums against known values, and every kind of damage in one line."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import pytest

from drivestack.core.errors import DataError
from drivestack.data_tools.readers.waymo import tfrecords
from drivestack.data_tools.readers.waymo.tfrecords import mapped_file, own_crc32c, record, record_places

PAYLOADS = [b"one", os.urandom(9000), b"", b"three"]


def by_bits(data: bytes) -> int:
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


# RFC 3720, appendix B.4
@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (b"", 0),
    ],
)
def test_checksums_are_those_of_the_standard(data: bytes, crc: int) -> None:
    assert own_crc32c(data) == crc == tfrecords.crc32c()(data)


@pytest.mark.parametrize("length", [4095, 4096, 4097, 20_011])
def test_long_data_has_the_checksum_of_a_plain_loop(length: int) -> None:
    data = bytes((i * i + i // 7) % 251 for i in range(length))
    assert own_crc32c(data) == by_bits(data)


def written(folder: Path, content: bytes) -> Path:
    path = folder / "x.tfrecord"
    path.write_bytes(content)
    return path


def places(path: Path, checksums: bool = True) -> list[tuple[int, int]]:
    with mapped_file(path) as content:
        return record_places(content, path, checksums)


def test_records_lie_where_they_were_written(tmp_path: Path) -> None:
    content = b"".join(map(record, PAYLOADS))
    found = places(written(tmp_path, content))
    assert [content[begin:end] for begin, end in found] == PAYLOADS


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


WHOLE = b"".join(map(record, PAYLOADS))
SECOND = 16 + len(PAYLOADS[0])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (WHOLE[:-1], r"record 4, at byte \d+: .* truncated"),
        (WHOLE[: SECOND + 5], f"record 2, at byte {SECOND}: the file ends within its head"),
        (flipped(WHOLE, SECOND + 20), f"record 2, at byte {SECOND}: checksum of its content is wrong"),
        (flipped(WHOLE, SECOND + 1), f"record 2, at byte {SECOND}: checksum of its length is wrong"),
        (flipped(WHOLE, 9), "record 1, at byte 0: checksum of its length is wrong: the file is no TFRecord"),
        (struct.pack("<Q", 2**60) + WHOLE[8:], "checksum of its length"),
        (gzip.compress(WHOLE), "compressed"),
        (b"", "empty"),
    ],
)
def test_damage_is_named_with_record_and_byte(tmp_path: Path, content: bytes, says: str) -> None:
    with pytest.raises(DataError, match=says) as error:
        places(written(tmp_path, content))
    assert "\n" not in str(error.value) and "x.tfrecord" in str(error.value)


def test_checksums_of_contents_are_an_option(tmp_path: Path) -> None:
    path = written(tmp_path, flipped(WHOLE, SECOND + 20))
    assert len(places(path, checksums=False)) == len(PAYLOADS)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.tfrecord: cannot be read"):
        places(tmp_path / "none.tfrecord")
