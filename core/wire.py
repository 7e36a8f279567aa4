"""Serialized protocol buffers, walked field by field without protobuf's library or the classes of their messages.

A message is fields, each a tag (number * 8 + wire type) and a value: a base-128 number, 8 or 4 bytes in little endian,
or a length and that many bytes. https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
Content = bytes | bytearray | memoryview | mmap.mmap


def read_varint(content: Content, at: int, end: int) -> tuple[int, int]:
    """(value, where it ends) of the base-128 number at a byte. Raises ValueError where it does not end in time."""
    value = shift = 0
    while at < end and shift < 70:
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError(f"a number does not end (byte {at})")


def fields(content: Content, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(number, wire type, first byte, end) of each field's value in the message content[start:end].

    A field's tag begins where the one before ends. Raises ValueError for what is no message.
    """
    at = start
    while at < end:
        tag, at = read_varint(content, at, end)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            _, stop = read_varint(content, at, end)
        elif wire == FIXED64:
            stop = at + 8
        elif wire == FIXED32:
            stop = at + 4
        elif wire == LENGTH:
            size, at = read_varint(content, at, end)
            stop = at + size
        else:
            raise ValueError(f"byte {at} has wire type {wire}, which messages of today do not have")
        if not number or stop > end:
            raise ValueError(f"a field at byte {at} {'has number 0' if not number else 'ends too late'}")
        yield number, wire, at, stop
        at = stop
