"""An image model's answer for programs: the image, class names beside numbers, a picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..core.image_answers import ImageAnswer, Instances

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class ImageResult:
    """The predictions for one image; None for what the model does not answer. Shapes: n instances, H and W."""

    raw: ImageAnswer
    """As the model gave it."""
    image: NDArray[np.uint8]
    """[H, W, 3] RGB that was answered."""
    class_names: tuple[str, ...]

    @property
    def classes(self) -> list[tuple[str, float]] | None:
        """Names and probabilities, the most probable first."""
        if self.raw.probabilities is None:
            return None
        order = np.argsort(-self.raw.probabilities, kind="stable")
        return [(self.class_names[i], float(self.raw.probabilities[i])) for i in order]

    @property
    def instances(self) -> Instances | None:
        """Boxes, scores, labels and masks, best score first."""
        return self.raw.instances

    @property
    def names(self) -> list[str] | None:
        """n class names of the instances."""
        return None if self.raw.instances is None else [self.class_names[i] for i in self.raw.instances.labels]

    @property
    def segmentation(self) -> NDArray[np.uint8] | None:
        """[H, W] class of every pixel."""
        return self.raw.segmentation

    def picture(self, score_threshold: float = 0.3, width_px: int | None = None) -> Image:
        """The answer drawn over the image; instances below the threshold stay invisible."""
        from PIL import Image

        from ..view.images import render_image_answer

        return Image.fromarray(render_image_answer(self.image, self.raw, self.class_names, score_threshold, width_px))
