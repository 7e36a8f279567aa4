"""A model of single images for programs, and its answer: the image, class names beside numbers, a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..core.image_answers import ImageAnswer, Instances

if TYPE_CHECKING:
    from mmengine.config import Config
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


class ImagePerception:
    """A model of single images (classes, instances, segmentation); ``load`` makes it.

    model: the torch module; config: its configuration; class_names: as the weights state them, else as the config's
    test data do.
    """

    def __init__(self, model: Any, config: Config, precision: str = "fp32", class_names: Sequence[str] = ()) -> None:
        from ..backbone import prepare_inference

        self.model = model.eval()
        on_cpu = next(model.parameters()).device.type == "cpu"
        self._running = prepare_inference(model) if on_cpu else model  # the same numbers, faster
        self.config, self.precision, self.class_names = config, precision, tuple(class_names)

    def __call__(self, image: Any) -> ImageResult:
        """The answer for an image: a path, a PIL image, uint8 RGB [H, W, 3], or a tensor [3, H, W] (floats: 0..1).

        Raises DataError for an image that cannot be used.
        """
        (result,) = self.batch([image])
        return result

    def batch(self, images: Sequence[Any]) -> list[ImageResult]:
        """Answers for several images, in one pass of the model."""
        import torch

        from ..core.decode import read_rgb
        from ..core.rig import as_image
        from ..engine.precision import precision_context
        from .images import image_dataset, named

        pixels = []
        for i, image in enumerate(images):
            path, array = as_image(image, str(i))
            pixels.append(read_rgb(path) if array is None else array)
        dataset = image_dataset(self.config, pixels)
        names = self.class_names or tuple(dataset.class_names)
        device = next(self.model.parameters()).device
        batch = dataset.collate([dataset[i] for i in range(len(pixels))]).to(device)
        with torch.inference_mode(), precision_context(self.precision, device):
            answers = self._running.predict(batch)
        return [ImageResult(answer, image, named(names, answer)) for answer, image in zip(answers, pixels)]

    def evaluate(self, out: str | Path | None = None, **run: Any) -> dict[str, float]:
        """Scores on the config's test images; out: folder for the answers; run: batch_size, num_workers, progress."""
        from .images import score_images

        run.setdefault("precision", self.precision)
        return score_images(self.config, self.model, None if out is None else Path(out), self.class_names, **run)
