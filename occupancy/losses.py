"""Losses over voxels: cross entropy, Lovasz-softmax, and the scene-class affinity terms of MonoScene.

All work on the voxels that count, flattened: a mask is applied by choosing them first, so that nothing of the size of
the whole grid is ever built. Shapes: V voxels, C classes.

Sources: Lovasz-softmax, arXiv 1705.08790, algorithm 1; scene-class affinity, arXiv 2112.00726, section 3.3.1;
class weights 1 / ln(frequency), as MonoScene has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..bev.boxes.losses import mean_over_ranks
from ..core.errors import ConfigError, DataError
from ..core.labels import OccupancyTargets
from .evaluation.miou import MASKS

MIXED = "mixed"
TERMS = ("cross_entropy", "lovasz", "semantic_affinity", "geometric_affinity")

OCC3D_FREQUENCY = (
    944004, 1897170, 152386, 2391677, 16957802, 724139, 189027, 2074468, 413451, 2384460, 5916653, 175883646, 4275424,
    51393615, 61411620, 105975596, 116424404, 1892500630,
)  # fmt: skip
"""Voxels of each class in the Occ3D-nuScenes training set, id 17 (free) last."""


def log_frequency_weights(frequency: Sequence[int] = OCC3D_FREQUENCY) -> Tensor:
    """[C] weights 1 / ln(frequency + 0.001), at most 1: of a class that (almost) never occurs."""
    return 1.0 / torch.log(torch.tensor(frequency, dtype=torch.float64) + 0.001).clamp(min=1.0).float()


def cross_entropy(logits: Tensor, target: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Mean over voxels of logits [V, C] against target [V]; with weights the weighted mean. Zero for V = 0."""
    if not len(target):
        return logits.sum() * 0.0
    return F.cross_entropy(logits, target, class_weights)


def lovasz_softmax(probabilities: Tensor, target: Tensor) -> Tensor:
    """Mean over the classes in ``target`` [V] of the Lovasz extension of 1 - IoU; probabilities [V, C]."""
    losses = []
    for c in target.unique().tolist():
        is_class = (target == c).to(probabilities.dtype)
        errors = (is_class - probabilities[:, c]).abs()
        order = _descending(errors.detach())
        truth = is_class[order]
        missed = truth.sum() - truth.cumsum(0)
        union = truth.sum() + (1 - truth).cumsum(0)
        jaccard = 1 - missed / union
        gradient = torch.cat([jaccard[:1], jaccard.diff()])  # of the extension along the sorted errors
        losses.append((errors * torch.empty_like(gradient).scatter_(0, order, gradient)).sum())
    return torch.stack(losses).mean() if losses else probabilities.sum() * 0.0


def _descending(values: Tensor) -> Tensor:
    """Indices that sort [V], equal values in any order. NumPy needs half of torch's time on a CPU."""
    if values.is_cpu:
        return torch.from_numpy(np.argsort(-values.numpy()))
    return values.argsort(descending=True)


def scene_class_affinity(probabilities: Tensor, target: Tensor) -> Tensor:
    """-log of precision, recall and specificity of each class in ``target`` [V], mean over classes (semantic term)."""
    losses = [_affinity(probabilities[:, c], target == c) for c in target.unique().tolist()]
    return torch.stack(losses).mean() if losses else probabilities.sum() * 0.0


def geometric_affinity(probabilities: Tensor, target: Tensor, free: int) -> Tensor:
    """The same for the one question whether a voxel is occupied (geometric term)."""
    if not len(target):
        return probabilities.sum() * 0.0
    return _affinity(1 - probabilities[:, free], target != free)


def _affinity(probability: Tensor, truth: Tensor) -> Tensor:
    """Binary terms that exist: no recall without positives, no specificity without negatives."""
    truth = truth.to(probability.dtype)
    hit, positives, claimed = (probability * truth).sum(), truth.sum(), probability.sum()
    negatives = (1 - truth).sum()
    terms = []
    if positives > 0:
        terms += [_log_loss(hit / claimed.clamp(min=1e-6)), _log_loss(hit / positives)]
    if negatives > 0:
        terms.append(_log_loss(((1 - probability) * (1 - truth)).sum() / negatives))
    return torch.stack(terms).sum()


def _log_loss(ratio: Tensor) -> Tensor:
    return -ratio.clamp(min=1e-6, max=1.0).log()


class VoxelLoss(nn.Module):
    """The terms that a head learns from, over the voxels that count.

    num_classes: K, ``free`` among them.
    mask: voxels that count: those the cameras see ("camera"), those a LiDAR ray met ("lidar"), or all ("none");
        "mixed": as "camera", and besides, times ``hidden_weight``, those that a LiDAR ray met and no camera sees.
    loss_weights: factor of each term that is used, of TERMS; default: cross entropy alone.
    class_weights: K factors of the cross entropy, "log_frequency" for those that follow from ``class_frequency``
        (``log_frequency_weights``), or None.
    class_frequency: voxels of each class in the training data; default Occ3D-nuScenes', for as many classes. The
        config's ``counts_by_class`` has them counted (engine/from_data.py).

    Raises ConfigError for a mask or term that does not exist, a negative weight, or numbers of another length than K.
    """

    def __init__(
        self,
        num_classes: int = 18,
        free: int = 17,
        mask: str = "camera",
        loss_weights: Mapping[str, float] | None = None,
        class_weights: Sequence[float] | str | None = None,
        hidden_weight: float = 0.2,
        class_frequency: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.loss_weights = dict({"cross_entropy": 1.0} if loss_weights is None else loss_weights)
        if unknown := set(self.loss_weights) - set(TERMS):
            raise ConfigError(f"loss_weights: {sorted(unknown)[0]!r} is no loss; choose from {', '.join(TERMS)}")
        if mask not in (*MASKS, MIXED):
            raise ConfigError(f"mask must be one of {', '.join((*MASKS, MIXED))}, got {mask!r}")
        if not hidden_weight >= 0:
            raise ConfigError(f"hidden_weight must not be negative, got {hidden_weight!r}")
        if isinstance(class_weights, str) and class_weights != "log_frequency":
            raise ConfigError(f"class_weights: {class_weights!r} is no rule; write 'log_frequency', or the numbers")
        if class_frequency is None and num_classes == len(OCC3D_FREQUENCY):
            class_frequency = OCC3D_FREQUENCY
        if class_frequency is not None and len(class_frequency) != num_classes:
            raise ConfigError(f"{len(class_frequency)} class_frequency for {num_classes} classes")
        self.class_frequency, self.by_frequency = class_frequency, isinstance(class_weights, str)
        given: Sequence[float] | Tensor | None = None
        if not isinstance(class_weights, str):
            given = class_weights
        elif class_frequency is not None:
            given = log_frequency_weights(class_frequency)
        if given is not None and len(given) != num_classes:
            raise ConfigError(f"{len(given)} class_weights for {num_classes} classes")
        self.mask, self.free, self.hidden_weight = mask, free, hidden_weight
        weights = None if given is None else torch.as_tensor(given, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    def demand_frequency(self) -> None:
        """Raises ConfigError where nobody said how often these classes occur; a model that answers needs no numbers."""
        if self.class_frequency is None:
            raise ConfigError(
                "the occupancy head's class_frequency is needed for classes that are not Occ3D-nuScenes': give it, or "
                "have it counted (counts_by_class)"
            )

    def counts(self, target: OccupancyTargets) -> Tensor:
        """[X, Y, Z] bool: the voxels that count. Raises DataError where the labels have no masks, but one is used."""
        if self.mask == "none":
            return torch.ones_like(target.semantics, dtype=torch.bool)
        chosen = target.mask_lidar if self.mask == "lidar" else target.mask_camera
        if chosen is None:
            raise DataError(
                f"the voxel labels have no {'camera' if self.mask == MIXED else self.mask} mask (OpenOcc's have none): "
                "train with mask='none' of the occupancy head, or fetch Occ3D's labels"
            )
        return chosen

    @property
    def has_hidden(self) -> bool:
        """Whether there is something to learn from ``hidden`` voxels."""
        return self.mask == MIXED and self.hidden_weight > 0

    @staticmethod
    def hidden(target: OccupancyTargets) -> Tensor:
        """[X, Y, Z] bool: voxels that a LiDAR ray met and no camera sees. The labels have masks (``counts``)."""
        assert target.mask_lidar is not None and target.mask_camera is not None
        return target.mask_lidar & ~target.mask_camera

    def forward(
        self, samples: Sequence[tuple[Tensor, Tensor]], nothing: Tensor, hidden: bool = False
    ) -> dict[str, Tensor]:
        """Weighted terms ``loss_occ_*``, each the mean over all ranks' samples: logits [V, K] and classes [V] of the
        voxels that count. Without samples ``nothing``, a zero that keeps the graph.

        hidden: the voxels are those of ``hidden``; the terms are ``loss_occ_hidden_*`` and have its weight, too.
        """
        if self.by_frequency:
            self.demand_frequency()
        found = [self._terms(logits.float(), truth.long()) for logits, truth in samples]
        prefix, factor = ("loss_occ_hidden_", self.hidden_weight) if hidden else ("loss_occ_", 1.0)
        count = mean_over_ranks(torch.tensor(float(len(found)), device=nothing.device))
        mean = lambda name: torch.stack([terms[name] for terms in found]).sum() / count if found else nothing
        return {f"{prefix}{name}": weight * factor * mean(name) for name, weight in self.loss_weights.items()}

    def _terms(self, logits: Tensor, truth: Tensor) -> dict[str, Tensor]:
        out = {}
        probabilities = logits.softmax(-1) if set(self.loss_weights) - {"cross_entropy"} else None
        for name in self.loss_weights:
            if name == "cross_entropy":
                out[name] = cross_entropy(logits, truth, self.class_weights)
            elif name == "lovasz":
                out[name] = lovasz_softmax(probabilities, truth)
            elif name == "semantic_affinity":
                out[name] = scene_class_affinity(probabilities, truth)
            else:
                out[name] = geometric_affinity(probabilities, truth, self.free)
        return out
