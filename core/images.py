"""Pixels of any picture as 8-bit RGB: which modes of an image are read, how, and which are refused.

By Pillow's mode:

* 1, L, LA, P, PA, RGB, RGBA, CMYK, YCbCr, LAB, HSV: Pillow's conversion to RGB; transparency is dropped;
* I;16 in any byte order, I within 0..65535: scaled by 1/257 where the values need 15 bits or more; else refused;
* F: 0..1 scaled by 255, 0..255 as it is; else refused.

Images of 10, 12 or 14 bits in 16-bit files would be almost black if scaled by 1/257, and their depth stands nowhere
that could be relied on: they are refused, and a fixed scale chosen by who made them keeps frames comparable.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .once import warn_once

MAX_PIXELS = 80_000_000
"""Larger images are refused before they are decoded, whatever limit other libraries have set in Pillow. The largest
camera on a car today has about 12 million."""

_MIN_FULL_RANGE = 1 << 14
"""Below, the values of a 16-bit image fit into 14 bits."""


def rgb_pixels(picture: Image.Image) -> NDArray[np.uint8]:
    """Pixels [H, W, 3], RGB, of a Pillow image; see the table above.

    Raises ValueError with problem and fix for an image of too many pixels, or of a mode or values that are refused.
    """
    check_size(*picture.size)
    mode = picture.mode
    if mode.startswith("I"):
        return _grey(_of_16_bits(np.asarray(picture), mode))
    if mode == "F":
        return _grey(_of_floats(np.asarray(picture)))
    return np.asarray(picture.convert("RGB"))


def check_size(width_px: int, height_px: int) -> None:
    """Raises ValueError for more than MAX_PIXELS."""
    if width_px * height_px > MAX_PIXELS:
        raise ValueError(
            f"image states {width_px}x{height_px} pixels, more than {MAX_PIXELS // 1_000_000} million; make it smaller"
        )


def _grey(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(pixels[:, :, None], 3, axis=2)


def _of_16_bits(values: NDArray[np.generic], mode: str) -> NDArray[np.uint8]:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ValueError(f"image of mode {mode} has values {low}..{high}, not those of 16 bits; convert it to 8 bits")
    if 0 < high < _MIN_FULL_RANGE:
        raise ValueError(
            f"image of 16 bits (mode {mode}) has no value above {high}: raw data of {max(high.bit_length(), 8)} bits? "
            "its scale is not known; convert it to 8 bits, all images by the same scale"
        )
    warn_once("images of 16 bits (grey) are read as 8 bits: values 0..65535 scaled by 1/257")
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _of_floats(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 255):  # also NaN
        raise ValueError(f"image of floats (mode F) has values {low:g}..{high:g}; give 0..1, or convert it to 8 bits")
    scale = 255.0 if high <= 1 else 1.0
    warn_once(f"images of floats (grey) are read as 8 bits: values 0..{255 / scale:g} scaled by {scale:g}")
    return np.asarray(np.rint(np.asarray(values, np.float64) * scale), np.uint8)
