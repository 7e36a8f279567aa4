"""What readers share about cameras: their order, and the size of their images."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from ...core.cameras import CAMERA_ORDER, front_by_name, in_published_order
from ...core.errors import DataError
from ...core.once import warn_once

MAX_SIDE_PX = 32_768
"""Of an image that a calibration states; beyond it the number is damaged."""
_NUSCENES_SIZE_PX = (1600, 900)


def camera_order(names: Iterable[str]) -> list[str]:
    """Camera names as every reader orders them: as published, then the others alphabetically, the front one first.

    The front one by its name (core/cameras.py).
    """
    names = set(names)
    front = front_by_name(names)
    return list(in_published_order(sorted(names, key=lambda name: (name != front, name))))


class ImageSizes:
    """Sizes of a set's images where its files do not state them: read once for each camera and calibration.

    given_px: (width, height) that the user stated for all cameras, None to look at the images.
    """

    def __init__(self, given_px: tuple[int, int] | None = None) -> None:
        if given_px is not None and (len(given_px) != 2 or not all(0 < side <= MAX_SIDE_PX for side in given_px)):
            raise DataError(f"image_size_px {given_px}: give (width, height) in pixels")
        self.given_px = None if given_px is None else (int(given_px[0]), int(given_px[1]))
        self._known: dict[tuple[str, bytes], tuple[int, int]] = {}

    def __call__(self, camera: str, intrinsics: ArrayLike, path: str | Path) -> tuple[int, int]:
        """(width, height) of a camera's image. Raises DataError where it cannot be read and nothing else says it."""
        if self.given_px is not None:
            return self.given_px
        matrix = np.array(intrinsics, dtype=np.float64)
        key = camera, matrix.tobytes()
        if key not in self._known:
            self._known[key] = self._look(camera, matrix, Path(path))
        return self._known[key]

    def _look(self, camera: str, intrinsics: np.ndarray, path: Path) -> tuple[int, int]:
        try:
            return header_size_px(path)
        except DataError as error:
            # images that were not fetched: nuScenes' own cameras are known by their principal point
            half = np.array(_NUSCENES_SIZE_PX) / 2
            if camera in CAMERA_ORDER and np.all(np.abs(intrinsics[:2, 2] / half - 1) < 0.2):
                warn_once(f"camera {camera}: images are not there; taken as nuScenes', 1600 x 900 pixels")
                return _NUSCENES_SIZE_PX
            raise DataError(f"camera {camera}: {error}, or name the size (reader option image_size_px)") from None


def header_size_px(path: Path) -> tuple[int, int]:
    """(width, height) of an image file from its header; nothing is decoded. Raises DataError naming the file."""
    try:
        with Image.open(path) as image:
            width, height = image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a readable image"
        raise DataError(f"{path}: size of the image is unknown ({reason}); fetch the image") from None
    return width, height
