"""Masks as run lengths in the two forms of COCO: a list of counts, or the same compressed to a string.

Runs go down the columns, background first. In the compressed form a count from the fourth on is the difference to the
count two before it, in groups of five bits, the lowest first; a sixth bit says that another group follows, and every
group is a letter from "0" on. pycocotools reads and writes the same.

Source: the format of the COCO annotations (cocodataset.org/#format-data). Shapes: H, W of the image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DataError

_FIRST_LETTER, _LAST_LETTER = 48, 111
_BITS, _SIGN_BIT, _MORE_BIT = 5, 0x10, 0x20
_MAX_GROUPS = 12  # of five bits: any count of an image, and no sum that overflows


def encode_rle(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """``{"size": [H, W], "counts": str}`` of a mask [H, W], compressed."""
    height_px, width_px = mask.shape
    return {"size": [height_px, width_px], "counts": compress_counts(rle_counts(mask))}


def rle_counts(mask: NDArray[np.bool_]) -> list[int]:
    """Lengths of the runs of a mask [H, W], background first (0 where the first pixel is not background)."""
    flat = np.asarray(mask, bool).ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=False)).tolist()
    bounds = [0, *edges, flat.size]
    return [stop - start for start, stop in pairwise(bounds)]


def decode_rle(rle: Mapping[str, Any], place: str) -> NDArray[np.bool_]:
    """The mask [H, W] of either form. place: file and entry, for the message.

    Raises DataError where ``rle`` is none, or its runs do not fill the image.
    """
    size, counts = rle.get("size"), rle.get("counts")
    if not (isinstance(size, Sequence) and len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)):
        raise DataError(f"{place}: a mask's size must be [height, width] in pixels, got {str(size)[:60]}")
    if isinstance(counts, bytes):
        counts = counts.decode("ascii", "replace")
    if isinstance(counts, str):
        counts = decompress_counts(counts, place)
    if not isinstance(counts, Sequence) or not all(isinstance(count, int) and count >= 0 for count in counts):
        raise DataError(f"{place}: a mask's counts must be a string or a list of lengths, got {str(counts)[:60]}")
    if sum(counts) != size[0] * size[1]:
        raise DataError(
            f"{place}: the runs of a mask cover {sum(counts)} pixels, its size {size[1]} x {size[0]} has "
            f"{size[0] * size[1]}; the mask belongs to another image or is damaged"
        )
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(size, order="F")


def compress_counts(counts: Sequence[int]) -> str:
    """The letters of a list of counts."""
    letters = []
    for i, count in enumerate(counts):
        rest = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            group = rest & 0x1F
            rest >>= _BITS
            more = rest != (-1 if group & _SIGN_BIT else 0)
            letters.append(chr((group | _MORE_BIT if more else group) + _FIRST_LETTER))
    return "".join(letters)


def decompress_counts(letters: str, place: str) -> list[int]:
    """The counts of ``compress_counts``' letters. Raises DataError for anything else; place: as in decode_rle."""
    counts: list[int] = []
    value = groups = 0
    for letter in letters:
        code = ord(letter) - _FIRST_LETTER
        if not 0 <= code <= _LAST_LETTER - _FIRST_LETTER or groups == _MAX_GROUPS:
            raise DataError(f"{place}: {letter!r} in the compressed counts of a mask; write it again with COCO's tools")
        value |= (code & 0x1F) << (_BITS * groups)
        groups += 1
        if code & _MORE_BIT:
            continue
        if code & _SIGN_BIT:
            value -= 1 << (_BITS * groups)
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = groups = 0
    if groups:
        raise DataError(f"{place}: the compressed counts of a mask end early; the file is damaged")
    return counts
