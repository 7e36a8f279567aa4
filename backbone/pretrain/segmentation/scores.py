"""Mean intersection over union of the classes, image by image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from ....core.errors import DataError
from ....core.image_answers import ImageAnswer
from ....core.once import warn_once
from ..reading import IGNORED


class MeanIoU:
    """mIoU, mean accuracy and accuracy over all pixels with a class (backbone/pretrain/protocol.Scorer).

    labels: index of an image and its (height, width) -> its classes [H, W], IGNORED for none. Classes that are neither
    in the labels nor in the answers do not count, as in mmseg.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        tokens: Sequence[str],
        labels: Callable[[int, tuple[int, int]], NDArray[np.uint8]],
    ):
        self.class_names, self.labels = tuple(class_names), labels
        self._open = {token: i for i, token in enumerate(tokens)}
        self._known = set(tokens)
        self.confusion = np.zeros((len(class_names), len(class_names) + 1), np.int64)
        """Pixels by [labelled, answered] class; the last column is for answers of no class of the set."""

    def add(self, answers: Iterable[ImageAnswer]) -> None:
        for answer in answers:
            if answer.token not in self._known:
                raise DataError(f"image {answer.token}: not of the set that is scored")
            if answer.token not in self._open:
                raise DataError(f"image {answer.token}: answered twice")
            if answer.segmentation is None:
                raise DataError(f"image {answer.token}: answer without classes of pixels; use a segmentor")
            self._count(self._open.pop(answer.token), answer.segmentation)

    def _count(self, index: int, found: NDArray[np.uint8]) -> None:
        labels = self.labels(index, (found.shape[0], found.shape[1]))
        counted = labels != IGNORED
        size = len(self.class_names)
        answered = np.minimum(found[counted], size).astype(np.int64)
        if (answered == size).any():
            warn_once(
                f"answers of class {int(found[counted].max())}, the set has {size} classes: such pixels count as wrong"
            )
        pairs = labels[counted].astype(np.int64) * (size + 1) + answered
        self.confusion += np.bincount(pairs, minlength=size * (size + 1)).reshape(size, size + 1)

    def scores(self) -> dict[str, float]:
        if self._open:
            raise DataError(f"{len(self._open)} images were not answered, such as {next(iter(self._open))}")
        right = np.diag(self.confusion).astype(float)
        labelled, answered = self.confusion.sum(1), self.confusion.sum(0)[:-1]
        with np.errstate(invalid="ignore"):
            iou, accuracy = right / (labelled + answered - right), right / labelled
            total = float(right.sum() / labelled.sum())
        each = {f"IoU {name}": float(value) for name, value in zip(self.class_names, iou)}
        return {"mIoU": _mean(iou), "mean accuracy": _mean(accuracy), "accuracy": total, **each}


def _mean(values: NDArray[np.floating]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")
