"""First steps of OpenMMLab's pipelines, which refuse what theirs pass over in silence: damaged images, wrong masks.

A pipeline's steps are functions from one dict (``results``) to the next. These take ``img_path`` or ``img_array`` and
``seg_map_path``, and leave ``img`` (BGR, as the toolboxes have it) and ``gt_seg_map``.

Shapes: H and W of the image.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...core.decode import DECODER_ERRORS, read_rgb
from ...core.errors import DataError
from ...core.images import check_size

IGNORED = 255
"""Label of pixels that neither train nor count."""
MASK_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
"""Pillow's modes of pictures with one number for every pixel."""


class ReadImage:
    """Puts the image in: ``img`` uint8 [H, W, 3] BGR, ``img_shape``, ``ori_shape``.

    Raises DataError for a file that cannot be read, or whose size is not the labels' (``height``, ``width``).
    """

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        pixels = rgb_of(results)
        height, width = pixels.shape[:2]
        stated = (results.get("height", height), results.get("width", width))
        if stated != (height, width):
            raise DataError(
                f"{results['img_path']}: image is {width}x{height} pixels but its labels are for "
                f"{stated[1]}x{stated[0]}; fetch the file again, or correct the labels"
            )
        image = np.ascontiguousarray(pixels[:, :, ::-1])
        return {**results, "img": image, "img_shape": (height, width), "ori_shape": (height, width)}


def rgb_of(results: Mapping[str, Any]) -> NDArray[np.uint8]:
    """The pixels [H, W, 3] RGB that ``img_array`` is or ``img_path`` names. Raises DataError."""
    if results.get("img_array") is None:
        return read_rgb(results["img_path"])
    pixels = np.asarray(results["img_array"])
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
        raise DataError(
            f"image {results['img_path']} in memory is {pixels.dtype} {list(pixels.shape)}; give uint8 [height, "
            "width, 3] in RGB"
        )
    return pixels


class ReadPixelLabels:
    """Puts the class of every pixel in: ``gt_seg_map`` uint8 [H, W], IGNORED where there is none.

    label_map of ``results``: stored number -> class; reduce_zero_label: number 0 means no class and the others are one
    too high (ADE20K, COCO-Stuff 10K, Pascal Context 59).

    Args:
        num_classes: numbers from there on are refused, but for IGNORED; None takes any.

    Raises DataError, naming the file.
    """

    def __init__(self, num_classes: int | None = None):
        self.num_classes = num_classes

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        labels = self.labels(results, results["img"].shape[:2])
        fields = [*results.get("seg_fields", []), "gt_seg_map"]
        return {**results, "gt_seg_map": labels, "seg_fields": fields}

    def labels(self, results: Mapping[str, Any], size_hw: tuple[int, ...]) -> NDArray[np.uint8]:
        """Classes [H, W] of an image of that size."""
        path = results["seg_map_path"]
        stored = read_mask(path)
        if stored.shape != tuple(size_hw):
            raise DataError(
                f"{path}: mask is {stored.shape[1]}x{stored.shape[0]} pixels, its image {size_hw[1]}x{size_hw[0]}; "
                "write the mask at the image's size"
            )
        if int(stored.max()) > IGNORED or int(stored.min()) < 0:
            raise DataError(
                f"{path}: mask has numbers {int(stored.min())}..{int(stored.max())}, class numbers are 0 to "
                f"{IGNORED}; write classes, not colours or instance ids"
            )
        labels = stored.astype(np.uint8)
        if results.get("reduce_zero_label"):
            labels = np.where(labels == 0, IGNORED, np.where(labels == IGNORED, IGNORED, labels - 1)).astype(np.uint8)
        if results.get("label_map"):
            labels = _mapped(labels, results["label_map"])
        if self.num_classes is not None:
            wrong = np.unique(labels[(labels >= self.num_classes) & (labels != IGNORED)])
            if len(wrong):
                numbers = ", ".join(map(str, wrong[:5].tolist()))
                raise DataError(
                    f"{path}: class {numbers} in the mask, there are {self.num_classes} classes (0 to "
                    f"{self.num_classes - 1}, {IGNORED} for none); correct the mask or the list of classes"
                )
        return labels


def _mapped(labels: NDArray[np.uint8], table: Mapping[int, int]) -> NDArray[np.uint8]:
    """Each number by ``table``; what it does not name stays, as in mmseg."""
    lookup = np.arange(256)
    for stored, label in table.items():
        lookup[int(stored)] = IGNORED if int(label) < 0 else int(label)
    return lookup[labels].astype(np.uint8)


def read_mask(path: str) -> NDArray[np.integer]:
    """Numbers [H, W] of a picture with one number for every pixel. Raises DataError naming the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as picture:
                check_size(*picture.size)
                mode = picture.mode
                picture.load()
                numbers = np.asarray(picture)
    except FileNotFoundError:
        raise DataError(f"{path}: mask is missing; write one for every image, or take the image out") from None
    except DECODER_ERRORS as error:
        text = " ".join(str(error).split())[:120]
        raise DataError(f"{path}: mask cannot be read ({text}); write it again as PNG") from None
    if mode not in MASK_MODES:
        raise DataError(
            f"{path}: mask is a picture of mode {mode}, not one number for every pixel; save class numbers as PNG of "
            "8 bits (mode L or P)"
        )
    return numbers.astype(np.int64) if numbers.dtype == bool else numbers
