"""Images and their classes as the training loop and the verbs want them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ....core.errors import DataError, NoLabelsError
from ....core.registries import DATASETS
from ..image_files import read_image, upright_pixels
from .batch import UNLABELLED, ClassBatch, ClassSample, collate
from .inaturalist import INaturalistSource
from .scores import TopScores
from .shards import ShardSource
from .sources import FolderSource, ListSource, Source, check_labels, check_unique
from .transforms import ClassImageSettings, scoring_transform, training_transform


@DATASETS.register_module()
class ClassDataset(Dataset):
    """Images with classes, from any Source, prepared for a classifier.

    source: which images, ``dict(type=FolderSource, root="data/flowers", part="train")``; FolderSource, ListSource,
        ShardSource, INaturalistSource, or a Source that is made already.
    image: size and augmentation, ClassImageSettings or its arguments.
    training: augment, by (index, draw) alone; else always the same.
    classes: names in the model's order; default the source's, or numbers. num_classes: how many there are, where names
        are not known; labels are checked against it.
    images: paths or uint8 RGB arrays [H, W, 3] in place of the source's, without labels.

    Raises DataError for data that cannot be used, see the sources.
    """

    def __init__(
        self,
        source: Source | Mapping[str, Any] | None = None,
        image: ClassImageSettings | Mapping[str, Any] | None = None,
        training: bool = False,
        classes: Sequence[str] | None = None,
        num_classes: int | None = None,
        images: Sequence[Any] | None = None,
    ) -> None:
        self.settings = (
            image if isinstance(image, ClassImageSettings) else ClassImageSettings(**_without_type(image or {}))
        )
        self.training = training
        self._score_view = scoring_transform(self.settings)
        self._train_view = training_transform(self.settings) if training else None
        if images is not None:
            source = GivenImages(images)
        elif source is None:
            raise DataError("no images: the data set has no source; name one, or give images=[...]")
        self.source = source if isinstance(source, Source) else _build_source(source, classes, num_classes)
        self.tokens = self.source.tokens
        self.class_names = self._named(classes, num_classes)
        if self.class_names:
            check_labels(self.source, len(self.class_names), "the data set")
        self.scene_tokens: Sequence[str] = self.source.groups or [""] * len(self.tokens)

    def _named(self, classes: Sequence[str] | None, num_classes: int | None) -> tuple[str, ...]:
        labelled = bool((self.source.labels != UNLABELLED).any())
        names = classes if classes is not None else self.source.class_names
        if names is None and num_classes is None and labelled:
            num_classes = int(self.source.labels.max()) + 1
        if names is None:
            return tuple(map(str, range(num_classes or 0)))
        if num_classes is not None and len(names) != num_classes:
            raise DataError(f"the data have {len(names)} classes, num_classes is {num_classes}; make them agree")
        own = self.source.class_names
        if classes is not None and own is not None and list(own) != list(classes):
            raise DataError(
                f"the data have {len(own)} classes ({', '.join(own[:3])}, ...), others than the {len(classes)} of the "
                f"config ({', '.join(classes[:3])}, ...); use the data of these classes"
            )
        return tuple(names)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, item: int | tuple[int, int]) -> ClassSample:
        index, draw = item if isinstance(item, tuple) else (item, 0)
        pixels = self.image(index)
        size_px = (pixels.shape[1], pixels.shape[0])
        view = self._score_view(pixels) if self._train_view is None else self._train_view(pixels, (index, draw))
        metadata = self.source.metadata(index)
        temporal, spatial = (None, None) if metadata is None else map(torch.tensor, metadata)
        return ClassSample(view, int(self.source.labels[index]), self.tokens[index], size_px, draw, temporal, spatial)

    def image(self, index: int) -> NDArray[np.uint8]:
        """The image as it is, upright, [H, W, 3] RGB. Raises DataError, naming it."""
        if isinstance(self.source, GivenImages):
            return self.source.pixels(index)
        return upright_pixels(self.source.read(index), self.source.place(index))

    def view(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Pixels [H, W, 3] as the network sees them when it answers, [3, size, size]."""
        return self._score_view(pixels)

    collate: Callable[[Sequence[ClassSample]], ClassBatch] = staticmethod(collate)

    def scorer(self) -> TopScores:
        """Top-1 and top-5. Raises NoLabelsError where an image has no class."""
        bare = np.flatnonzero(self.source.labels == UNLABELLED)
        if len(bare):
            raise NoLabelsError(f"{self.source.place(int(bare[0]))}: has no class; name images with classes to score")
        return TopScores(dict(zip(self.tokens, self.source.labels.tolist())), len(self.class_names))


class GivenImages(Source):
    """Images in memory, or named one by one; without classes."""

    def __init__(self, images: Sequence[Any]) -> None:
        self._images = list(images)
        if not self._images:
            raise DataError("images=[]: give at least one image")
        is_path = lambda image: isinstance(image, (str, Path))
        self.tokens = [str(image) if is_path(image) else str(i) for i, image in enumerate(self._images)]
        check_unique(self.tokens, "images")
        self.labels = np.full(len(self._images), UNLABELLED, np.int64)

    def pixels(self, index: int) -> NDArray[np.uint8]:
        return read_image(self._images[index], f"image {self.tokens[index]}")

    def read(self, index: int) -> bytes:
        raise NotImplementedError("images in memory have no files")


def _build_source(source: Mapping[str, Any], classes: Sequence[str] | None, num_classes: int | None) -> Source:
    options = dict(source)
    kind = options.pop("type")
    if isinstance(kind, str):
        kind = SOURCES[kind]
    if kind in (FolderSource, ListSource, ShardSource):
        options.setdefault("classes", classes)
    if kind is ListSource:
        options.setdefault("num_classes", num_classes if classes is None else len(classes))
    return kind(**options)


SOURCES: Mapping[str, type[Source]] = {
    kind.__name__: kind for kind in (FolderSource, ListSource, ShardSource, INaturalistSource)
}


def _without_type(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != "type"}
