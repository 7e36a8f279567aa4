"""How pixels become network input: the release's rules for training and for scoring.

Training augmentation is timm's (RandAugment, random erasing, random resized crops); what it draws is a function of the
numbers it is given. Scoring needs torchvision alone. Source of both rules: InternImage release, classification/.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from ....core.errors import ConfigError
from ..generators import seeded

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ClassImageSettings:
    """Size and normalisation, of training and scoring alike; augmentation for training.

    size_px: side of the square that the network sees. crop: whether an image to score is resized by its shorter side
    and cropped at the centre, or squeezed into the square. resize_ratio: shorter side before cropping over ``size_px``
    (1 as released: nothing but ends of the longer side are cut; common elsewhere: 1 / 0.875).
    augment: arguments of timm's create_transform, beside sizes and normalisation.
    """

    size_px: int = 224
    crop: bool = True
    resize_ratio: float = 1.0
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    augment: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if type(self.size_px) is not int or self.size_px < 1:
            raise ValueError(f"image.size_px must be a whole number from 1 on, got {self.size_px!r}")
        if not self.resize_ratio >= 1:
            raise ValueError(f"image.resize_ratio must be at least 1, got {self.resize_ratio!r}")


def scoring_transform(settings: ClassImageSettings) -> Callable[[NDArray[np.uint8]], Tensor]:
    """Pixels [H, W, 3] uint8 -> [3, size, size] normalised, always the same."""
    from torchvision.transforms import v2

    size = settings.size_px
    steps: list[Any]
    if settings.crop:
        side = round(size * settings.resize_ratio)
        steps = [v2.Resize(side, v2.InterpolationMode.BICUBIC), v2.CenterCrop(size)]
    else:
        steps = [v2.Resize((size, size), v2.InterpolationMode.BICUBIC)]
    steps = [*steps, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(settings.mean, settings.std)]
    apply = v2.Compose(steps)
    return lambda pixels: apply(Image.fromarray(pixels)).as_subclass(Tensor)  # Pillow's resize, as released


def training_transform(settings: ClassImageSettings) -> Callable[[NDArray[np.uint8], tuple[int, ...]], Tensor]:
    """(pixels [H, W, 3] uint8, numbers) -> [3, size, size] normalised and augmented as the numbers say."""
    try:
        from timm.data import auto_augment, create_transform
    except ImportError as error:
        raise ConfigError(
            f"training on images needs timm's augmentation ({error}): pip install 'drivestack[classification]'"
        ) from error
    try:
        apply = create_transform(
            settings.size_px,
            is_training=True,
            **{"interpolation": "bicubic", **settings.augment},
            mean=settings.mean,
            std=settings.std,
        )
    except (TypeError, ValueError, AssertionError, KeyError) as error:
        raise ConfigError(f"image.augment: timm's create_transform refuses it: {error}") from error
    for step in apply.transforms:
        for operation in getattr(step, "ops", ()):
            if operation.aug_fn is auto_augment.posterize:
                operation.aug_fn = _posterize

    def transform(pixels: NDArray[np.uint8], numbers: tuple[int, ...]) -> Tensor:
        with seeded(*numbers):
            return apply(Image.fromarray(pixels))

    return transform


def _posterize(picture: Image.Image, bits_to_keep: int, **_: Any) -> Image.Image:
    """timm's, which asks for 0 bits too: black, as Pillow gave it before it refused that (13.0 does)."""
    if bits_to_keep >= 8:
        return picture
    return ImageOps.posterize(picture, bits_to_keep) if bits_to_keep > 0 else picture.point(lambda _: 0)
