"""Where objects may be: proposals whose positions become reference points of extra object queries.

BEVFormer v2 (arXiv 2211.10439, section 3.4) takes them from the perspective head: the best 2D-suppressed boxes of each
view, suppressed again in BEV. The release lacks this. ``BevProposals`` finds them on the BEV map itself, by centre heat
maps as CenterPoint does (arXiv 2006.11275), in the spirit of DenseBEV (arXiv 2512.16818): its dense supervision also
teaches the BEV encoder quickly. ``HybridQueries`` makes decoder queries of either kind.

Shapes: B batch, N cameras, C channels, K classes, P proposals, n labelled boxes, num_y x num_x BEV cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.answers import Detections
from ...core.registries import MODELS
from ...geometry import bev_nms
from ..heat_maps import bumps, gaussian_radius, local_peaks
from .box_coder import CODE_SIZE, decode_boxes, encode_boxes, normalise_points
from .head import ExtraQueries
from .losses import gaussian_focal_loss, mean_over_ranks


@dataclass(frozen=True)
class Proposals:
    """Candidate objects, best first, padded to the same number in each sample. Carries no gradient."""

    reference: Tensor
    """[B, P, 3] centres as fractions of pc_range, inside (0, 1); 0.5 in the padding"""
    scores: Tensor
    """[B, P, K] score of each class; 0 in the padding"""
    valid: Tensor
    """[B, P] bool"""
    codes: Tensor
    """[B, P, 10] boxes in metres (box_coder); 0 in the padding"""


@dataclass(frozen=True)
class DenseOutputs:
    """Per-cell predictions of :class:`BevProposals`."""

    heat: Tensor
    """[B, K, num_y, num_x] logits of "an object of this class has its centre here" """
    codes: Tensor
    """[B, num_y, num_x, 10] boxes in metres (box_coder)"""


@MODELS.register_module()
class BevProposals(nn.Module):
    """Objects as peaks of per-class centre heat maps on a BEV map, with a box regressed in each cell.

    in_channels: C; num_classes: K; pc_range: of the map, metres; num_proposals: P peaks kept; channels, num_convs: of
    the shared convolutions; min_overlap, min_radius_cells: size of the Gaussian drawn around each label's cell;
    cls_weight, bbox_weight: of the two losses; code_weights: of the 10 code numbers.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        pc_range: Sequence[float],
        num_proposals: int = 100,
        channels: int = 64,
        num_convs: int = 2,
        min_overlap: float = 0.1,
        min_radius_cells: float = 2.0,
        cls_weight: float = 1.0,
        bbox_weight: float = 0.25,
        code_weights: Sequence[float] = (1, 1, 1, 1, 1, 1, 1, 1, 0.2, 0.2),
    ) -> None:
        super().__init__()
        self.num_classes, self.num_proposals = num_classes, num_proposals
        self.min_overlap, self.min_radius_cells = min_overlap, min_radius_cells
        self.cls_weight, self.bbox_weight = cls_weight, bbox_weight
        self.point_range = tuple(map(float, pc_range))
        self.register_buffer("pc_range", torch.tensor(pc_range, dtype=torch.float32), persistent=False)
        self.register_buffer("code_weights", torch.tensor(code_weights, dtype=torch.float32), persistent=False)
        layers: list[nn.Module] = []
        for i in range(num_convs):
            layers += [
                nn.Conv2d(channels if i else in_channels, channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            ]
        self.shared = nn.Sequential(*layers)
        self.heat = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.box = nn.Conv2d(channels, CODE_SIZE, 3, padding=1)
        nn.init.constant_(self.heat.bias, -math.log((1 - 0.1) / 0.1))  # a prior of 0.1, as CenterPoint

    def forward(self, bev: Tensor) -> DenseOutputs:
        """Heat and boxes in every cell of a BEV map [B, C, num_y, num_x]."""
        hidden = self.shared(bev)
        raw = self.box(hidden).permute(0, 2, 3, 1).float()  # [B, num_y, num_x, 10]
        centres, cell = self._cells(raw.shape[1], raw.shape[2])
        z_mid = (self.pc_range[2] + self.pc_range[5]) / 2
        codes = torch.cat([raw[..., :2] * cell + centres, raw[..., 2:4], raw[..., 4:5] + z_mid, raw[..., 5:]], -1)
        return DenseOutputs(self.heat(hidden).float(), codes)

    def _cells(self, num_y: int, num_x: int) -> tuple[Tensor, Tensor]:
        """Cell centres [num_y, num_x, 2] and cell size [2] (x, y) in metres."""
        low, high = self.pc_range[:2], self.pc_range[3:5]
        count = torch.tensor([num_x, num_y], device=low.device)
        cell = (high - low) / count
        index = torch.stack(
            torch.meshgrid(
                torch.arange(num_x, device=low.device), torch.arange(num_y, device=low.device), indexing="xy"
            ),
            -1,
        )
        return low + (index + 0.5) * cell, cell

    # ---- training ------------------------------------------------------------------------------------------------

    def loss(self, outs: DenseOutputs, gt_boxes: Sequence[Tensor], gt_labels: Sequence[Tensor]) -> dict[str, Tensor]:
        """``loss_dense_cls`` (focal, per object) and ``loss_dense_bbox`` (L1 in the cells around each centre).

        gt_boxes: B x [n, 9]; gt_labels: B x [n]; boxes with their centre outside the map are left out.
        """
        num_y, num_x = outs.heat.shape[2:]
        targets = [self.targets(boxes.float(), labels, num_y, num_x) for boxes, labels in zip(gt_boxes, gt_labels)]
        heat, codes, weight = (torch.stack(parts) for parts in zip(*targets))
        num_objects = mean_over_ranks((heat >= 1).sum().float()).clamp(min=1)
        cls = gaussian_focal_loss(outs.heat, heat).sum() / num_objects

        known = codes.isfinite()
        distance = (outs.codes - torch.where(known, codes, 0)).abs() * known * self.code_weights
        bbox = (distance.sum(-1) * weight).sum() / mean_over_ranks(weight.sum()).clamp(min=1)
        return {"loss_dense_cls": cls * self.cls_weight, "loss_dense_bbox": bbox * self.bbox_weight}

    def targets(self, boxes: Tensor, labels: Tensor, num_y: int, num_x: int) -> tuple[Tensor, Tensor, Tensor]:
        """Heat [K, num_y, num_x], codes [num_y, num_x, 10] and their weight [num_y, num_x] for one sample.

        A cell learns the box whose Gaussian is highest there, within one cell of its centre, weighted by its height.
        """
        centres, cell = self._cells(num_y, num_x)
        index = ((boxes[:, :2] - self.pc_range[:2]) / cell).floor().long()  # [n, 2] (ix, iy)
        inside = ((index >= 0) & (index < torch.tensor([num_x, num_y], device=index.device))).all(-1)
        boxes, labels, index = boxes[inside], labels[inside], index[inside]
        heat = centres.new_zeros(self.num_classes, num_y, num_x)
        if not len(boxes):
            return heat, centres.new_zeros(num_y, num_x, CODE_SIZE), centres.new_zeros(num_y, num_x)

        cell_m = cell.prod().sqrt()
        radius = gaussian_radius(boxes[:, 3] / cell_m, boxes[:, 4] / cell_m, self.min_overlap)
        sigma = (2 * radius.clamp(min=self.min_radius_cells) + 1) / 6  # [n]
        bump, near = bumps(index, num_y, num_x, sigma)  # [n, num_y, num_x]
        heat = heat.scatter_reduce(0, labels[:, None, None].expand_as(bump), bump, "amax")
        weight, owner = (bump * near).max(0)  # [num_y, num_x]
        return heat, encode_boxes(boxes)[owner], weight

    # ---- proposals -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def proposals(self, outs: DenseOutputs) -> Proposals:
        """The best P cells in which some class peaks."""
        best = local_peaks(outs.heat.sigmoid()).amax(1).flatten(1)  # [B, cells]
        _, cells = best.topk(min(self.num_proposals, best.shape[1]))  # [B, P]
        codes = outs.codes.flatten(1, 2).gather(1, cells[..., None].expand(-1, -1, CODE_SIZE))
        reference = normalise_points(codes[..., [0, 1, 4]], self.pc_range).clamp(0.001, 0.999)
        scores = outs.heat.sigmoid().flatten(2).transpose(1, 2)  # [B, cells, K]
        scores = scores.gather(1, cells[..., None].expand(-1, -1, self.num_classes))
        return Proposals(reference, scores, torch.ones_like(cells, dtype=torch.bool), codes)

    @torch.no_grad()
    def predict(self, outs: DenseOutputs, tokens: Sequence[str], max_num: int = 300) -> list[Detections]:
        """The peaks themselves as detections: the result of the dense branch without the decoder."""
        found = []
        for peaks, codes, token in zip(local_peaks(outs.heat.sigmoid()), outs.codes.flatten(1, 2), tokens):
            scores, index = peaks.flatten().topk(min(max_num, peaks.numel()))
            labels, cells = index // len(codes), index % len(codes)
            boxes = decode_boxes(codes[cells])
            found.append(Detections(token, *(x.cpu().numpy() for x in (boxes, scores, labels))))
        return found


def augment_boxes(boxes: Tensor, bda: Tensor) -> Tensor:
    """Boxes [m, 9] after a BEV augmentation [3, 3] (flip @ scale @ rotation about z)."""
    plane = bda[:2, :2].to(boxes)
    scale = torch.linalg.det(plane).abs().sqrt()
    heading = torch.stack([boxes[:, 6].cos(), boxes[:, 6].sin()], 1) @ plane.T
    yaw = torch.atan2(heading[:, 1], heading[:, 0])
    return torch.cat(
        [boxes[:, :3] @ bda.to(boxes).T, boxes[:, 3:6] * scale, yaw[:, None], boxes[:, 7:] @ plane.T], dim=1
    )


@MODELS.register_module()
class PerspectiveProposals(nn.Module):
    """The paper's proposals: boxes seen by the cameras, suppressed in BEV.

    Takes each view's best boxes (already suppressed there, see perspective.py), brings them into the BEV frame,
    suppresses them together (IoU > iou_threshold of the footprints) and keeps the best num_proposals.
    """

    def __init__(
        self, num_classes: int, pc_range: Sequence[float], num_proposals: int = 100, iou_threshold: float = 0.3
    ) -> None:
        super().__init__()
        self.num_classes, self.num_proposals, self.iou_threshold = num_classes, num_proposals, iou_threshold
        self.point_range = tuple(map(float, pc_range))
        self.register_buffer("pc_range", torch.tensor(pc_range, dtype=torch.float32), persistent=False)

    @torch.no_grad()
    def proposals(
        self,
        boxes: Sequence[Tensor],
        scores: Sequence[Tensor],
        labels: Sequence[Tensor],
        bda: Tensor | None = None,
    ) -> Proposals:
        """Proposals of B samples from boxes [m, 9] in the BEV frame of all their views, scores [m], labels [m].

        bda [B, 3, 3] takes them into the frame of an augmented BEV map (training).
        """
        batch, device = len(boxes), self.pc_range.device
        reference = torch.full((batch, self.num_proposals, 3), 0.5, device=device)
        class_scores = torch.zeros(batch, self.num_proposals, self.num_classes, device=device)
        codes = torch.zeros(batch, self.num_proposals, CODE_SIZE, device=device)
        valid = torch.zeros(batch, self.num_proposals, dtype=torch.bool, device=device)
        if bda is not None:
            boxes = [augment_boxes(own, matrix) for own, matrix in zip(boxes, bda)]
        for b in range(batch):
            centre = normalise_points(boxes[b][:, :3], self.pc_range)
            inside = ((centre[:, :2] > 0) & (centre[:, :2] < 1)).all(-1) & boxes[b].isfinite().all(-1)
            own, score, label = boxes[b][inside], scores[b][inside], labels[b][inside]
            best = bev_nms(own.cpu().numpy(), score.cpu().numpy(), self.iou_threshold, self.num_proposals)
            kept = torch.from_numpy(best).to(device)
            k = len(kept)
            reference[b, :k] = centre[inside][kept].clamp(0.001, 0.999)
            class_scores[b, torch.arange(k, device=device), label[kept]] = score[kept]
            codes[b, :k] = encode_boxes(own[kept])
            valid[b, :k] = True
        return Proposals(reference, class_scores, valid, codes)


def sine_embedding(reference: Tensor, num_feats: int, temperature: float = 20.0) -> Tensor:
    """Sines and cosines [..., 3 * num_feats] of coordinates [..., 3] in (0, 1); num_feats (even) per coordinate.

    Wavelengths run geometrically from 2 (the whole range is half a wave) down to 2 / temperature.
    """
    frequency = temperature ** (torch.arange(num_feats // 2, device=reference.device) / max(num_feats // 2 - 1, 1))
    phase = reference[..., None] * frequency * math.pi  # [..., 3, num_feats / 2]
    return torch.cat([phase.sin(), phase.cos()], -1).flatten(-2)


@MODELS.register_module()
class HybridQueries(nn.Module):
    """Decoder queries from proposals: content from the BEV map at the place, class scores and box; position from it.

    channels: C; num_classes: K.
    """

    def __init__(self, channels: int, num_classes: int, num_feats: int = 32) -> None:
        super().__init__()
        self.num_feats = num_feats
        self.bev_norm = nn.LayerNorm(channels)
        self.bev_proj = nn.Linear(channels, channels)
        self.score_proj = nn.Linear(num_classes, channels)
        self.box_proj = nn.Linear(CODE_SIZE - 2, channels)
        self.position = nn.Sequential(
            nn.Linear(3 * num_feats, channels), nn.ReLU(inplace=True), nn.Linear(channels, channels)
        )

    def forward(self, bev: Tensor, proposals: Proposals) -> ExtraQueries:
        """Queries for the decoder from a BEV map [B, C, num_y, num_x]; gradients reach the map, not the proposals."""
        reference = proposals.reference
        grid = reference[:, :, None, :2] * 2 - 1  # [B, P, 1, 2]
        # float32 under autocast too: half precision is a tenth of a cell on a 200-cell map
        sampled = F.grid_sample(bev.float(), grid, align_corners=False)[..., 0].transpose(1, 2)  # [B, P, C]
        box = proposals.codes[..., 2:].clamp(-10, 10)  # all but x and y, which come from the position
        query = self.bev_proj(self.bev_norm(sampled)) + self.score_proj(proposals.scores) + self.box_proj(box)
        query_pos = self.position(sine_embedding(reference, self.num_feats))
        return ExtraQueries(query, query_pos, reference, proposals.valid)
