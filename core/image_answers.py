"""What comes out of an image model for one image: classes, instances (boxes and masks), a class for every pixel.

Pixels are those of the image as it lies on disk, or was given: whatever a model resizes, pads or flips is undone.
Shapes: n instances, K classes, H and W of the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IMAGE_TASKS = ("classes", "instances", "segmentation")
"""What an image model may answer."""


@dataclass(frozen=True)
class Instances:
    """Objects found in one image, best score first."""

    boxes_xyxy_px: NDArray[np.float32]
    """[n, 4]"""
    scores: NDArray[np.float32]
    """[n]"""
    labels: NDArray[np.int64]
    """[n] index into the model's class list."""
    masks: NDArray[np.bool_] | None = None
    """[n, H, W], None from a model without masks."""


@dataclass(frozen=True)
class ImageAnswer:
    """All that one model found in one image; None for what it does not answer."""

    token: str
    """Of the image in its data set: its path relative to the set's images, or its number among images in memory."""
    size_px: tuple[int, int]
    """(width, height)"""
    probabilities: NDArray[np.float32] | None = None
    """[K] of the classes."""
    instances: Instances | None = None
    segmentation: NDArray[np.uint8] | None = None
    """[H, W] class of every pixel."""
