"""A classifier's answers to images, and to those that come into a folder while it is watched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ....core.errors import DataError
from ....core.image_answers import ImageAnswer
from ..arrivals import arrivals
from ..protocol import ImageModel
from .batch import collate
from .dataset import ClassDataset
from .transforms import ClassImageSettings


def classify(
    model: ImageModel,
    images: Sequence[Any],
    image: ClassImageSettings | Mapping[str, Any] | None = None,
    batch_size: int = 8,
) -> Iterator[ImageAnswer]:
    """An answer for each of ``images``: paths, or uint8 RGB arrays [H, W, 3].

    image: size and normalisation, as of the config's test_dataset. The model answers where it is, in eval mode. Raises
    DataError for an image that cannot be read.
    """
    dataset = ClassDataset(image=image, images=images)
    device = next(model.parameters()).device
    model.eval()
    for start in range(0, len(dataset), batch_size):
        samples = [dataset[i] for i in range(start, min(start + batch_size, len(dataset)))]
        with torch.inference_mode():
            yield from model.predict(collate(samples).to(device))


@dataclass(frozen=True)
class Arrival:
    """An image that came into the folder: its answer, or why it has none."""

    path: Path
    answer: ImageAnswer | None
    problem: str = ""


def classify_arrivals(
    model: ImageModel,
    folder: str | Path,
    image: ClassImageSettings | Mapping[str, Any] | None = None,
    **watch: Any,
) -> Iterator[Arrival]:
    """An answer to each image that comes into ``folder``, see `arrivals`; a broken image does not end it."""
    for path in arrivals(folder, **watch):
        try:
            yield Arrival(path, next(classify(model, [path], image)))
        except DataError as error:
            yield Arrival(path, None, str(error))
