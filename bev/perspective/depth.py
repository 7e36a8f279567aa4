"""Depth of the image features as a teacher: a head that learns it from labels, and is not used at inference.

Nothing in the model takes its answer; what is learned stays in the image encoder. Classes are log-spaced depths, and a
label is split between the two nearest. Depths are scaled by 300 px / focal length, so that one answer holds for cameras
of any focal length (Sparse4D, arXiv 2311.11722, does so with a regressed depth; BEVDepth, arXiv 2206.10092, has
classes).

Shapes: B batch, N cameras, C channels, D bins, h x w cells of a level.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.errors import ConfigError
from ...core.labels import DepthTargets
from ...core.once import warn_once
from ...core.registries import MODELS
from ..boxes.losses import mean_over_ranks


@dataclass(frozen=True)
class LevelLabels:
    """Depth of the cells of one feature level."""

    scaled_m: Tensor
    """[B, N, h, w] nearest depth times 300 px / focal length; 1 where ``known`` is False."""
    known: Tensor
    """[B, N, h, w] bool: labelled, no sky, and nearest and farthest close enough."""

    def of_other_images(self) -> LevelLabels:
        """Each image with the labels of the next sample's next camera."""
        step = self.known.shape[1] + 1
        return LevelLabels(*(x.flatten(0, 1).roll(step, 0).view_as(x) for x in (self.scaled_m, self.known)))


@MODELS.register_module()
class DepthTeacher(nn.Module):
    """Cross entropy of depth bins on the finest feature levels, from one 1 x 1 convolution on each.

    in_channels: C. num_levels: pyramid levels that learn, finest first. num_bins: D, their middles spaced evenly in the
    logarithm over ``range_m``; a depth outside counts as its end. focal_px: what depths are scaled to.
    max_ratio: a cell in which the farthest is more than so many times the nearest is left out.
    weight: of ``loss_depth``, the mean over labelled cells of a level, then over levels.
    shuffled: a control: each image learns the depth of another image of the batch.
    """

    def __init__(
        self,
        in_channels: int,
        num_levels: int = 2,
        num_bins: int = 32,
        range_m: Sequence[float] = (1.0, 60.0),
        focal_px: float = 300.0,
        max_ratio: float = 1.5,
        weight: float = 0.5,
        shuffled: bool = False,
    ) -> None:
        super().__init__()
        low, high = map(float, range_m)
        if not 0 < low < high < math.inf or num_bins < 2 or num_levels < 1 or focal_px <= 0 or max_ratio < 1:
            raise ConfigError(
                f"depth teacher: range_m {low} to {high} must be above 0 and ascend, num_bins {num_bins} at least 2, "
                f"num_levels {num_levels} and max_ratio {max_ratio} at least 1, focal_px {focal_px} above 0"
            )
        self.num_bins, self.low, self.high = num_bins, low, high
        self.focal_px, self.max_ratio, self.weight, self.shuffled = float(focal_px), max_ratio, weight, shuffled
        self.levels = nn.ModuleList(nn.Conv2d(in_channels, num_bins, 1) for _ in range(num_levels))

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Logits [B, N, D, h, w] of each level, from pyramid levels [B, N, C, h, w]."""
        if len(levels) < len(self.levels):
            raise ConfigError(f"depth teacher has {len(self.levels)} levels, the neck gives {len(levels)}")
        # contiguous: from channels-last maps the weights' gradients get strides that DDP warns of
        maps = [x.flatten(0, 1).contiguous() for x in levels]
        return [conv(x).unflatten(0, level.shape[:2]).float() for conv, x, level in zip(self.levels, maps, levels)]

    def depth_m(self, logits: Tensor, batch: Batch) -> Tensor:
        """Depths [B, N, h, w] in metres, the mean of the bins' logarithms, for the cameras of the batch."""
        step = math.log(self.high / self.low) / (self.num_bins - 1)
        index = torch.arange(self.num_bins, device=logits.device, dtype=logits.dtype)
        mean = torch.einsum("bndhw,d->bnhw", logits.softmax(2), index)
        return self.low * (mean * step).exp() / self._scale(batch)

    def soft_labels(self, scaled_m: Tensor) -> Tensor:
        """Shares [..., D] of the two bins around each scaled depth [...]; all in the end bin beyond the range."""
        position = (scaled_m.clamp(self.low, self.high) / self.low).log() / math.log(self.high / self.low)
        position = position * (self.num_bins - 1)
        lower = position.floor().clamp(0, self.num_bins - 2)
        upper_share = (position - lower).clamp(0, 1)[..., None]
        shares = position.new_zeros(*position.shape, self.num_bins)
        index = lower.long()[..., None]
        return shares.scatter(-1, index, 1 - upper_share).scatter(-1, index + 1, upper_share)

    def labels(self, batch: Batch, height: int, width: int) -> LevelLabels:
        """Labels of a level of height x width cells; samples without depth have none known.

        Raises ConfigError for a level whose cells are no whole number of the labels' cells.
        """
        found = [own for own in batch.depth if own is not None]
        shape = *batch.intrinsics.shape[:2], height, width
        if not found:
            unknown = torch.zeros(shape, dtype=torch.bool, device=batch.intrinsics.device)
            return LevelLabels(unknown.float() + 1, unknown)
        stored_h, stored_w = found[0].nearest_m.shape[1:]
        factor = stored_h // height
        if factor < 1 or (factor * height, factor * width) != (stored_h, stored_w):
            raise ConfigError(
                f"depth teacher: a level of {height} x {width} cells does not fit labels of {stored_h} x {stored_w} "
                f"(one for {DepthTargets.STRIDE_PX} pixels): let its levels have strides of {DepthTargets.STRIDE_PX}, "
                f"{2 * DepthTargets.STRIDE_PX}, ..."
            )
        none = DepthTargets(torch.full_like(found[0].nearest_m, torch.inf), torch.zeros_like(found[0].nearest_m))
        given = [none if own is None else own for own in batch.depth]

        def pooled(values: Sequence[Tensor]) -> Tensor:
            return torch.stack(list(values)).unflatten(3, (-1, factor)).unflatten(2, (-1, factor))

        nearest = pooled([own.nearest_m for own in given]).amin((3, 5))
        farthest = pooled([own.farthest_m for own in given]).amax((3, 5))
        known = nearest.isfinite() & (farthest <= self.max_ratio * nearest)
        scaled = torch.where(known, nearest * self._scale(batch), 1.0)
        return LevelLabels(scaled, known)

    def loss(self, levels: Sequence[Tensor], batch: Batch) -> dict[str, Tensor]:
        """``loss_depth`` from the current frame's pyramid levels; a zero that reaches every parameter where no sample
        of the batch has labels of depth."""
        if all(own is None for own in batch.depth):
            warn_once(
                "batches come without depth, so the depth teacher learns nothing from them: give the dataset "
                "depth=True, and the data labels of depth or LiDAR"
            )
        terms = []
        for logits in self(levels):
            labels = self.labels(batch, *logits.shape[3:])
            if self.shuffled:
                labels = labels.of_other_images()
            normaliser = mean_over_ranks(labels.known.sum().float()).clamp(min=1)
            chosen = logits.permute(0, 1, 3, 4, 2)[labels.known]  # [cells, D]
            wrong = -(self.soft_labels(labels.scaled_m[labels.known]) * chosen.log_softmax(-1)).sum()
            terms.append(wrong / normaliser + logits.sum() * 0.0)
        return {"loss_depth": torch.stack(terms).mean() * self.weight}

    @torch.no_grad()
    def errors(self, levels: Sequence[Tensor], batch: Batch) -> list[tuple[float, int]]:
        """Of each level: the sum of |depth - label| / label, and the number of labelled cells within the range."""
        found = []
        for logits in self(levels):
            labels = self.labels(batch, *logits.shape[3:])
            scale = self._scale(batch)
            inside = labels.known & (labels.scaled_m >= self.low) & (labels.scaled_m <= self.high)
            truth = labels.scaled_m / scale
            relative = ((self.depth_m(logits, batch) - truth).abs() / truth)[inside]
            found.append((float(relative.double().sum()), int(inside.sum())))
        return found

    def _scale(self, batch: Batch) -> Tensor:
        """[B, N, 1, 1]: what scales a camera's depths to those of ``focal_px``."""
        k = batch.intrinsics
        return (self.focal_px / (k[..., 0, 0] * k[..., 1, 1]).abs().sqrt())[..., None, None]


def depth_abs_rel(model: Any, batches: Iterable[Batch]) -> list[float]:
    """Mean |depth - label| / label over the labelled cells of unseen batches, for each level of the depth teacher.

    model: BEVFormerV2 with a depth_teacher, put into evaluation mode. Raises ConfigError where it has none, and where
    no cell is labelled.
    """
    if model.depth_teacher is None:
        raise ConfigError("the model has no depth_teacher: train it with one")
    model.eval()
    sums = [0.0] * len(model.depth_teacher.levels)
    counts = [0] * len(sums)
    for batch in batches:
        with torch.no_grad():
            levels = model.extract_features(batch.images[:, batch.current], batch.image_flipped)
        for i, (error, count) in enumerate(model.depth_teacher.errors(levels, batch)):
            sums[i], counts[i] = sums[i] + error, counts[i] + count
    if not all(counts):
        raise ConfigError("no cell of these batches has a label of depth: give their dataset depth=True")
    return [error / count for error, count in zip(sums, counts)]
