"""What image models, their data and their scores have in common; verbs, API and the training loop know no more.

A config of an image model has ``model`` (an ImageModel), ``train_dataloader`` (its ``dataset`` an ImageDataset, its
``collate_fn`` that dataset's) and ``test_dataset`` (an ImageDataset without augmentation), beside the keys that every
config has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from mmengine.model import BaseModel
from numpy.typing import NDArray
from torch import Tensor

from ...core.image_answers import ImageAnswer


class ImageBatch(Protocol):
    """What a dataset's ``collate`` makes of its samples."""

    tokens: list[str]

    def to(self, device: torch.device | str) -> ImageBatch: ...


class ImageModel(BaseModel):
    """The protocol of image models. task: what it answers, of core.image_answers.IMAGE_TASKS."""

    task: str

    def loss(self, batch: Any) -> dict[str, Tensor]:
        """Named loss terms, scalars; those whose name contains "loss" are added up."""
        raise NotImplementedError

    def predict(self, batch: Any) -> list[ImageAnswer]:
        """One answer per image, in the batch's order. Labels in the batch are not looked at."""
        raise NotImplementedError

    def forward(self, batch: Any, mode: str = "loss") -> dict[str, Tensor] | list[ImageAnswer]:
        """``loss`` in training; ``predict``. Other modes raise ValueError."""
        if mode not in ("loss", "predict"):
            raise ValueError(f"mode is 'loss' or 'predict', got {mode!r}")
        return self.loss(batch) if mode == "loss" else self.predict(batch)


class Scorer(Protocol):
    """Compares answers with the ground truth as they come, so that no set must be held in memory."""

    def add(self, answers: Iterable[ImageAnswer]) -> None:
        """Raises DataError for an image that is not of the set, or comes twice."""

    def scores(self) -> dict[str, float]:
        """The benchmark's numbers by name, the first the one that a best checkpoint is chosen by.

        Raises DataError where images of the set are missing.
        """


@runtime_checkable
class ImageDataset(Protocol):
    """A data set of images; built from a config's entry, with ``images=[...]`` (paths or uint8 RGB arrays [H, W, 3])
    in place of its own files it holds these, without labels.
    """

    class_names: Sequence[str]
    tokens: Sequence[str]
    """Of each image."""
    scene_tokens: Sequence[str]
    """Of each image: '' for all, for the samplers."""

    def __len__(self) -> int: ...

    def __getitem__(self, item: int | tuple[int, int]) -> Any:
        """A sample at an index, or at (index, draw) as the samplers yield it: augmentation is a function of draw."""

    def image(self, index: int) -> NDArray[np.uint8]:
        """The image as it lies on disk, or was given: [H, W, 3] RGB (core.decode.read_rgb)."""

    def collate(self, samples: Sequence[Any]) -> ImageBatch: ...

    def scorer(self) -> Scorer:
        """Raises NoLabelsError where the set has no labels."""
