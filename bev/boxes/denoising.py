"""Ray denoising: which of several places on one line of sight is the object's? Object queries of training only.

A camera sees where an object is in its image, not how far; false boxes lie on the line of sight before and behind it.
So each labelled object gives one query near its place and some further along the line from a camera that sees it; the
decoder is taught to keep the first and to call the others background. Source: RayDN, arXiv 2402.03634; here the line
lies in the ground plane, the good query is drawn on both sides of the object, and background queries keep their
distance. A decoding of their own keeps the queries from the model's others (docs/teachers.md).

Shapes: B batch, N cameras, C channels, n labelled boxes, M most objects of a sample, R = M * (1 + negatives) queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.errors import ConfigError
from ...core.registries import MODELS
from ..map.encoder import project_to_images
from .box_coder import CODE_SIZE, encode_boxes, normalise_points
from .head import BoxHead, QueryOutputs
from .losses import mean_over_ranks, sigmoid_focal_loss
from .proposals import Proposals

_INSIDE = 0.001  # from the border of the range, as proposals have it


@dataclass(frozen=True)
class RayQueries:
    """Where the queries of a batch are, and what they have to say."""

    proposals: Proposals
    """R places, without scores and boxes; ``valid``: not padding."""
    codes: Tensor
    """[B, R, 10] the object's box (box_coder), 0 in the padding."""
    labels: Tensor
    """[B, R] long, the object's class."""
    good: Tensor
    """[B, R] bool: has to say that class; other valid ones have to say background."""
    has_box: Tensor
    """[B, R] bool: near enough to learn the object's box."""


@dataclass(frozen=True)
class RayOutputs:
    rays: RayQueries
    queries: QueryOutputs


@MODELS.register_module()
class RayDenoising(nn.Module):
    """Makes the queries, and the loss of what the decoder says of them; no parameters.

    num_classes, pc_range: of the box head. max_objects: of a sample, drawn anew each time where it has more.
    negatives: background queries of an object. reach: r of their shift (2 Beta(8, 2) - 1) r, in units of the object's
    mean half side (l + w + h) / 6: mostly behind it. positive_reach: the good query's is uniform within; a background
    query's is not less. box_within_m: background queries shifted less learn the box, too. weight: of the loss terms.

    Objects that no camera sees, or only at the very place of the camera, get one query at their place.
    Random numbers are torch's, which the training loop seeds for every iteration.
    """

    def __init__(
        self,
        num_classes: int,
        pc_range: Sequence[float],
        max_objects: int = 24,
        negatives: int = 3,
        reach: float = 3.0,
        positive_reach: float = 0.75,
        box_within_m: float = 2.0,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        if max_objects < 1 or negatives < 0 or not 0 <= positive_reach <= reach:
            raise ConfigError(
                f"ray denoising: max_objects {max_objects} must be at least 1, negatives {negatives} at least 0, and "
                f"positive_reach {positive_reach} from 0 to reach {reach}"
            )
        self.num_classes, self.max_objects, self.negatives, self.weight = num_classes, max_objects, negatives, weight
        self.point_range = tuple(map(float, pc_range))
        self.reach, self.positive_reach, self.box_within_m = reach, positive_reach, box_within_m
        self.register_buffer("pc_range", torch.tensor(pc_range, dtype=torch.float32), persistent=False)

    @torch.no_grad()
    def queries(self, batch: Batch) -> RayQueries | None:
        """Queries of a labelled batch, padded to the sample with most; None where there is no object."""
        found = [
            self._of_sample(batch, b) if boxes is not None and len(boxes) else None
            for b, boxes in enumerate(batch.gt_boxes)
        ]
        longest = max((len(own[0]) for own in found if own is not None), default=0)
        if not longest:
            return None
        device, shape = batch.images.device, (len(found), longest)
        place = torch.full((*shape, 3), 0.5, device=device)
        codes = torch.zeros(*shape, CODE_SIZE, device=device)
        labels = torch.zeros(shape, dtype=torch.long, device=device)
        valid, good, has_box = (torch.zeros(shape, dtype=torch.bool, device=device) for _ in range(3))
        for b, own in enumerate(found):
            if own is None:
                continue
            count = len(own[0])
            for target, values in zip((place, codes, labels, valid, good, has_box), own):
                target[b, :count] = values
        nothing = place.new_zeros(*shape, self.num_classes), torch.zeros_like(codes)
        proposals = Proposals(place, scores=nothing[0], valid=valid, codes=nothing[1])
        return RayQueries(proposals, codes, labels, good, has_box)

    def _of_sample(self, batch: Batch, b: int) -> tuple[Tensor, ...]:
        """Places [R, 3] in (0, 1), codes [R, 10], labels [R], and [R] bool: valid, good, has a box."""
        boxes, labels = batch.gt_boxes[b], batch.gt_labels[b]
        assert boxes is not None and labels is not None
        boxes = boxes.float()
        if len(boxes) > self.max_objects:
            chosen = torch.randperm(len(boxes))[: self.max_objects].to(boxes.device)
            boxes, labels = boxes[chosen], labels[chosen]
        direction, seen = self.lines_of_sight(batch, b, boxes[:, :3])
        shift_m = self.shifts(boxes[:, 3:6])  # [n, 1 + negatives]
        shift_m = torch.where(seen[:, None], shift_m, 0.0)
        place = boxes[:, None, :3].repeat(1, shift_m.shape[1], 1)
        place[..., :2] += shift_m[..., None] * direction[:, None]
        valid = seen[:, None].repeat(1, shift_m.shape[1])
        valid[:, 0] = True
        good = torch.zeros_like(valid)
        good[:, 0] = True
        repeated = lambda x: x.repeat_interleave(shift_m.shape[1], 0)
        reference = normalise_points(place, self.pc_range)
        # moved back to the border, a query for background would lie at its object again
        valid[:, 1:] &= ((reference > 0) & (reference < 1))[:, 1:, :2].all(-1)
        reference = reference.clamp(_INSIDE, 1 - _INSIDE)
        has_box = good | (valid & (shift_m.abs() < self.box_within_m))
        flags = valid.flatten(), good.flatten(), has_box.flatten()
        return reference.flatten(0, 1), repeated(encode_boxes(boxes)), repeated(labels), *flags

    def shifts(self, size_lwh_m: Tensor) -> Tensor:
        """Random shifts [n, 1 + negatives] in metres away from the camera, the good query's first."""
        count = len(size_lwh_m)
        near = (torch.rand(count, 1) * 2 - 1) * self.positive_reach
        far = (2 * torch.distributions.Beta(8.0, 2.0).sample((count, self.negatives)) - 1) * self.reach
        far = torch.where(far < 0, far.clamp(max=-self.positive_reach), far.clamp(min=self.positive_reach))
        return torch.cat([near, far], 1).to(size_lwh_m) * (size_lwh_m.sum(1, keepdim=True) / 6)

    @staticmethod
    def lines_of_sight(batch: Batch, b: int, centres_m: Tensor) -> tuple[Tensor, Tensor]:
        """Unit directions [n, 2] in the ground plane from a camera to points [n, 3] of the (augmented) BEV frame, and
        whether there is one [n]. Of several cameras it is the first in order that sees the point."""
        size = tuple(batch.images.shape[-2:])
        real = centres_m @ torch.linalg.inv(batch.bda[b].float()).T  # before BEV augmentation
        lenses = None if batch.current_lenses is None else batch.current_lenses[b : b + 1]
        now = batch.image_from_bev[b : b + 1, batch.current], batch.image_size_px[b : b + 1, batch.current]
        _, visible = project_to_images(real[:, None], now[0], size, now[1], lenses)
        visible = visible[0, :, :, 0]  # [N, n]
        camera = visible.float().argmax(0)  # the first
        at = batch.bev_from_camera[b, :, :3, 3].float() @ batch.bda[b].float().T  # [N, 3]
        line = centres_m[:, :2] - at[camera, :2]
        length = line.norm(dim=1, keepdim=True)
        return line / length.clamp(min=1e-6), visible.any(0) & (length[:, 0] > 0.1)

    def loss(self, outputs: RayOutputs | None, head: BoxHead, anchor: Tensor) -> dict[str, Tensor]:
        """``loss_ray_cls`` and ``loss_ray_bbox`` of the last decoder layer, ``d0.loss_ray_cls``, ... of the others:
        the head's own losses with its weights, per object. Zeros where the batch has no object.

        anchor: any tensor of the graph, for zeros that back-propagate.
        """
        count = anchor.new_zeros(()) if outputs is None else outputs.rays.good.sum().float()
        normaliser = mean_over_ranks(count.float()).clamp(min=1)
        losses: dict[str, Tensor] = {}
        last = len(head.cls_branches) - 1
        for layer in range(last + 1):
            prefix = "" if layer == last else f"d{layer}."
            cls = bbox = anchor.float().sum() * 0.0
            if outputs is not None:
                rays, logits, codes = outputs.rays, outputs.queries.cls_logits[layer], outputs.queries.box_codes[layer]
                target = torch.zeros_like(logits, dtype=torch.float32)
                target[rays.good] = head.class_targets(rays.labels[rays.good])
                focal = sigmoid_focal_loss(logits.float(), target)[rays.proposals.valid].sum()
                distance = head.box_distance(codes[rays.has_box].float(), rays.codes[rays.has_box]).sum()
                cls = cls + focal * (head.cls_weight * self.weight / normaliser)
                bbox = bbox + distance * (head.bbox_weight * self.weight / normaliser)
            losses[f"{prefix}loss_ray_cls"], losses[f"{prefix}loss_ray_bbox"] = cls, bbox
        return losses
