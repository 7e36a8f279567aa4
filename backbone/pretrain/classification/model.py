"""A classifier that trains, around InternImage's image heads: mixup, cutmix, label smoothing, probabilities.

Recipe: InternImage release (arXiv 2211.05778), classification/. State dicts have the released keys, so checkpoints go
both ways, and an encoder for any other task loads them as they are.

Shape legend: B images, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....core.errors import CheckpointError, ConfigError, DataError
from ....core.image_answers import ImageAnswer
from ....core.registries import MODELS
from ....core.weights.names import StateDict
from ....core.weights.published_keys import keep_published_keys
from ...internimage.classifier import InternImageClassifier, InternImageMetaFormer
from ...internimage.conversion import adapt_internimage, describe_internimage, read_class_rows
from ..generators import seeded
from ..protocol import ImageModel
from .batch import UNLABELLED, ClassBatch


@MODELS.register_module()
class Classifier(ImageModel):
    """Image logits, their loss in training, probabilities otherwise.

    Args:
        network: an InternImageClassifier (images) or InternImageMetaFormer (images, date and place), or its config:
            ``dict(type=internimage, variant="T", task="classification", num_classes=10)``.
        label_smoothing: share of the target that is spread over all classes.
        mixup: arguments of timm's Mixup, such as ``dict(mixup_alpha=0.8, cutmix_alpha=1.0, prob=1.0,
            switch_prob=0.5)``; None mixes nothing. What is mixed how is a function of the samples' draws alone.
        class_rows: the classes to answer, by their numbers in the network's: a list, or a file with one number a line
            (the release's map22kto1k.txt has the ImageNet-1K classes of 21841). Training does not look at it.
    """

    task = "classes"

    def __init__(
        self,
        network: InternImageClassifier | Mapping[str, Any],
        label_smoothing: float = 0.0,
        mixup: Mapping[str, Any] | None = None,
        class_rows: str | Path | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.network: InternImageClassifier = MODELS.build(network) if isinstance(network, Mapping) else network
        if not isinstance(self.network, InternImageClassifier):
            raise TypeError(f"network must be an InternImageClassifier, got {type(self.network).__name__}")
        if self.network.num_classes < 1:
            raise ValueError("network.num_classes: a classifier needs at least one class")
        self.num_classes = self.network.num_classes
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be from 0 to below 1, got {label_smoothing!r}")
        self.label_smoothing = label_smoothing
        self.mixup = dict(mixup) if mixup else None
        self.class_rows = None if class_rows is None else self._rows(class_rows)
        keep_published_keys(self, {"network.": ""})

    def _rows(self, class_rows: str | Path | Sequence[int]) -> Tensor:
        is_file = isinstance(class_rows, (str, Path))
        rows = read_class_rows(class_rows) if is_file else torch.as_tensor(class_rows)
        if rows.numel() == 0 or rows.min() < 0 or rows.max() >= self.num_classes:
            where = f"{class_rows}: " if is_file else "class_rows: "
            raise CheckpointError(f"{where}must name classes from 0 to {self.num_classes - 1}, which the network has")
        return rows

    @property
    def encoder(self) -> InternImageClassifier:
        """The network, whose trunk any other task may start from."""
        return self.network

    def logits(self, batch: ClassBatch, images: Tensor | None = None) -> Tensor:
        """[B, K] of a batch, of ``images`` [B, 3, H, W] in place of its own if given."""
        images = batch.images if images is None else images
        if not isinstance(self.network, InternImageMetaFormer):
            return self.network(images)
        temporal, spatial = batch.temporal, batch.spatial
        if temporal is None or spatial is None:  # as of images whose date and place are not known
            temporal = images.new_zeros(len(images), self.network.TEMPORAL_DIM)
            spatial = images.new_zeros(len(images), self.network.SPATIAL_DIM)
        return self.network(images, temporal, spatial)

    def loss(self, batch: ClassBatch) -> dict[str, Tensor]:
        """``loss_class``, cross entropy with smoothed (and mixed) targets; ``top1`` of what was not mixed.

        Raises DataError for a label that is none of the network's classes, ConfigError for mixup on an odd batch.
        """
        self._check_labels(batch)
        images, targets = batch.images, batch.labels
        if self.mixup is None:
            logits = self.logits(batch)
            loss = F.cross_entropy(logits.float(), targets, label_smoothing=self.label_smoothing)
            return {"loss_class": loss, "top1": (logits.detach().argmax(1) == targets).float().mean()}
        if len(images) % 2:
            raise ConfigError(f"train_dataloader.batch_size: mixup needs an even batch, got {len(images)}")
        with seeded(*batch.draws):
            images, soft = self._mixer()(images.clone(), targets)  # soft: [B, K]
        return {"loss_class": F.cross_entropy(self.logits(batch, images).float(), soft.float())}

    def _mixer(self) -> Any:
        try:
            from timm.data import Mixup
        except ImportError as error:
            raise ConfigError(f"model.mixup needs timm ({error}): pip install 'drivestack[classification]'") from error
        return Mixup(**(self.mixup or {}), label_smoothing=self.label_smoothing, num_classes=self.num_classes)

    def _check_labels(self, batch: ClassBatch) -> None:
        wrong = ((batch.labels < 0) | (batch.labels >= self.num_classes)).nonzero()
        if len(wrong):
            token, label = batch.tokens[int(wrong[0])], int(batch.labels[int(wrong[0])])
            if label == UNLABELLED:
                raise DataError(f"image {token}: has no label, and training needs one")
            raise DataError(
                f"image {token}: class {label}, but the model has {self.num_classes} classes (0 to "
                f"{self.num_classes - 1}): set model.network.num_classes, or correct the labels"
            )

    @torch.no_grad()
    def predict(self, batch: ClassBatch) -> list[ImageAnswer]:
        logits = self.logits(batch).float()
        if self.class_rows is not None:
            logits = logits[:, self.class_rows.to(logits.device)]
        probabilities = logits.softmax(1).cpu().numpy()
        return [
            ImageAnswer(token, size_px, probabilities=own)
            for token, size_px, own in zip(batch.tokens, batch.sizes_px, probabilities)
        ]

    def adapt_checkpoint(self, state: StateDict) -> tuple[StateDict, list[str]]:
        """Bring released checkpoints of any task and layout to this model's keys; see load_checkpoint."""
        return adapt_internimage(self.network, state)

    def describe_checkpoint(self, state: StateDict) -> str | None:
        return describe_internimage(state)


def network_of(model: nn.Module) -> nn.Module:
    """The network itself of a Classifier, or the model that was given."""
    return model.network if isinstance(model, Classifier) else model
