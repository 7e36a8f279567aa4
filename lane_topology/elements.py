"""Traffic lights and signs in the front image: centre heat, class and box in every cell of a fine feature map.

Dense (Objects as Points, arXiv 1904.07850; boxes as distances to four sides, FCOS, arXiv 1904.01355) rather than a
query decoder: elements are a few pixels across, and from random weights a heat map learns them in hundreds of
iterations where query matching needs tens of thousands (docs/LOG.md on boxes). Peaks need no suppression.

Shapes: B batch, C channels, A attributes (classes), h x w cells, k elements, E elements that are returned.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..bev.boxes.losses import gaussian_focal_loss, ltrb_giou_loss, mean_over_ranks
from ..bev.heat_maps import bumps, gaussian_radius, local_peaks
from ..data_tools.labels.files import NUM_ATTRIBUTES


@dataclass(frozen=True)
class ElementMaps:
    """What each cell of the front image says."""

    features: Tensor
    """[B, C, h, w]"""
    heat: Tensor
    """[B, h, w] logits of "an element has its centre here" """
    attributes: Tensor
    """[B, h, w, A] logits"""
    ltrb_px: Tensor
    """[B, h, w, 4] distances from the cell's centre to the sides of the element's box"""
    stride_px: tuple[float, float]
    """(x, y) of a cell"""

    def centres_px(self) -> Tensor:
        """[h, w, 2] (x, y) of the cells."""
        h, w = self.heat.shape[1:]
        x, y = ((torch.arange(n, device=self.heat.device) + 0.5) * s for n, s in zip((w, h), self.stride_px))
        return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)


@dataclass(frozen=True)
class Elements:
    """Chosen cells, as the relation of lanes to elements needs them."""

    features: Tensor
    """[B, E, C]"""
    attributes: Tensor
    """[B, E, A] probabilities"""
    boxes: Tensor
    """[B, E, 4] x1, y1, x2, y2 in pixels of the model's image, without gradient"""
    scores: Tensor
    """[B, E] of the most likely attribute"""


def _convolution(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


class DenseElements(nn.Module):
    """in_channels, channels: of the pyramid map and inside; upsample: how much finer than the pyramid map the cells
    are; num_attributes: A; min_overlap: how far off a centre may be (bev/heat_maps.py).
    stem_channels: of convolutions on the front image itself, at half its size, joined with the pyramid map's features;
        the cells are then 2 px. An element counts as found at an IoU above 0.25 (a distance below 0.75), and its sides
        are no longer in a map of 8 px cells when it is 6 px wide. 0: no such convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        upsample: int = 2,
        num_convs: int = 2,
        num_attributes: int = NUM_ATTRIBUTES,
        min_overlap: float = 0.3,
        stem_channels: int = 0,
    ) -> None:
        super().__init__()
        self.upsample, self.num_attributes, self.min_overlap = upsample, num_attributes, min_overlap
        self.coarse = _convolution(in_channels, channels)
        self.stem = None
        if stem_channels:
            first = _convolution(3, stem_channels, stride=2)
            self.stem = nn.Sequential(first, _convolution(stem_channels, stem_channels))
        widths = [channels + stem_channels] + [channels] * (num_convs - 1)
        self.fine = nn.Sequential(*(_convolution(a, b) for a, b in itertools.pairwise(widths)))
        self.cells = nn.Conv2d(widths[-1], 1 + num_attributes + 4, 3, padding=1)
        nn.init.zeros_(self.cells.bias)
        nn.init.constant_(self.cells.bias[:1], -4.59511985)  # a prior of 0.01: elements are rare

    def forward(self, level: Tensor, images: Tensor) -> ElementMaps:
        """Maps of a pyramid level [B, in_channels, h, w] of the padded front images [B, 3, H, W]."""
        image_size_px = images.shape[-2:]
        features = self.coarse(level)
        if self.stem is not None:
            details = self.stem(images)
            size = details.shape[-2:]
            features = torch.cat([F.interpolate(features, size, mode="bilinear", align_corners=False), details], 1)
        elif self.upsample > 1:
            features = F.interpolate(features, scale_factor=self.upsample, mode="bilinear", align_corners=False)
        if self.training and features.is_cpu:  # a quarter quicker there; the rounding of the published answers stays
            features = features.contiguous(memory_format=torch.channels_last)
        features = self.fine(features)
        raw = self.cells(features).permute(0, 2, 3, 1).float()
        stride = (image_size_px[1] / raw.shape[2], image_size_px[0] / raw.shape[1])
        heat, attributes, sides = raw.split([1, self.num_attributes, 4], -1)
        ltrb = sides.clamp(max=6).exp() * raw.new_tensor([*stride, *stride])
        return ElementMaps(features, heat[..., 0], attributes, ltrb, stride)

    # ---- training ------------------------------------------------------------------------------------------------

    def loss(
        self, maps: ElementMaps, boxes: Sequence[Tensor | None], labels: Sequence[Tensor | None]
    ) -> dict[str, Tensor]:
        """Terms ``heat``, ``class``, ``box``; boxes: B x [k, 4] xyxy pixels, None without labels; labels: B x [k]."""
        known = torch.tensor([b is not None for b in boxes], device=maps.heat.device)[:, None, None]
        targets = [self.targets(maps, b, a) for b, a in zip(boxes, labels)]
        heat, ltrb, label, weight = (torch.stack(parts) for parts in zip(*targets))
        count = mean_over_ranks((heat >= 1).sum().float()).clamp(min=1)
        total = mean_over_ranks(weight.sum()).clamp(min=1)
        at = weight > 0
        # the whole maps times 0 keep the graph where there is no element
        entropy = F.cross_entropy(maps.attributes[at], label[at], reduction="none")
        outside = ltrb_giou_loss(maps.ltrb_px[at], ltrb[at])
        return {
            "heat": (gaussian_focal_loss(maps.heat, heat) * known).sum() / count,
            "class": (entropy * weight[at]).sum() / total + maps.attributes.sum() * 0.0,
            "box": (outside * weight[at]).sum() / total + maps.ltrb_px.sum() * 0.0,
        }

    @torch.no_grad()
    def targets(self, maps: ElementMaps, boxes: Tensor | None, labels: Tensor | None) -> tuple[Tensor, ...]:
        """Of one sample: heat [h, w], sides [h, w, 4] px, attribute [h, w] and the weight [h, w] of the last two.

        A cell learns the element whose bump is highest there, within one cell of its centre and inside its box.
        """
        h, w = maps.heat.shape[1:]
        heat, weight = maps.heat.new_zeros(h, w), maps.heat.new_zeros(h, w)
        label, ltrb = torch.zeros(h, w, dtype=torch.long, device=heat.device), heat.new_zeros(h, w, 4)
        if boxes is None or not len(boxes):
            return heat, ltrb, label, weight
        ix, iy = self.centre_cells(maps, boxes)
        stride = boxes.new_tensor(maps.stride_px)
        size = (boxes[:, 2:] - boxes[:, :2]).float() / stride
        sigma = (2 * gaussian_radius(size[:, 0], size[:, 1], self.min_overlap).clamp(min=1.0) + 1) / 6
        cells = torch.stack([ix, iy], -1)
        bump, near = bumps(cells, h, w, sigma)  # [k, h, w]
        heat = bump.amax(0)
        centre = maps.centres_px()
        sides = torch.cat([centre - boxes[:, None, None, :2], boxes[:, None, None, 2:] - centre], -1)  # [k, h, w, 4]
        own = bump == 1  # a centre's cell counts even where its middle is outside the box
        weight, owner = (bump * (near & (sides > 0).all(-1) | own)).max(0)
        ltrb = sides.gather(0, owner[None, ..., None].expand(1, -1, -1, 4))[0].clamp(min=0.5)
        return heat, ltrb, labels[owner], weight

    @staticmethod
    def centre_cells(maps: ElementMaps, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Cells (ix, iy) [k] each that hold the centres of boxes [k, 4], at the border where a centre lies outside."""
        h, w = maps.heat.shape[1:]
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2 / boxes.new_tensor(maps.stride_px)
        return centre[:, 0].long().clamp(0, w - 1), centre[:, 1].long().clamp(0, h - 1)

    # ---- elements ------------------------------------------------------------------------------------------------

    def labelled(self, maps: ElementMaps, boxes: Sequence[Tensor | None]) -> Elements:
        """The cells at the labels' centres, padded with cell 0 to the same number (at least one) in each sample."""
        most = max([1, *(len(b) for b in boxes if b is not None)])
        cells = torch.zeros(len(boxes), most, dtype=torch.long, device=maps.heat.device)
        for b, own in enumerate(boxes):
            if own is not None:
                ix, iy = self.centre_cells(maps, own)
                cells[b, : len(own)] = iy * maps.heat.shape[2] + ix
        return self._at(maps, cells)

    def peaks(self, maps: ElementMaps, count: int) -> Elements:
        """The best ``count`` peaks of the heat, best first."""
        score = maps.heat.sigmoid()
        peak = local_peaks(score[:, None])
        return self._at(maps, peak.flatten(1).topk(min(count, score[0].numel())).indices)

    @staticmethod
    def _at(maps: ElementMaps, cells: Tensor) -> Elements:
        rows = torch.arange(len(cells), device=cells.device)[:, None]
        features = maps.features.flatten(2).transpose(1, 2)[rows, cells]
        attributes = maps.attributes.flatten(1, 2)[rows, cells].softmax(-1)
        centre, ltrb = maps.centres_px().flatten(0, 1)[cells], maps.ltrb_px.detach().flatten(1, 2)[rows, cells]
        boxes = torch.cat([centre - ltrb[..., :2], centre + ltrb[..., 2:]], -1)
        scores = maps.heat.flatten(1).gather(1, cells).sigmoid() * attributes.amax(-1)
        return Elements(features, attributes.detach(), boxes, scores)
