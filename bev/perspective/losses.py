"""Losses of the perspective head (DD3D), as the released BEVFormer v2 computes them.

Three of its terms differ from what their names say. They set the balance of the released recipe, so they are kept:
``_corner_distance`` has no 1/beta in its quadratic branch (docs/quirks.md#corner-loss-jump); nothing caps a term at 20,
since upstream discards the clamped value (docs/quirks.md#perspective-losses-without-cap); attributes are a plain mean,
not weighted by centerness (docs/quirks.md#attribute-loss-is-a-plain-mean).

Shapes: I images, P locations, K classes, M positives.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..boxes.losses import ltrb_giou_loss, mean_over_ranks, sigmoid_focal_loss
from .geometry import CameraBoxes
from .targets import LocationTargets

NO_ATTRIBUTE = 3
COMPONENTS = {"quat": "rotation", "proj_ctr": "proj_ctr", "depth": "depth", "size": "size_wlh"}
"""Name of a 3D loss term: the field of CameraBoxes it trains."""


def _corner_distance(pred: Tensor, target: Tensor, beta: float) -> Tensor:
    """Mean over the 24 corner coordinates [M, 8, 3] of a smooth L1 that jumps at ``beta``; returns [M]."""
    difference = (pred - target).abs().flatten(1)
    return torch.where(difference < beta, 0.5 * difference**2, difference - 0.5 * beta).mean(1)


def normalisers(targets: LocationTargets | None, like: Tensor) -> tuple[Tensor, Tensor]:
    """How many locations see an object, and the sum of their centerness, each a mean over ranks and above zero.

    targets: None where no image of this rank is labelled: other ranks wait for its numbers all the same.
    """
    count = 0.0 if targets is None else float(len(targets.image))
    weight = like.new_zeros(()) if targets is None else targets.centerness.sum()
    return mean_over_ranks(like.new_tensor(count)).clamp(min=1), mean_over_ranks(weight).clamp(min=1e-6)


def losses_2d(
    logits: Tensor, box2d: Tensor, centerness: Tensor, targets: LocationTargets
) -> tuple[dict[str, Tensor], Tensor]:
    """Class, box and centerness terms, and the normaliser Z of everything weighted by centerness.

    logits [I, K, P]; box2d [M, 4] and centerness [M] at the positives.
    """
    one_hot = torch.zeros_like(logits)
    one_hot[targets.image, targets.labels[targets.image, targets.location], targets.location] = 1
    num_positive, total_weight = normalisers(targets, logits)
    weight = targets.centerness  # [M]
    return {
        "loss_cls": sigmoid_focal_loss(logits, one_hot).sum() / num_positive,
        "loss_box2d_reg": (ltrb_giou_loss(box2d, targets.ltrb) * weight).sum() / total_weight,
        "loss_centerness": F.binary_cross_entropy_with_logits(centerness, weight, reduction="sum") / num_positive,
    }, total_weight


def losses_3d(
    pred: CameraBoxes,
    confidence: Tensor,
    target: CameraBoxes,
    weight: Tensor,
    total_weight: Tensor,
    *,
    box_weight: float = 2.0,
    confidence_weight: float = 1.0,
    beta: float = 0.05,
) -> dict[str, Tensor]:
    """Disentangled box terms (Simonelli et al., ICCV 2019): the labelled box with one component predicted.

    pred, target: M boxes; confidence [M] logits, trained towards exp(-mean corner error); weight [M] centerness.
    """
    corners = target.corners
    losses = {}
    for name, component in COMPONENTS.items():
        distance = _corner_distance(target.with_component(component, pred).corners, corners, beta)
        losses[f"loss_box3d_{name}"] = (distance * weight).sum() / total_weight * box_weight
    with torch.no_grad():
        likeness = torch.exp(-(pred.corners - corners).abs().flatten(1).mean(1))
    cross_entropy = F.binary_cross_entropy_with_logits(confidence, likeness, reduction="none")
    losses["loss_conf3d"] = (cross_entropy * weight).sum() / total_weight * confidence_weight
    return losses


def losses_attributes(
    logits: Tensor,
    speed: Tensor,
    attributes: Tensor,
    speed_target: Tensor,
    weight: Tensor,
    *,
    attribute_weight: float = 0.2,
    speed_weight: float = 0.2,
    beta: float = 0.05,
) -> dict[str, Tensor]:
    """Attribute and speed terms; objects without an attribute or with unknown (NaN) speed do not count.

    logits [M, 3]; speed [M]; attributes [M], 3 for none; speed_target [M] m/s; weight [M] centerness.
    """
    has_attribute, known = attributes != NO_ATTRIBUTE, speed_target.isfinite()
    # Empty selections give a zero that stays in the graph, so that DDP sees every parameter used.
    attribute = logits.sum() * 0
    if has_attribute.any():
        attribute = attribute + F.cross_entropy(logits[has_attribute], attributes[has_attribute])
    distance = F.smooth_l1_loss(speed, torch.where(known, speed_target, 0), reduction="none", beta=beta)
    known_weight = weight * known
    return {
        "loss_attr": attribute * attribute_weight,
        "loss_speed": (distance * known_weight).sum() / known_weight.sum().clamp(min=1e-6) * speed_weight,
    }
