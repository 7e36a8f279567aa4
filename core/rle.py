"""Masks as run lengths, COCO's format: {"size": [height, width], "counts": text, or numbers}.

Runs of 0 and 1 in turn, of 0 first, down the columns one after the other. As text each number is written in digits of
5 bits, lowest first, from the fourth on as its difference to the number two places before. Source: cocoapi, maskApi.

Shapes: H and W of the image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MOST_DIGITS = 8  # of a number: 40 bits


def encode_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Run lengths of a mask [H, W], with ``counts`` as text."""
    flat = np.asarray(mask, bool).ravel("F")  # [H * W]
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = [b - a for a, b in pairwise([0, *changes.tolist(), len(flat)])]
    if len(flat) and flat[0]:
        runs.insert(0, 0)
    height, width = mask.shape
    return {"size": [height, width], "counts": _text_of(runs)}


def decode_mask(rle: Mapping[str, Any]) -> NDArray[np.bool_]:
    """The mask [H, W]. Raises ValueError saying what is wrong with the run lengths, before memory is taken for them."""
    size, counts = rle.get("size"), rle.get("counts")
    if not isinstance(size, Sequence) or len(size) != 2 or any(type(side) is not int or side < 0 for side in size):
        raise ValueError(f"size {str(size)[:40]} is no [height, width]")
    if isinstance(counts, bytes):
        counts = counts.decode("ascii", "replace")
    if not isinstance(counts, (str, list, tuple)):
        raise ValueError(f"counts are {type(counts).__name__}, neither text nor numbers")
    runs = _runs_of(counts) if isinstance(counts, str) else list(counts)
    if any(type(run) is not int or run < 0 for run in runs):
        raise ValueError("a run length is no whole number from 0 on")
    height, width = size
    if sum(runs) != height * width:
        raise ValueError(f"its runs have {sum(runs)} pixels, the image {height} x {width}")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def _text_of(runs: Sequence[int]) -> str:
    letters = []
    for i, run in enumerate(runs):
        left = run - runs[i - 2] if i > 2 else run
        while True:
            digit, left = left & 31, left >> 5
            more = left != (-1 if digit & 16 else 0)
            letters.append(chr(48 + digit + 32 * more))
            if not more:
                break
    return "".join(letters)


def _runs_of(text: str) -> list[int]:
    runs: list[int] = []
    value = digits = 0
    for letter in text:
        digit = ord(letter) - 48
        if not 0 <= digit < 64 or digits >= _MOST_DIGITS:
            raise ValueError(f"counts hold {letter!r}, not the letters of run lengths")
        value |= (digit & 31) << 5 * digits
        digits += 1
        if digit < 32:
            if digit & 16:
                value -= 1 << 5 * digits
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = digits = 0
    if digits:
        raise ValueError("counts end within a number")
    return runs
