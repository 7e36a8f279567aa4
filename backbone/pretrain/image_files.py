"""Images from files, archives and memory as RGB pixels, upright, with one clear line for each that cannot be read."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ...core.errors import LIBRARY_ERRORS, DataError
from ...core.file_kinds import kind_of_file
from ...core.images import check_size, rgb_pixels

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
"""Of the files in a folder that are taken for images."""
MOST_BYTES = 1 << 29
"""Of one image file: 80 million pixels of six bytes fit."""

DECODER_ERRORS = (*LIBRARY_ERRORS, OSError, SyntaxError, struct.error, zlib.error, Image.DecompressionBombError)
"""What Pillow and its plugins raise for files that they cannot decode."""


def is_image_name(name: str) -> bool:
    """Whether a file is taken for an image; hidden ones (as copies from a Mac bring them, ``._a.jpg``) are not."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def read_file(path: Path) -> bytes:
    """The bytes of an image file. Raises DataError, naming it, where it is missing, empty, too large or no file."""
    try:
        if not path.is_file():
            problem = "is no regular file" if path.exists() else "no such image"
            raise DataError(f"{path}: {problem}; check the path, or take it out of the list")
        if path.stat().st_size > MOST_BYTES:
            raise DataError(f"{path}: {path.stat().st_size} bytes are no image; take it out of the set")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check permissions and disk") from None


def decode(data: bytes, place: str) -> NDArray[np.uint8]:
    """Pixels [H, W, 3], RGB, uint8, turned upright as the file's EXIF data say (as the released code reads images).

    place: names the image in messages. Raises DataError for one that is empty, truncated, no image, or of a mode or
    size that is not read (core/images.py).
    """
    if not data:
        raise DataError(f"{place}: image is empty (0 bytes); fetch the file again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about sizes (checked below) and odd metadata
            with Image.open(io.BytesIO(data)) as picture:
                check_size(*picture.size)
                picture.load()
                upright = ImageOps.exif_transpose(picture)
            return rgb_pixels(upright)
    except DECODER_ERRORS as error:
        text = " ".join(str(error).split())
        if isinstance(error, ValueError) and "; " in text:  # ours, with its own fix
            raise DataError(f"{place}: {text}") from None
        problem = "is truncated" if "truncated" in text else f"is not readable ({text[:100] or type(error).__name__})"
        raise DataError(f"{place}: image {problem}; fetch the file again, or take it out of the set") from None


def read_image(image: Any, place: str = "") -> NDArray[np.uint8]:
    """Pixels [H, W, 3], RGB, uint8, of a path, an array of that shape, or a Pillow image. Raises DataError."""
    if isinstance(image, (str, Path)):
        path = Path(image)
        data = read_file(path)
        kind = kind_of_file(path)
        if kind and "image" not in kind:
            raise DataError(f"{path}: is {kind}, no image; name an image file")
        return decode(data, str(path))
    if isinstance(image, Image.Image):
        try:
            return rgb_pixels(ImageOps.exif_transpose(image))
        except DECODER_ERRORS as error:
            raise DataError(f"{place}: {' '.join(str(error).split())}") from None
    pixels = np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
        raise DataError(f"{place}: image is {pixels.dtype} {list(pixels.shape)}; give uint8 [height, width, 3] in RGB")
    return pixels
