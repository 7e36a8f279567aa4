"""A data set and a model of images small enough to train in a second: coloured squares on grey, and what they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from drivestack.backbone.pretrain.protocol import ImageModel
from drivestack.core.decode import read_rgb
from drivestack.core.errors import DataError, NoLabelsError
from drivestack.core.image_answers import ImageAnswer, Instances

CLASSES = ("red", "green", "blue")
SIZE = 16


@dataclass
class SquareBatch:
    images: Tensor
    labels: Tensor
    tokens: list[str]

    def to(self, device: torch.device | str) -> SquareBatch:
        return SquareBatch(self.images.to(device), self.labels.to(device), self.tokens)


class Squares:
    """``count`` images, or those given."""

    class_names = CLASSES

    def __init__(self, count: int = 24, images: Sequence[Any] | None = None) -> None:
        self.images = images
        self.tokens = [str(i) for i in range(count)] if images is None else [_token(x, i) for i, x in enumerate(images)]
        self.scene_tokens = [""] * len(self.tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    def image(self, index: int) -> np.ndarray:
        if self.images is None:
            return (self[index][0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
        given = self.images[index]
        return given if isinstance(given, np.ndarray) else read_rgb(given)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[Tensor, int, str]:
        index, draw = item if isinstance(item, tuple) else (item, 0)
        if self.images is not None:
            return torch.from_numpy(self.image(index).copy()).permute(2, 0, 1) / 255, -1, self.tokens[index]
        label = index % 3
        rng = np.random.default_rng([index, draw])
        image = torch.from_numpy(rng.uniform(0.4, 0.6, (3, SIZE, SIZE)).astype(np.float32))
        image[label, 4:12, 4:12] = 1.0
        return image, label, self.tokens[index]

    @staticmethod
    def collate(samples: Sequence[tuple[Tensor, int, str]]) -> SquareBatch:
        images, labels, tokens = zip(*samples)
        return SquareBatch(torch.stack(images), torch.tensor(labels), list(tokens))

    def scorer(self) -> TopOne:
        if self.images is not None:
            raise NoLabelsError("these images have no labels; name a labelled set")
        return TopOne({token: i % 3 for i, token in enumerate(self.tokens)})


def _token(image: Any, number: int) -> str:
    return str(number) if isinstance(image, np.ndarray) else str(image)


class TopOne:
    def __init__(self, labels: dict[str, int]) -> None:
        self.left, self.right, self.count = dict(labels), 0, len(labels)

    def add(self, answers: Iterable[ImageAnswer]) -> None:
        for answer in answers:
            if answer.token not in self.left:
                raise DataError(f"image {answer.token}: not of the set, or answered before")
            assert answer.probabilities is not None
            self.right += int(answer.probabilities.argmax()) == self.left.pop(answer.token)

    def scores(self) -> dict[str, float]:
        if self.left:
            raise DataError(f"{len(self.left)} images were not answered, such as {next(iter(self.left))}")
        return {"top1": self.right / self.count}


class SquareModel(ImageModel):
    """Answers everything that an image model may, from the mean colour."""

    task = "classes"

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def logits(self, batch: SquareBatch) -> Tensor:
        return self.layer(batch.images.mean((2, 3)) * 4)

    def loss(self, batch: SquareBatch) -> dict[str, Tensor]:
        return {"loss_class": nn.functional.cross_entropy(self.logits(batch), batch.labels)}

    def predict(self, batch: SquareBatch) -> list[ImageAnswer]:
        found = self.logits(batch).softmax(1).cpu().numpy()
        height, width = batch.images.shape[2:]
        mask = np.zeros((1, height, width), bool)
        mask[0, 4:12, 4:12] = True
        box = np.array([[4, 4, 12, 12]], np.float32)
        return [
            ImageAnswer(
                token,
                (width, height),
                own,
                Instances(box, own.max(keepdims=True), own.argmax(keepdims=True), mask),
                mask[0].astype(np.uint8),
            )
            for token, own in zip(batch.tokens, found)
        ]
