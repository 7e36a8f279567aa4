"""Top-1 and top-5 of a classification set, added up as answers come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from ....core.errors import DataError
from ....core.image_answers import ImageAnswer


class TopScores:
    """labels: class of each image by its token; num_classes: what probabilities must be for. Memory: one bit an image.

    Of classes with equal probability the first counts as more probable.
    """

    def __init__(self, labels: Mapping[str, int], num_classes: int) -> None:
        self._labels, self._num_classes = labels, num_classes
        self._left = set(labels)
        self._right = {1: 0, 5: 0}

    def add(self, answers: Iterable[ImageAnswer]) -> None:
        """Raises DataError for an image that is not of the set or comes twice, and for another number of classes."""
        for answer in answers:
            if answer.token not in self._left:
                known = answer.token in self._labels
                problem = "answered twice" if known else "not of this set"
                raise DataError(f"image {answer.token}: {problem}; give one answer for each image of the set")
            probabilities = answer.probabilities
            if probabilities is None or probabilities.shape != (self._num_classes,):
                count = "no" if probabilities is None else len(probabilities)
                raise DataError(
                    f"image {answer.token}: the model answers {count} classes, the data have {self._num_classes}: use "
                    "the data or the model of the same classes (class_rows picks some of a model's)"
                )
            self._left.remove(answer.token)
            own = probabilities[label := self._labels[answer.token]]
            ahead = int((probabilities > own).sum() + (probabilities[:label] == own).sum())
            if not np.isfinite(own):
                raise DataError(f"image {answer.token}: its probabilities are not finite; the weights are damaged")
            for most in self._right:
                self._right[most] += ahead < most

    def scores(self) -> dict[str, float]:
        """``top1`` and ``top5``, shares from 0 to 1. Raises DataError where images have not been answered."""
        if self._left:
            raise DataError(
                f"{len(self._left)} of {len(self._labels)} images have no answer, such as {min(self._left)}"
            )
        return {f"top{most}": count / len(self._labels) for most, count in self._right.items()}
