"""Image files to pixels, with a separate error for every way a file can be wrong.

Pixels are uint8 as the sensor has them: EXIF orientation is not applied, as calibration and labels know nothing of it.
Modes other than 8-bit colour: images.py. Damage that decoders pass over: jpeg.py.

Shapes: H and W of the image.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import LIBRARY_ERRORS, DataError
from .images import check_size, rgb_pixels
from .jpeg import damage, read_header

Wrong = Callable[[str, str], DataError]
"""Makes the error from problem and fix."""
CheckSize = Callable[[int, int], None]
"""Raises DataError for a width and height in pixels that cannot be right."""

_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_MAX_BYTES = 1 << 29  # of a file: 80 million pixels of six bytes fit
DECODER_ERRORS = (*LIBRARY_ERRORS, OSError, SyntaxError, struct.error, zlib.error, Image.DecompressionBombError)
"""What Pillow and its plugins raise for files that they cannot decode."""


def read_rgb(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """The pixels [H, W, 3] RGB of an image file. Raises DataError naming the file, see ``read_file`` and ``decode``."""

    def wrong(problem: str, fix: str) -> DataError:
        return DataError(f"{path}: {problem}; {fix}")

    data = read_file(path, wrong, "check the path, or fetch the file again")
    return np.ascontiguousarray(decode(data, wrong)[:, :, ::-1])


def read_file(path: str | os.PathLike[str], wrong: Wrong, if_missing: str) -> bytes:
    """All of a file. Raises what ``wrong`` makes for one that is missing, unreadable or empty; if_missing: the fix."""
    try:
        data = _read(Path(path))
    except FileNotFoundError:
        raise wrong("image is missing", if_missing) from None
    except OSError as error:
        raise wrong(f"image cannot be read ({error.strerror})", "check the file's permissions and the disk") from None
    if not data:
        raise wrong("image is empty (0 bytes)", "fetch or generate the file again")
    return data


def _read(path: Path) -> bytes:
    """All of a file, which is a regular one of at most _MAX_BYTES: a device would never end."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        if status.st_size > _MAX_BYTES:
            raise OSError(errno.EFBIG, f"{status.st_size} bytes are no camera image")
        return file.read()


def checked_size(width_px: int, height_px: int, wrong: Wrong, check: CheckSize | None = None) -> None:
    """Raises what ``check`` does, and what ``wrong`` makes for more pixels than are read."""
    if check is not None:
        check(width_px, height_px)
    try:
        check_size(width_px, height_px)
    except ValueError as error:
        raise wrong(*str(error).split("; ", 1)) from None


def decode(data: bytes, wrong: Wrong, check: CheckSize | None = None) -> NDArray[np.uint8]:
    """Pixels [H, W, 3] BGR of an image file's content; the size is checked before memory is taken for them.

    Raises what ``check`` does, and what ``wrong`` makes for content that is truncated, damaged as far as that is known
    (jpeg.py), not an image, or of a mode that is not read (images.py).
    """
    # OpenCV is twice as fast as Pillow but fills up a truncated file in silence: it gets whole JPEGs only. Pillow
    # decodes the rest, strictly; both give the same pixels (libjpeg-turbo).
    header = read_header(data) if data.startswith(_JPEG_START) else None
    if header is not None and data.rfind(_JPEG_END, max(0, len(data) - 64)) >= 0:
        checked_size(header.width_px, header.height_px, wrong, check)
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        try:
            decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        except cv2.error:
            decoded = None  # Pillow says why
        if decoded is not None:
            image = np.asarray(decoded, np.uint8)
            checked_size(image.shape[1], image.shape[0], wrong, check)
            if problem := damage(data, header, image):
                raise wrong(f"image is damaged: {problem} ({len(data)} bytes)", "fetch or generate the file again")
            return image
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the size is checked below
            picture = Image.open(io.BytesIO(data))
        with picture:
            checked_size(*picture.size, wrong, check)
            picture.load()
    except DECODER_ERRORS as error:
        problem = "truncated" if "truncated" in str(error) else "not a readable image"
        raise wrong(f"image is {problem} ({len(data)} bytes)", "fetch or generate the file again") from None
    try:
        pixels = rgb_pixels(picture)
    except ValueError as error:
        raise wrong(*str(error).split("; ", 1)) from None
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), np.uint8)
