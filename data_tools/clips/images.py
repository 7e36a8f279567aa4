"""Reading camera images: uint8 [H, W, 3] in BGR order (OpenCV's), un-augmented, of the size of their calibration."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...core.decode import Wrong, checked_size, decode, read_file
from ...core.errors import DataError
from ...core.frames import CameraView, EncodedImage


def load_image(view: CameraView, sample_token: str) -> NDArray[np.uint8]:
    """The image of a camera view, [H, W, 3] BGR.

    Raises DataError naming the sample token, the camera and the path for a file that core/decode.py cannot read, or
    one that is not of the size that the calibration is for.
    """

    def wrong(problem: str, fix: str) -> DataError:
        place = f": {view.source}" if view.image_path or view.encoded else ""
        return DataError(f"sample {sample_token}, camera {view.name}{place}: {problem}; {fix}")

    def of_calibration(width_px: int, height_px: int) -> None:
        expected = view.image_size_px
        if (width_px, height_px) != expected:
            problem = f"image is {width_px}x{height_px} pixels but its calibration is for {expected[0]}x{expected[1]}"
            raise wrong(problem, "resize neither without the other; give the original image or correct the calibration")

    if view.image is not None:
        image = _of_memory(view.image, wrong)
        checked_size(image.shape[1], image.shape[0], wrong, of_calibration)
        return np.ascontiguousarray(image[:, :, ::-1])
    if view.encoded is not None:
        return decode(_encoded(view.encoded, wrong), wrong, of_calibration)
    if not view.image_path:
        raise wrong("it has no image", "give its path, or the pixels themselves")
    data = read_file(view.image_path, wrong, "check the data root, or fetch the archive (blob) with this file")
    return decode(data, wrong, of_calibration)


def _encoded(image: EncodedImage, wrong: Wrong) -> bytes:
    try:
        data = image.read()
    except OSError as error:
        raise wrong(f"image cannot be read ({error.strerror or error})", "fetch the file again") from None
    if not data:
        raise wrong("image is empty (0 bytes)", "fetch or generate the file again")
    return data


def _of_memory(pixels: NDArray[np.uint8], wrong: Wrong) -> NDArray[np.uint8]:
    image = np.asarray(pixels)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise wrong(f"image in memory is {image.dtype} {list(image.shape)}", "give uint8 [height, width, 3] in RGB")
    return image
