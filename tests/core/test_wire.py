"""Fields of protocol buffers by their lengths alone."""

from __future__ import annotations

import pytest

from drivestack.core.wire import fields, read_varint


def test_fields_are_found_by_their_lengths() -> None:
    # 1: varint 300, 2: bytes "abc", 3: fixed64, 4: fixed32, 200: varint 1
    data = b"\x08\xac\x02" + b"\x12\x03abc" + b"\x19" + bytes(8) + b"\x25" + bytes(4) + b"\xc0\x0c\x01"
    found = [(number, wire, data[first:stop]) for number, wire, first, stop in fields(data, 0, len(data))]
    assert found == [
        (1, 0, b"\xac\x02"), (2, 2, b"abc"), (3, 1, bytes(8)), (4, 5, bytes(4)), (200, 0, b"\x01")
    ]  # fmt: skip
    assert read_varint(data, 1, len(data)) == (300, 3)
    for broken in (data[:-1], data[:6], b"\x80" * 11, b"\x0b", b"\x00\x01"):
        with pytest.raises(ValueError, match="byte"):
            list(fields(broken, 0, len(broken)))
