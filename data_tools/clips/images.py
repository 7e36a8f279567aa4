"""Reading camera images, with a separate error for every way a file can be wrong.

Images are uint8 [H, W, 3] in BGR order (OpenCV's), un-augmented.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ...core.errors import DataError
from ...core.frames import CameraView

_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"


def load_image(view: CameraView, sample_token: str) -> NDArray[np.uint8]:
    """The image of a camera view, [H, W, 3] BGR.

    Raises DataError naming the sample token, the camera and the path if the file is missing, unreadable, empty,
    truncated, not an image, or not of the size that the calibration is for.
    """

    def wrong(problem: str, fix: str) -> DataError:
        place = f": {view.image_path}" if view.image_path else ""
        return DataError(f"sample {sample_token}, camera {view.name}{place}: {problem}; {fix}")

    if view.image is not None:
        return _of_memory(view, wrong)
    if not view.image_path:
        raise wrong("it has no image", "give its path, or the pixels themselves")
    try:
        data = Path(view.image_path).read_bytes()
    except FileNotFoundError:
        raise wrong("image is missing", "check the data root, or fetch the archive (blob) with this file") from None
    except OSError as error:
        raise wrong(f"image cannot be read ({error.strerror})", "check the file's permissions and the disk") from None
    if not data:
        raise wrong("image is empty (0 bytes)", "fetch or generate the file again")
    try:
        image = _decode(data)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        problem = "truncated" if "truncated" in str(error) else "not a readable image"
        raise wrong(f"image is {problem} ({len(data)} bytes)", "fetch or generate the file again") from None
    return _of_right_size(image, view, wrong)


def _of_memory(view: CameraView, wrong: Callable[[str, str], DataError]) -> NDArray[np.uint8]:
    image = np.asarray(view.image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise wrong(f"image in memory is {image.dtype} {list(image.shape)}", "give uint8 [height, width, 3] in RGB")
    return np.ascontiguousarray(_of_right_size(image, view, wrong)[:, :, ::-1])


def _of_right_size(
    image: NDArray[np.uint8], view: CameraView, wrong: Callable[[str, str], DataError]
) -> NDArray[np.uint8]:
    expected = (view.camera.height_px, view.camera.width_px)
    if image.shape[:2] != expected:
        size = f"{image.shape[1]}x{image.shape[0]}"
        problem = f"image is {size} pixels but its calibration is for {expected[1]}x{expected[0]}"
        raise wrong(problem, "resize neither without the other; give the original image or correct the calibration")
    return image


def _decode(data: bytes) -> NDArray[np.uint8]:
    # OpenCV is twice as fast as Pillow but fills up a truncated file in silence: it gets whole JPEGs only. Pillow
    # decodes the rest, strictly; both give the same pixels (libjpeg-turbo).
    if data.startswith(_JPEG_START) and data.rfind(_JPEG_END, max(0, len(data) - 64)) >= 0:
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        if image is not None:
            return np.asarray(image, np.uint8)
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(cv2.cvtColor(np.asarray(picture.convert("RGB")), cv2.COLOR_RGB2BGR), np.uint8)
