"""Losses over voxels: cross entropy, Lovasz-softmax, and the scene-class affinity terms of MonoScene.

All work on the voxels that count, flattened: a mask is applied by choosing them first, so that nothing of the size of
the whole grid is ever built. Shapes: V voxels, C classes.

Sources: Lovasz-softmax, arXiv 1705.08790, algorithm 1; scene-class affinity, arXiv 2112.00726, section 3.3.1;
class weights 1 / ln(frequency), as MonoScene has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import ConfigError, DataError
from ..core.labels import OccupancyTargets
from .evaluation.miou import MASKS

TERMS = ("cross_entropy", "lovasz", "semantic_affinity", "geometric_affinity")

OCC3D_FREQUENCY = (
    944004, 1897170, 152386, 2391677, 16957802, 724139, 189027, 2074468, 413451, 2384460, 5916653, 175883646, 4275424,
    51393615, 61411620, 105975596, 116424404, 1892500630,
)  # fmt: skip
"""Voxels of each class in the Occ3D-nuScenes training set, id 17 (free) last."""


def log_frequency_weights(frequency: tuple[int, ...] = OCC3D_FREQUENCY) -> Tensor:
    """[C] weights 1 / ln(frequency + 0.001)."""
    return 1.0 / torch.log(torch.tensor(frequency, dtype=torch.float64) + 0.001).float()


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
        errors, order = (is_class - probabilities[:, c]).abs().sort(descending=True)
        truth = is_class[order]
        missed = truth.sum() - truth.cumsum(0)
        union = truth.sum() + (1 - truth).cumsum(0)
        jaccard = 1 - missed / union
        gradient = torch.cat([jaccard[:1], jaccard.diff()])  # of the extension along the sorted errors
        losses.append((errors * gradient).sum())
    return torch.stack(losses).mean() if losses else probabilities.sum() * 0.0


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
    mask: voxels that count: those the cameras see, those a LiDAR ray met, or all.
    loss_weights: factor of each term that is used, of TERMS; default: cross entropy alone.
    class_weights: K factors of the cross entropy, "log_frequency" for those of Occ3D-nuScenes
        (``log_frequency_weights``), or None.

    Raises ConfigError for a mask or term that does not exist, or weights of another length than K.
    """

    def __init__(
        self,
        num_classes: int = 18,
        free: int = 17,
        mask: str = "camera",
        loss_weights: Mapping[str, float] | None = None,
        class_weights: Sequence[float] | str | None = None,
    ) -> None:
        super().__init__()
        self.loss_weights = dict({"cross_entropy": 1.0} if loss_weights is None else loss_weights)
        if unknown := set(self.loss_weights) - set(TERMS):
            raise ConfigError(f"loss_weights: {sorted(unknown)[0]!r} is no loss; choose from {', '.join(TERMS)}")
        if mask not in MASKS:
            raise ConfigError(f"mask must be one of {', '.join(MASKS)}, got {mask!r}")
        if isinstance(class_weights, str) and class_weights != "log_frequency":
            raise ConfigError(f"class_weights: {class_weights!r} is no rule; write 'log_frequency', or the numbers")
        given = log_frequency_weights() if isinstance(class_weights, str) else class_weights
        if given is not None and len(given) != num_classes:
            raise ConfigError(f"{len(given)} class_weights for {num_classes} classes")
        self.mask, self.free = mask, free
        weights = None if given is None else torch.as_tensor(given, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    def counts(self, target: OccupancyTargets) -> Tensor:
        """[X, Y, Z] bool: the voxels that count. Raises DataError where the labels have no masks, but one is used."""
        if self.mask == "none":
            return torch.ones_like(target.semantics, dtype=torch.bool)
        chosen = target.mask_camera if self.mask == "camera" else target.mask_lidar
        if chosen is None:
            raise DataError(
                f"the voxel labels have no {self.mask} mask (OpenOcc's have none): train with mask='none' of the "
                "occupancy head, or fetch Occ3D's labels"
            )
        return chosen

    def forward(self, samples: Sequence[tuple[Tensor, Tensor]], nothing: Tensor) -> dict[str, Tensor]:
        """Weighted terms ``loss_occ_*``, each the mean over samples: logits [V, K] and classes [V] of the voxels that
        count. Without samples ``nothing``, a zero that keeps the graph.
        """
        found = [self._terms(logits.float(), truth.long()) for logits, truth in samples]
        return {
            f"loss_occ_{name}": weight * (torch.stack([terms[name] for terms in found]).mean() if found else nothing)
            for name, weight in self.loss_weights.items()
        }

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
