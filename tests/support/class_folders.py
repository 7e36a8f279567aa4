"""Folders of classes small enough to train on in a second, and a classifier for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from drivestack.backbone import InternImageClassifier

CLASSES = ("blue", "green", "red")
TINY: dict[str, Any] = {"channels": 16, "depths": (1, 1, 1, 1), "groups": (1, 2, 4, 8)}


def square(label: int, seed: int, width_px: int = 50, height_px: int = 40) -> np.ndarray:
    """An image [H, W, 3] of noise with a square of the class's colour."""
    pixels = np.random.default_rng([label, seed]).integers(0, 90, (height_px, width_px, 3), dtype=np.uint8)
    pixels[8:30, 10:40, 2 - label] = 230
    return pixels


def write_folders(root: Path, train: int = 6, val: int = 3, suffix: str = ".png") -> Path:
    """ROOT/{train,val}/CLASS/N.png; train, val: images of each class."""
    for part, count in (("train", train), ("val", val)):
        for label, name in enumerate(CLASSES):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(square(label, i + 100 * (part == "val"))).save(folder / f"{i}{suffix}")
    return root


def tiny_classifier(num_classes: int = 3, **options: Any) -> InternImageClassifier:
    return InternImageClassifier(**TINY, num_classes=num_classes, **options)
