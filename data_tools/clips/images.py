"""Reading camera images, with a separate error for every way a file can be wrong.

Images are uint8 [H, W, 3] in BGR order (OpenCV's), un-augmented, as the sensor has them: EXIF orientation is not
applied, since the calibration knows nothing of it. Modes other than 8-bit colour: core/images.py.
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

from ...core.errors import LIBRARY_ERRORS, DataError
from ...core.frames import CameraView
from ...core.images import check_size, rgb_pixels
from .jpeg import damage, read_header

_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_MAX_BYTES = 1 << 29  # of a file: 80 million pixels of six bytes fit
DECODER_ERRORS = (*LIBRARY_ERRORS, OSError, SyntaxError, struct.error, zlib.error, Image.DecompressionBombError)
"""What Pillow and its plugins raise for files that they cannot decode."""


def load_image(view: CameraView, sample_token: str) -> NDArray[np.uint8]:
    """The image of a camera view, [H, W, 3] BGR.

    Raises DataError naming the sample token, the camera and the path if the file is missing, unreadable, empty,
    truncated, damaged as far as that is known (jpeg.py), not an image, of a mode that is not read (core/images.py), or
    not of the size that the calibration is for.
    """

    def wrong(problem: str, fix: str) -> DataError:
        place = f": {view.image_path}" if view.image_path else ""
        return DataError(f"sample {sample_token}, camera {view.name}{place}: {problem}; {fix}")

    if view.image is not None:
        return _of_memory(view, wrong)
    if not view.image_path:
        raise wrong("it has no image", "give its path, or the pixels themselves")
    try:
        data = _read(Path(view.image_path))
    except FileNotFoundError:
        raise wrong("image is missing", "check the data root, or fetch the archive (blob) with this file") from None
    except OSError as error:
        raise wrong(f"image cannot be read ({error.strerror})", "check the file's permissions and the disk") from None
    if not data:
        raise wrong("image is empty (0 bytes)", "fetch or generate the file again")
    return _decode(data, view, wrong)


def _read(path: Path) -> bytes:
    """All of a file, which is a regular one of at most _MAX_BYTES: a device would never end."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        if status.st_size > _MAX_BYTES:
            raise OSError(errno.EFBIG, f"{status.st_size} bytes are no camera image")
        return file.read()


def _of_memory(view: CameraView, wrong: Callable[[str, str], DataError]) -> NDArray[np.uint8]:
    image = np.asarray(view.image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise wrong(f"image in memory is {image.dtype} {list(image.shape)}", "give uint8 [height, width, 3] in RGB")
    return np.ascontiguousarray(_of_right_size(image, view, wrong)[:, :, ::-1])


def _of_right_size(
    image: NDArray[np.uint8], view: CameraView, wrong: Callable[[str, str], DataError]
) -> NDArray[np.uint8]:
    _check_size(image.shape[1], image.shape[0], view, wrong)
    return image


def _check_size(width_px: int, height_px: int, view: CameraView, wrong: Callable[[str, str], DataError]) -> None:
    expected = view.image_size_px
    if (width_px, height_px) != expected:
        problem = f"image is {width_px}x{height_px} pixels but its calibration is for {expected[0]}x{expected[1]}"
        raise wrong(problem, "resize neither without the other; give the original image or correct the calibration")
    try:
        check_size(width_px, height_px)
    except ValueError as error:
        raise wrong(*str(error).split("; ", 1)) from None


def _decode(data: bytes, view: CameraView, wrong: Callable[[str, str], DataError]) -> NDArray[np.uint8]:
    """Pixels; the size is compared with the calibration before memory is taken for them."""
    # OpenCV is twice as fast as Pillow but fills up a truncated file in silence: it gets whole JPEGs only. Pillow
    # decodes the rest, strictly; both give the same pixels (libjpeg-turbo).
    header = read_header(data) if data.startswith(_JPEG_START) else None
    if header is not None and data.rfind(_JPEG_END, max(0, len(data) - 64)) >= 0:
        _check_size(header.width_px, header.height_px, view, wrong)
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        try:
            decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        except cv2.error:
            decoded = None  # Pillow says why
        if decoded is not None:
            image = np.asarray(decoded, np.uint8)
            _of_right_size(image, view, wrong)
            if problem := damage(data, header, image):
                raise wrong(f"image is damaged: {problem} ({len(data)} bytes)", "fetch or generate the file again")
            return image
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the size is checked below
            picture = Image.open(io.BytesIO(data))
        with picture:
            _check_size(*picture.size, view, wrong)
            picture.load()
    except DECODER_ERRORS as error:
        problem = "truncated" if "truncated" in str(error) else "not a readable image"
        raise wrong(f"image is {problem} ({len(data)} bytes)", "fetch or generate the file again") from None
    try:
        pixels = rgb_pixels(picture)
    except ValueError as error:
        raise wrong(*str(error).split("; ", 1)) from None
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), np.uint8)
