"""Damage inside a JPEG body that decoders pass over: they fill up with grey, or go on with noise.

Two steps. Cheap signs, looked for in every file, that good images hardly ever show: markers where none may be, zeroed
bytes, a chunk that occurs twice, grey where a decoder had no data left. Where there is one, the entropy-coded data are
walked code by code, without decoding pixels: in a sound file every code exists, no block has more than 64 coefficients,
and the last block ends with the data. Only a file that fails this, or whose markers are not those of one image, is
called damaged.

Of baseline files with one scan (what cameras write); progressive ones are not examined. What is found and what is not,
measured: docs/own_data.md#damaged-images.

Source: ITU-T T.81 (JPEG), annexes B, C and F.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_SOF_BASELINE = (0xC0, 0xC1)
_SOF_OTHER = (0xC2, 0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
_DHT, _EOI, _SOS, _DRI = 0xC4, 0xD9, 0xDA, 0xDD
_NOTES = (0xFE, *range(0xE0, 0xF0))  # comments and the like, which some cameras write behind the data
_RESTARTS = range(0xD0, 0xD8)
_ZEROED = bytes(32)
_REPEATED = 24  # bytes that occur twice
_CHUNK = 1 << 15  # bytes that are walked at a time: each bit takes about 150 bytes of memory
_END_OF_BLOCK, _NO_CODE = 1000, 1 << 40
_GREY = 128  # of blocks for which a decoder had no data
_padding: set[tuple[tuple[int, ...], int]] = set()
_MOST_PADDING = 1000
"""Size and first row of grey bars in sound images: a rig that has them has them in every image."""


@dataclass(frozen=True)
class JpegHeader:
    """What stands before the entropy-coded data."""

    width_px: int
    height_px: int
    blocks: tuple[tuple[int, int], ...] = ()
    """(DC table, AC table) of each block of an MCU; empty for a file that is not examined."""
    num_mcus: int = 0
    tables: tuple[tuple[int, bytes, bytes], ...] = ()
    """(class and number, count of the codes of each length [16], their symbols)"""
    restart_interval: int = 0
    """MCUs between restart markers, 0: none."""
    scan_start: int = 0


def read_header(data: bytes) -> JpegHeader | None:
    """The header of a JPEG file, None for one whose markers cannot be followed (a decoder may still read it)."""
    at, size, frame, interval = 2, None, None, 0
    tables: dict[int, tuple[int, bytes, bytes]] = {}
    try:
        while True:
            if data[at] != 0xFF:
                return None
            marker = data[at + 1]
            if marker == 0xFF:  # a fill byte
                at += 1
                continue
            length = int.from_bytes(data[at + 2 : at + 4], "big")
            body = data[at + 4 : at + 2 + length]
            at += 2 + length
            if length < 2 or at > len(data):
                return None
            if marker in _SOF_BASELINE or marker in _SOF_OTHER:
                height, width, count = struct.unpack(">HHB", body[1:6])
                parts = [(body[6 + 3 * i], body[7 + 3 * i] >> 4, body[7 + 3 * i] & 15) for i in range(count)]
                size, frame = (width, height), parts if marker in _SOF_BASELINE and body[0] == 8 else None
            elif marker == _DHT:
                while body:
                    number = sum(body[1:17])
                    tables[body[0]] = body[0], body[1:17], body[17 : 17 + number]
                    body = body[17 + number :]
            elif marker == _DRI:
                (interval,) = struct.unpack(">H", body)
            elif marker == _SOS:
                if size is None:
                    return None
                return _with_scan(size, frame, body, tables, interval, at)
    except (IndexError, struct.error):
        return None


def _with_scan(
    size: tuple[int, int],
    frame: list[tuple[int, int, int]] | None,
    scan: bytes,
    tables: dict[int, tuple[int, bytes, bytes]],
    interval: int,
    start: int,
) -> JpegHeader:
    width, height = size
    alone = JpegHeader(width, height)
    if frame is None or len(frame) != scan[0] or not all(1 <= h <= 4 and 1 <= v <= 4 for _, h, v in frame):
        return alone  # progressive, or several scans
    if len(frame) == 1:
        frame = [(frame[0][0], 1, 1)]  # a scan of one component is not interleaved
    chosen = {scan[1 + 2 * i]: (scan[2 + 2 * i] >> 4, 0x10 | scan[2 + 2 * i] & 15) for i in range(scan[0])}
    if any(name not in chosen or any(table not in tables for table in chosen[name]) for name, _, _ in frame):
        return alone
    blocks = tuple(chosen[name] for name, h, v in frame for _ in range(h * v))
    side_x, side_y = (8 * max(part[i] for part in frame) for i in (1, 2))
    num_mcus = -(-width // side_x) * -(-height // side_y)
    return JpegHeader(width, height, blocks, num_mcus, tuple(tables.values()), interval, start)


def damage(data: bytes, header: JpegHeader, image: NDArray[np.uint8]) -> str:
    """What is wrong with a file's body, '' where nothing was found; image [H, W, 3]: as it was decoded."""
    if not header.blocks:
        return ""
    scan = np.frombuffer(data, np.uint8)[header.scan_start :]
    marks = np.flatnonzero(scan[:-1] == 0xFF)
    after = scan[marks + 1]
    # the first marker that is no restart (FF 00 is data, FF FF a fill byte) ends the image; more may follow the end
    ends = np.flatnonzero((after != 0) & (after != 0xFF) & (after & 0xF8 != 0xD0))
    last = after[ends[0]] if len(ends) else 0
    if last != _EOI and last not in _NOTES:
        return "its markers are not those of one image"
    scan, marks, after = scan[: marks[ends[0]]], marks[: ends[0]], after[: ends[0]]
    real = after[(after != 0) & (after != 0xFF)]
    restarts = -(-header.num_mcus // header.restart_interval) - 1 if header.restart_interval else 0
    if not np.array_equal(real, 0xD0 + np.arange(restarts) % 8):
        return "its markers are not those of one image"
    body = data[header.scan_start : header.scan_start + len(scan)]
    bar = _grey_bar(image)
    signs = (
        last != _EOI
        or (bar is not None and bar not in _padding)
        or ((scan[: len(scan) & -8].view(np.uint64) == 0).any() and _ZEROED in body and not _zeros_are_flat(header))
        or _repeats(body, marks[after == 0])
    )
    problem = walk(body, header) if signs else ""
    if bar is not None and bar[1] >= 0 and not problem and len(_padding) < _MOST_PADDING:
        _padding.add(bar)
    return problem


def _grey_bar(image: NDArray[np.uint8]) -> tuple[tuple[int, ...], int] | None:
    """The image's size, and from which row on it is grey; None where it does not end in grey.

    -1 where that begins within a row: as data that end do, not as a bar.
    """
    if not (image[-2:, -2:] == _GREY).all():
        return None
    coloured = np.flatnonzero((image != _GREY).any((1, 2)))
    first = int(coloured[-1]) + 1 if len(coloured) else 0
    return image.shape, -1 if first and (image[first - 1, -2:] == _GREY).all() else first


def _zeros_are_flat(header: JpegHeader) -> bool:
    """Whether bits of zeros mean blocks without detail, as a flat area has them."""
    luma = header.blocks[0][1]
    return any(number == luma and symbols[:1] == b"\0" for number, _, symbols in header.tables)


def _repeats(body: bytes, marks: NDArray[np.intp]) -> bool:
    """Whether the bytes after two of the places where FF was written as FF 00 are the same."""
    found = {body[at : at + _REPEATED] for at in marks.tolist()}
    return len(found) < len(marks)


def walk(body: bytes, header: JpegHeader) -> str:
    """What is wrong with the entropy-coded data ``body``, '' for sound ones: every code, without pixels."""
    parts, left = _segments(body), header.num_mcus
    for part in parts:
        count = min(left, header.restart_interval) if header.restart_interval else left
        if problem := _walk_segment(part, header, count):
            return problem
        left -= count
    return "it ends before the image does" if left else ""


def _segments(body: bytes) -> list[bytes]:
    """The data between restart markers, with FF 00 as FF."""
    marks = [
        at for at in np.flatnonzero(np.frombuffer(body, np.uint8)[:-1] == 0xFF).tolist() if body[at + 1] in _RESTARTS
    ]
    starts, ends = [0, *(at + 2 for at in marks)], [*marks, len(body)]
    return [body[a:b].replace(b"\xff\x00", b"\xff") for a, b in zip(starts, ends)]


def _walk_segment(part: bytes, header: JpegHeader, num_mcus: int) -> str:
    kinds, left = len(header.blocks), num_mcus * len(header.blocks)
    at = block = coefficients = 0  # bit; block within its MCU; of it, how many are through
    for start in range(0, len(part), _CHUNK):
        num_bits = 8 * len(part[start : start + _CHUNK])
        windows = _bit_windows(part[start : start + _CHUNK + 4])[:num_bits]
        steps = {number: _steps(windows, number, counts, symbols) for number, counts, symbols in header.tables}
        mcu = [(steps[dc][0], *steps[ac]) for dc, ac in header.blocks]
        while left and at < num_bits:
            dc_next, ac_next, ac_count = mcu[block]
            if not coefficients:
                at, coefficients = dc_next[at], 1
            while coefficients < 64 and at < num_bits:
                coefficients += ac_count[at]
                at = ac_next[at]
            if 64 < coefficients < _END_OF_BLOCK:
                return "a block has more than 64 coefficients"
            if coefficients >= 64:
                left, block, coefficients = left - 1, (block + 1) % kinds, 0
        if at >= _NO_CODE:
            return "a code does not exist"
        at -= num_bits
    if left or at > 0:
        return "it ends before the image does"
    rest = part[len(part) + -(-at // 8) :].strip(b"\xff") if at else b""
    return "data are left over after the image" if rest.strip(b"\0") else ""


def _bit_windows(part: bytes) -> NDArray[np.uint16]:
    """[bits] the 16 bits from each bit on; ones after the end."""
    padded = np.frombuffer(part + b"\xff" * 4, np.uint8).astype(np.uint32)
    words = padded[:-3] << 24 | padded[1:-2] << 16 | padded[2:-1] << 8 | padded[3:]
    windows = words[: len(part) + 1, None] >> np.arange(16, 8, -1, dtype=np.uint32)
    return (windows & 0xFFFF).astype(np.uint16).ravel()[: 8 * len(part) + 1]


def _steps(windows: NDArray[np.uint16], number: int, counts: bytes, symbols: bytes) -> tuple[list[int], list[int]]:
    """At each bit: where the code there and its value's bits end (far away: no such code), and how many coefficients
    it stands for."""
    length = np.full(65536, _NO_CODE, np.int64)
    count = np.zeros(65536, np.int64)
    code = symbol = 0
    for bits, number_of_codes in enumerate(counts, 1):
        for _ in range(number_of_codes):
            run, size = divmod(symbols[symbol], 16)
            first, last = code << 16 - bits, code + 1 << 16 - bits
            length[first:last] = bits + size
            count[first:last] = _END_OF_BLOCK if number >= 0x10 and run < 15 and size == 0 else run + 1
            code, symbol = code + 1, symbol + 1
        code <<= 1
    return (np.arange(len(windows)) + length[windows]).tolist(), count[windows].tolist()
