"""Object memory: the best objects of the last frame come back as queries, moved to where they should be now.

In the manner of StreamPETR (arXiv 2303.11926) and Sparse4D (arXiv 2305.14018, 2311.11722). An object is the decoder's
content, its box, class scores, a confidence that fades while it is not seen, and an id. With M = new_from_old, the pose
of the old BEV frame in the new one, and dt the time between the two frames:

    centre' = M (centre + v dt);  heading and velocity turn with M;  the size stays
    query   = that of a proposal at centre' + out(LN(content) * g(c) + b(c)),  c = ReLU(motion(v', dt, M))

``out`` starts at zero, g at 1 and b at 0 (motion-aware layer normalisation): untrained, an object comes back as a
proposal at its place. A frame without a memory has no such queries: the model's answer is that of one without memory.

Ids are given when a score first reaches ``id_score``, and stay with the object as long as it is remembered. An object
that is not seen stays where it should be; a new query that finds something of its class there takes over its id.
Tracks are a by-product.

Shapes: B batch, C channels, K objects, P recalled objects (padded), Q queries of the first group, N classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...core.answers import NO_TRACK
from ...core.errors import ConfigError
from ...core.registries import MODELS
from ...geometry import transform_boxes
from ..map.memory import KEYFRAME_S
from ..protocol import build
from .box_coder import decode_boxes, encode_boxes, normalise_points
from .head import QueryOutputs
from .proposals import Proposals, augment_boxes
from .trails import TrailVelocity

_REACH_M = 4.0  # at most, in which a new query takes over the places of an object: long vehicles stand in rows
_SPEED_MPS, _STEP_M = 10.0, 10.0  # with KEYFRAME_S the units in which the motion is given to the layer norm


@dataclass(frozen=True)
class Objects:
    """What is remembered of a scene, best first, in the BEV frame of its frame before augmentation."""

    content: Tensor
    """[K, C] of the decoder's last layer"""
    codes: Tensor
    """[K, 10] in metres (box_coder)"""
    scores: Tensor
    """[K, N]"""
    confidence: Tensor
    """[K] best score, or what is left of an earlier one"""
    ids: Tensor
    """[K] long, NO_TRACK where none was given yet"""
    trail: Tensor
    """[K, T, 3] where they were before, (x, y, age_s), the newest first, age 0 where nothing is known; trails.py"""
    next_id: int
    """The first that the scene has not used."""

    def as_plain(self) -> dict[str, Any]:
        """As tensors and plain values, for a state that is saved."""
        return dict(vars(self))

    def to(self, device: torch.device) -> Objects:
        rows = {name: values.to(device) for name, values in vars(self).items() if name != "next_id"}
        return Objects(**rows, next_id=self.next_id)

    def forgotten(self) -> Objects:
        """None of them, but the ids that are used."""
        rows = {name: values[:0] for name, values in vars(self).items() if name != "next_id"}
        return Objects(**rows, next_id=self.next_id)

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any]) -> Objects:
        """The inverse of ``as_plain``. Raises TypeError for other entries."""
        return cls(**plain)


@dataclass(frozen=True)
class Past:
    """The objects of an earlier frame, and what happened since."""

    objects: Objects
    new_from_old: Tensor
    """[4, 4] float64: points of the old BEV frame in the new one."""
    dt_s: float


@dataclass(frozen=True)
class Recalled:
    """Objects of the past at the places where they should be now; padded. Carries no gradient."""

    proposals: Proposals
    content: Tensor
    """[B, P, C]"""
    motion: Tensor
    """[B, P, 9]: velocity, time, and the planar part of new_from_old, in units of about 1"""
    confidence: Tensor
    """[B, P]"""
    ids: Tensor
    """[B, P] long"""
    trail: Tensor
    """[B, P, T + 1, 3] as in Objects, with the last place, in the frame of the boxes"""


@dataclass(frozen=True)
class Remembered:
    """What a sample leaves for the next frame."""

    objects: Objects
    query_ids: Tensor
    """[Q] the track of each query of the first group, NO_TRACK for none"""
    twice: Tensor
    """[Q] whether a query stands for an object that a better one stands for, where one of the two was recalled"""


@MODELS.register_module()
class ObjectMemory(nn.Module):
    """Carries objects from frame to frame; BoxTask uses it.

    channels, num_classes, pc_range: of the BEV map and the head; BoxTask gives them. num_objects: K at most.
    min_score: objects of less confidence are forgotten. decay: what is left of a confidence after a frame in which the
    object is not seen; 0: nothing. id_score: from which an object gets an id. track_score: from which its box is part
    of the track, so that one that fades out of sight leaves no boxes. same_m: two objects of one class that are nearer,
    or nearer than half the better one's length, are one: the better is remembered, with the other's id where it has
    none, and the other's box is no answer if one of the two was recalled; 0: none are. suppress_m: peaks of the heat
    map that are nearer to a recalled object of their class and less sure than it make no query; 0: all do.
    forget_share: of training samples, chosen at random, that get no memory, so that first frames stay good.
    velocity: trails.TrailVelocity, which corrects velocity, heading and place by where an object was; None: nothing
    does.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        pc_range: Sequence[float],
        num_objects: int = 40,
        min_score: float = 0.05,
        decay: float = 0.6,
        id_score: float = 0.2,
        track_score: float = 0.1,
        same_m: float = 1.5,
        suppress_m: float = 1.0,
        forget_share: float = 1 / 3,
        velocity: dict | nn.Module | None = None,
        hidden: int = 64,
    ) -> None:
        super().__init__()
        shares = dict(
            min_score=min_score, decay=decay, id_score=id_score, track_score=track_score, forget_share=forget_share
        )
        for name, value in shares.items():
            if not 0 <= value < 1:
                raise ConfigError(f"object memory: {name} is from 0 to below 1, got {value!r}")
        if type(num_objects) is not int or num_objects < 1:
            raise ConfigError(f"object memory: num_objects is a whole number from 1 on, got {num_objects!r}")
        self.num_objects, self.min_score, self.decay = num_objects, min_score, decay
        self.id_score, self.track_score, self.same_m, self.suppress_m = id_score, track_score, same_m, suppress_m
        self.forget_share, self.num_classes = forget_share, num_classes
        self.point_range = tuple(map(float, pc_range))
        self.register_buffer("pc_range", torch.tensor(pc_range, dtype=torch.float32), persistent=False)
        self.motion = nn.Sequential(nn.Linear(9, hidden), nn.ReLU())
        self.scale, self.shift = nn.Linear(hidden, channels), nn.Linear(hidden, channels)
        self.norm = nn.LayerNorm(channels, elementwise_affine=False)
        self.out = nn.Linear(channels, channels)
        for layer in (self.scale, self.shift, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.ones_(self.scale.bias)
        self.velocity: TrailVelocity | None = build(velocity, channels=channels)
        self.trail_length = 0 if self.velocity is None else self.velocity.places[-1] - 1  # beside the last place

    # ---- from the past -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def recall(self, past: Sequence[Past | None], bda: Tensor) -> Recalled | None:
        """The objects of each sample's past where they should be now; None where no sample has any.

        bda: [B, 3, 3], the augmentation of the samples' BEV maps. Objects that leave the range or are hardly sure are
        padding. In training a share of the samples is left without.
        """
        keep = torch.rand(len(past)) >= self.forget_share if self.training else torch.ones(len(past), dtype=torch.bool)
        device = self.pc_range.device
        known = [
            replace(own, objects=own.objects.to(device)) if own is not None and kept else None
            for own, kept in zip(past, keep.tolist())
        ]
        count = max((len(own.objects.ids) for own in known if own is not None), default=0)
        if not count:
            return None
        content = torch.zeros(len(past), count, self.norm.normalized_shape[0], device=device)
        boxes = torch.zeros(len(past), count, 9, device=device)
        boxes[..., 3:6] = 1.0
        scores = torch.zeros(len(past), count, self.num_classes, device=device)
        confidence = torch.zeros(len(past), count, device=device)
        ids = torch.full((len(past), count), NO_TRACK, device=device)
        motion = torch.zeros(len(past), count, 9, device=device)
        trail = torch.zeros(len(past), count, self.trail_length + 1, 3, device=device)
        for b, own in enumerate(known):
            if own is None:
                continue
            k = len(own.objects.ids)
            moved = aligned_boxes(decode_boxes(own.objects.codes.double()), own.new_from_old, own.dt_s)
            content[b, :k], scores[b, :k] = own.objects.content, own.objects.scores
            confidence[b, :k], ids[b, :k] = own.objects.confidence, own.objects.ids
            boxes[b, :k] = _augmented(moved, bda[b].to(moved)).to(boxes)
            trail[b, :k] = _places(self._trail(own), bda[b]).to(trail)
            planar = own.new_from_old[:2][:, [0, 1, 3]] / own.new_from_old.new_tensor([1.0, 1.0, _STEP_M])
            shared = torch.cat([planar.new_tensor([own.dt_s / KEYFRAME_S]), planar.flatten()])
            motion[b, :k] = torch.cat([boxes[b, :k, 7:] / _SPEED_MPS, shared.to(boxes).expand(k, -1)], 1)
        reference = normalise_points(boxes[..., :3], self.pc_range)
        inside = ((reference[..., :2] > 0) & (reference[..., :2] < 1)).all(-1)
        valid = inside & (confidence > self.min_score)
        if not valid.any():
            return None
        # Padding stays in the middle of the range, where nothing of it is read.
        reference = torch.where(valid[..., None], reference, 0.5).clamp(0.001, 0.999)
        codes = torch.where(valid[..., None], encode_boxes(boxes), 0.0)
        return Recalled(Proposals(reference, scores, valid, codes), content, motion, confidence, ids, trail)

    def _trail(self, past: Past) -> Tensor:
        """[K, T + 1, 3] places of remembered objects in the new BEV frame, the last one first."""
        objects, pose = past.objects, past.new_from_old
        last = decode_boxes(objects.codes.double())
        heights = last[:, None, 2:3].expand(-1, self.trail_length + 1, -1)
        xy = torch.cat([last[:, None, :2], objects.trail[..., :2].to(last)], 1)
        xyz = torch.cat([xy, heights], -1) @ pose[:3, :3].to(last).T + pose[:3, 3].to(last)
        seen = objects.scores.amax(-1) >= self.track_score  # where it was not seen, its place was a guess
        ages = objects.trail[..., 2].to(last)
        ages = torch.cat([seen[:, None] * past.dt_s, torch.where(ages > 0, ages + past.dt_s, 0.0)], 1)
        return torch.cat([xyz[..., :2], ages[..., None]], -1)

    def measured(self, outputs: QueryOutputs, recalled: Recalled | None) -> QueryOutputs:
        """Outputs whose last layer has velocities, headings and places by the places of the objects before."""
        if self.velocity is None or recalled is None or outputs.hidden is None:
            return outputs
        rows = self._followed(outputs, recalled)  # [B, G * Q]
        trail = recalled.trail[torch.arange(len(rows), device=rows.device)[:, None], rows.clamp(min=0)]
        trail = torch.where((rows >= 0)[..., None, None], trail, 0.0)
        codes = self.velocity(outputs.hidden, outputs.box_codes[-1], trail)
        return replace(outputs, box_codes=torch.cat([outputs.box_codes[:-1], codes[None]]))

    @torch.no_grad()
    def _followed(self, outputs: QueryOutputs, recalled: Recalled) -> Tensor:
        """[B, G * Q] the recalled object that each query stands for, -1 for none: recalled queries for their own, which
        are the last of each group; others for the nearest of their class within reach."""
        size = self.pc_range[3:5] - self.pc_range[:2]
        there = recalled.proposals.reference[..., :2] * size + self.pc_range[:2]
        codes = outputs.box_codes[-1].float()
        apart = torch.cdist(codes[..., :2], there)  # [B, G * Q, P]
        same = outputs.cls_logits[-1].argmax(-1)[..., None] == recalled.proposals.scores.argmax(-1)[:, None]
        reach = (codes[..., 3].exp() / 2).clamp(min=self.same_m, max=_REACH_M)
        apart = apart.masked_fill(~same | ~recalled.proposals.valid[:, None] | (apart > reach[..., None]), float("inf"))
        nearest, row = apart.min(-1)
        row = row.masked_fill(nearest.isinf(), -1).unflatten(1, (outputs.groups, -1))
        count = recalled.ids.shape[1]
        own = torch.arange(count, device=row.device).where(recalled.proposals.valid, -1)
        return torch.cat([row[..., :-count], own[:, None].expand(-1, outputs.groups, -1)], -1).flatten(1)

    def content_of(self, recalled: Recalled) -> Tensor:
        """[B, P, C]: what the content of the past adds to the queries."""
        hidden = self.motion(recalled.motion)
        return self.out(self.norm(recalled.content) * self.scale(hidden) + self.shift(hidden))

    def suppressed(self, proposals: Proposals, recalled: Recalled) -> Tensor:
        """[B, P'] proposals that stand for an object that was recalled and is surer."""
        size = self.pc_range[3:5] - self.pc_range[:2]
        apart = torch.cdist(proposals.reference[..., :2] * size, recalled.proposals.reference[..., :2] * size)
        score, label = proposals.scores.max(-1)
        same = label[..., None] == recalled.proposals.scores.argmax(-1)[:, None]
        surer = recalled.confidence[:, None] > score[..., None]
        near = (apart < self.suppress_m) & same & surer & recalled.proposals.valid[:, None]
        return near.any(-1)

    # ---- to the future -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def remember(
        self,
        outputs: QueryOutputs,
        recalled: Recalled | None,
        past: Sequence[Past | None],
        bda: Tensor,
        seen: QueryOutputs | None = None,
    ) -> list[Remembered]:
        """What each sample leaves for its next frame, from the first group of queries; recalled ones are the last.

        past, bda: as ``recall`` had them; ids that a scene has used are not given again. seen: the outputs before they
        were ``measured``, whose places are remembered: corrected ones would be corrected again and again.
        """
        seen = outputs if seen is None else seen
        assert outputs.hidden is not None
        per_group = outputs.cls_logits.shape[2] // outputs.groups
        found = []
        followed = None
        if recalled is not None and self.trail_length:
            followed = self._followed(seen, recalled)[:, :per_group]
        for b in range(len(outputs.hidden)):
            scores = outputs.cls_logits[-1, b, :per_group].float().sigmoid()  # [Q, N]
            codes, content = outputs.box_codes[-1, b, :per_group].float(), outputs.hidden[b, :per_group].float()
            codes = torch.cat([seen.box_codes[-1, b, :per_group, :2].float(), codes[:, 2:]], 1)
            confidence = scores.amax(-1)
            ids = torch.full((per_group,), NO_TRACK, device=scores.device)
            old = torch.zeros_like(ids, dtype=torch.bool)
            own = past[b]
            next_id = 0 if own is None else own.objects.next_id
            trail = codes.new_zeros(per_group, self.trail_length, 3)
            if recalled is not None:
                first = per_group - recalled.ids.shape[1]
                unseen = confidence[first:] < self.track_score  # it stays where it should be, wherever its query looked
                codes[first:][unseen] = recalled.proposals.codes[b, unseen]
                # nor does it change its class: its query's best one changes places with it
                rows, known = first + unseen.nonzero()[:, 0], recalled.proposals.scores[b, unseen].argmax(-1)
                best = scores[rows].argmax(-1)
                scores[rows, known], scores[rows, best] = scores[rows, best], scores[rows, known]
                confidence[first:] = torch.maximum(confidence[first:], self.decay * recalled.confidence[b])
                ids[first:] = recalled.ids[b]
                old[first:] = True
                if self.trail_length:
                    trail[followed[b] >= 0] = recalled.trail[b, followed[b][followed[b] >= 0], : self.trail_length]
            if outputs.valid is not None:
                confidence = confidence.masked_fill(~outputs.valid[b], -1.0)
            found.append(self._best(content, codes, scores, confidence, ids, old, trail, next_id, bda[b]))
        return found

    def _best(
        self,
        content: Tensor,
        codes: Tensor,
        scores: Tensor,
        confidence: Tensor,
        ids: Tensor,
        old: Tensor,
        trail: Tensor,
        next_id: int,
        bda: Tensor,
    ) -> Remembered:
        """The objects that stay, with ids, of all queries of a sample."""
        order = confidence.argsort(descending=True, stable=True)[: 2 * self.num_objects]
        order = order[confidence[order] > self.min_score]
        # Of two that are one, what is seen now counts: a fading object must not stand in for one that is plainly there.
        seen_now = scores[order].amax(-1).argsort(descending=True, stable=True)
        rows, twice = self._distinct(order[seen_now], codes, scores, ids, old)
        rows = rows[confidence[rows].argsort(descending=True, stable=True)][: self.num_objects]
        best = scores[rows].amax(-1)
        new = (ids[rows] == NO_TRACK) & (best >= self.id_score)
        ids[rows[new]] = next_id + torch.arange(int(new.sum()), device=ids.device)
        query_ids = torch.full_like(ids, NO_TRACK)
        seen = rows[best >= self.track_score]
        query_ids[seen] = ids[seen]
        own_codes, own_trail = codes[rows], trail[rows]
        if not _is_identity(bda):
            own_trail = _places(own_trail, torch.linalg.inv(bda))
            own_codes = encode_boxes(augment_boxes(decode_boxes(own_codes), torch.linalg.inv(bda)))
        kept = Objects(
            content[rows], own_codes, scores[rows], confidence[rows], ids[rows], own_trail, next_id + int(new.sum())
        )
        return Remembered(kept, query_ids, twice)

    def _distinct(
        self, order: Tensor, codes: Tensor, scores: Tensor, ids: Tensor, old: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``order`` without objects near a better one of their class, which takes over their id where it has none; and
        [Q] what was left out where one of the two was recalled."""
        twice = torch.zeros_like(old)
        if not self.same_m or not len(order):
            return order, twice
        label = scores[order].argmax(-1)
        reach = (codes[order, 3].exp() / 2).clamp(min=self.same_m)  # half a length
        near = (torch.cdist(codes[order, :2], codes[order, :2]) < reach) & (label[:, None] == label)
        better = near.tril(-1).tolist()  # [k][k]: better ones of each
        kept: list[int] = []
        rows, known, recalled = order.tolist(), ids[order].tolist(), old[order].tolist()  # lists: tensors are slow here
        for i, own in enumerate(better):
            one = next((j for j in kept if own[j]), None)
            if one is None:
                kept.append(i)
                continue
            twice[rows[i]] = recalled[one] | recalled[i]
            if known[one] == NO_TRACK:
                known[one] = known[i]
        ids[order] = torch.tensor(known, dtype=ids.dtype, device=ids.device)
        return order[kept], twice

    def untouched(self) -> Tensor:
        """0 that keeps all parameters in the graph of a step without memory."""
        return sum((parameter.sum() for parameter in self.parameters()), self.pc_range.new_zeros(())) * 0.0

    def objects_of_boxes(self, boxes: Tensor, labels: Tensor, ids: Tensor, next_id: int) -> Objects:
        """A memory made by hand: boxes [k, 9] with classes [k] and ids [k], sure and without content."""
        scores = torch.zeros(len(boxes), self.num_classes, device=boxes.device)
        scores[torch.arange(len(boxes)), labels] = 0.9
        content = torch.zeros(len(boxes), self.norm.normalized_shape[0], device=boxes.device)
        trail = torch.zeros(len(boxes), self.trail_length, 3, device=boxes.device)
        return Objects(content, encode_boxes(boxes.float()), scores, scores.amax(-1), ids, trail, next_id)


def aligned_boxes(boxes: Tensor, new_from_old: Tensor, dt_s: float) -> Tensor:
    """Boxes [k, 9] of an earlier BEV frame where they should be after ``dt_s`` in the new one, at constant velocity."""
    moved = boxes.clone()
    moved[:, :2] += boxes[:, 7:9] * dt_s
    return transform_boxes(new_from_old.to(moved), moved)


def _is_identity(bda: Tensor) -> bool:
    return bool((bda == torch.eye(3, device=bda.device, dtype=bda.dtype)).all())


def _places(trail: Tensor, bda: Tensor) -> Tensor:
    """Trails [..., 3] in the frame of an augmented map."""
    return torch.cat([trail[..., :2] @ bda[:2, :2].to(trail).T, trail[..., 2:]], -1)


def _augmented(boxes: Tensor, bda: Tensor) -> Tensor:
    return boxes if _is_identity(bda) else augment_boxes(boxes, bda)
