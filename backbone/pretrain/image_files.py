"""Images of folders, archives and memory as RGB pixels: core/decode.py, and turned upright as photographs ask for.

Labels of whole images know nothing of how a camera was held; the released classification code turns images as well.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...core.decode import DECODER_ERRORS, Wrong, decode, read_file
from ...core.errors import DataError
from ...core.file_kinds import kind_of_file

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
"""Of the files in a folder that are taken for images."""
MOST_BYTES = 1 << 29
"""Of one image in an archive: 80 million pixels of six bytes fit."""

_ORIENTATION = 0x0112  # EXIF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def is_image_name(name: str) -> bool:
    """Whether a file is taken for an image; hidden ones (as copies from a Mac bring them, ``._a.jpg``) are not."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def image_bytes(path: Path) -> bytes:
    """The content of an image file. Raises DataError, naming it, where it cannot be read."""
    return read_file(path, _naming(str(path)), "check the path, or take it out of the list")


def upright_pixels(data: bytes, place: str) -> NDArray[np.uint8]:
    """Pixels [H, W, 3], RGB, uint8, of an image file's content, turned as its EXIF data say.

    place: names the image in messages. Raises DataError for content that core.decode refuses.
    """
    pixels = decode(data, _naming(place))[:, :, ::-1]
    try:
        with Image.open(io.BytesIO(data)) as picture:
            turn = _TURNS.get(picture.getexif().get(_ORIENTATION, 1))
    except DECODER_ERRORS:  # broken notes beside sound pixels
        turn = None
    pixels = np.ascontiguousarray(pixels)
    return pixels if turn is None else np.asarray(Image.fromarray(pixels).transpose(turn))


def read_image(image: Any, place: str = "") -> NDArray[np.uint8]:
    """Pixels [H, W, 3], RGB, uint8, of a path, or of an array of that shape. Raises DataError."""
    if isinstance(image, (str, Path)):
        path = Path(image)
        data = image_bytes(path)
        kind = kind_of_file(path)
        if kind and "image" not in kind:
            raise DataError(f"{path}: is {kind}, no image; name an image file")
        return upright_pixels(data, str(path))
    pixels = np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
        raise DataError(f"{place}: image is {pixels.dtype} {list(pixels.shape)}; give uint8 [height, width, 3] in RGB")
    return pixels


def _naming(place: str) -> Wrong:
    return lambda problem, fix: DataError(f"{place}: {problem}; {fix}")
