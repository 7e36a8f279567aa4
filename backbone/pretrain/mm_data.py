"""Images prepared by mmdet's and mmseg's transforms as data sets of our own training: a sample is a function of its
index and draw alone.

A data set has a source, which knows images and labels (detection/coco.py, segmentation/masks.py, or any data set of
the toolboxes by toolbox_source.py), and a pipeline, which makes samples of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from mmengine.dataset import Compose, pseudo_collate
from numpy.typing import NDArray
from torch.utils.data import Dataset

from ...core.errors import ConfigError, DataError, NoLabelsError, library_errors
from ...core.registries import DATASETS
from .generators import seeded
from .openmmlab import MMBatch, toolbox
from .protocol import Scorer
from .reading import rgb_of

MOST_TRIES = 100
"""Images that are tried for one sample: augmentation may leave nothing of an image's labels."""


class Source(Protocol):
    """Images of a data set and what is known about them."""

    class_names: Sequence[str]
    tokens: Sequence[str]
    """Path of each image relative to the set's images."""

    def __len__(self) -> int: ...

    def info(self, index: int) -> dict[str, Any]:
        """What a pipeline starts with: ``img_path``, and labels as mmdet or mmseg have them."""

    def scorer(self) -> Scorer:
        """Raises NoLabelsError where the set has no labels."""


@DATASETS.register_module()
class MMData(Dataset):
    """A data set of images for `MMModel` (backbone/pretrain/protocol.py).

    Args:
        pipeline: transforms of mmdet or mmseg, beginning with `ReadImage`; those of training read labels, too.
        source: config of a Source.
        task: "instances" or "segmentation".
        classes: names of the classes; None takes the source's.
        images: paths, or uint8 RGB arrays [H, W, 3], in place of the source, which is then not opened.
    """

    def __init__(
        self,
        pipeline: Sequence[Any],
        source: Mapping[str, Any] | None = None,
        task: str = "instances",
        classes: Sequence[str] | None = None,
        images: Sequence[Any] | None = None,
    ):
        self.task = task
        self.source: Source
        self.source = _built(source, task, classes) if images is None else _Given(images)
        self.class_names = tuple(classes) if classes is not None else tuple(self._names(source))
        self._check_names(self.source.class_names)
        self.tokens = list(self.source.tokens)
        self.scene_tokens = [""] * len(self.tokens)
        with toolbox(task):
            self.pipeline = Compose([step if callable(step) else dict(step) for step in pipeline])

    def _names(self, source: Mapping[str, Any] | None) -> Sequence[str]:
        """The source's names of classes, without opening its files where images are given."""
        if not isinstance(self.source, _Given):
            return self.source.class_names
        stated = getattr((source or {}).get("type"), "stated_names", None)
        return () if stated is None else stated({key: value for key, value in (source or {}).items() if key != "type"})

    def _check_names(self, own: Sequence[str]) -> None:
        if own and tuple(own) != self.class_names:
            raise ConfigError(
                f"classes of the config ({_short(self.class_names)}) are not those of the data ({_short(own)}): leave "
                "them out, or correct the data"
            )

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, item: int | tuple[int, int]) -> dict[str, Any]:
        index, draw = item if isinstance(item, tuple) else (item, 0)
        with seeded(draw):
            for _ in range(MOST_TRIES):
                sample = self._prepared(index)
                if sample is not None:
                    return {**sample, "token": self.tokens[index]}
                index = int(np.random.randint(len(self)))
        raise DataError(
            f"{self.tokens[index]}: augmentation left no label of {MOST_TRIES} images; use larger crops, or fewer"
        )

    def _prepared(self, index: int) -> dict[str, Any] | None:
        fix = "correct its labels, or take it out; with --debug: where"
        with library_errors(DataError, f"image {self.tokens[index]}", fix):
            return self.pipeline(self.source.info(index))

    def image(self, index: int) -> NDArray[np.uint8]:
        """The image as it lies on disk, or was given: [H, W, 3] RGB."""
        return rgb_of(self.source.info(index))

    def collate(self, samples: Sequence[dict[str, Any]]) -> MMBatch:
        return collate_images(samples)

    def scorer(self) -> Scorer:
        return self.source.scorer()


def collate_images(samples: Sequence[dict[str, Any]]) -> MMBatch:
    """Samples of `MMData` as one batch."""
    tokens = [sample["token"] for sample in samples]
    return MMBatch(pseudo_collate([{k: v for k, v in sample.items() if k != "token"} for sample in samples]), tokens)


def _built(source: Mapping[str, Any] | None, task: str, classes: Sequence[str] | None) -> Source:
    if source is None:
        raise ConfigError("dataset.source: missing; it says where images and labels are")
    options = dict(source)
    if classes is not None and getattr(options.get("type"), "chooses_classes", False):
        options.setdefault("classes", classes)
    with toolbox(task):
        return DATASETS.build(options)


def _short(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f", ... {len(names)} in all" if len(names) > 4 else "")


class _Given:
    """Images in memory or by path, without labels."""

    class_names: Sequence[str] = ()

    def __init__(self, images: Sequence[Any]):
        self.images = list(images)
        is_path = [isinstance(image, (str, Path)) for image in self.images]
        self.tokens: Sequence[str] = [
            str(image) if named else str(i) for i, (image, named) in enumerate(zip(self.images, is_path))
        ]

    def __len__(self) -> int:
        return len(self.images)

    def info(self, index: int) -> dict[str, Any]:
        image = self.images[index]
        array = None if isinstance(image, (str, Path)) else image
        return {"img_path": self.tokens[index], "img_id": index, "img_array": array, "seg_fields": []}

    def scorer(self) -> Scorer:
        raise NoLabelsError("these images have no labels; name a labelled set")
