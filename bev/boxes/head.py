"""BEVFormer's detection head: object queries on a BEV map, box branches, training losses.

Papers: BEVFormer (arXiv 2203.17270), BEVFormer v2 (arXiv 2211.10439), Group DETR (arXiv 2207.13085). Parameter names
are those of the released checkpoints (prefix ``pts_bbox_head.``).

Shapes: B batch, C channels, L decoder layers, G query groups, Q queries of one group, num_y x num_x BEV cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.answers import NO_TRACK, Detections
from ...core.finite import check_answer
from ...core.registries import MODELS
from ..map.bev_map import init_attention_module
from .box_coder import CODE_SIZE, NmsFreeCoder, denormalise_points, encode_boxes
from .decoder import ObjectDecoder, inverse_sigmoid
from .losses import mean_over_ranks, sigmoid_focal_loss, smoothed
from .matching import UNMATCHED, HungarianMatcher
from .quality import CENTERNESS, NUM_QUALITIES, quality_loss


@dataclass(frozen=True)
class ExtraQueries:
    """Object queries made from proposals; each query group gets all of them beside its learned ones."""

    query: Tensor
    """[B, P, C] content"""
    query_pos: Tensor
    """[B, P, C]"""
    reference: Tensor
    """[B, P, 3] in (0, 1) of the head's pc_range"""
    valid: Tensor
    """[B, P] bool; padding is neither matched nor returned as a detection"""


@dataclass(frozen=True)
class QueryOutputs:
    """Outputs of the decoder for each query, after each of its layers."""

    cls_logits: Tensor
    """[L, B, G * Q, classes]"""
    box_codes: Tensor
    """[L, B, G * Q, 10] in metres, see box_coder"""
    groups: int
    valid: Tensor | None = None
    """[B, Q] bool, None where all queries are"""
    quality: Tensor | None = None
    """[B, G * Q, 2] logits of the last layer, see quality.py; None where the head does not learn it"""
    hidden: Tensor | None = None
    """[B, G * Q, C] of the last layer"""

    def of_samples(self, samples: Sequence[int]) -> QueryOutputs:
        """Those of some samples of the batch."""
        chosen = list(samples)
        valid = None if self.valid is None else self.valid[chosen]
        quality = None if self.quality is None else self.quality[chosen]
        hidden = None if self.hidden is None else self.hidden[chosen]
        return QueryOutputs(self.cls_logits[:, chosen], self.box_codes[:, chosen], self.groups, valid, quality, hidden)


def _widened(pc_range: Sequence[float], margin_m: float = 10.0) -> tuple[float, ...]:
    """A range for centres of detections, as in the release: a margin beside, a fixed one above and below."""
    x_min, y_min, _, x_max, y_max, _ = pc_range
    return (x_min - margin_m, y_min - margin_m, -10.0, x_max + margin_m, y_max + margin_m, 10.0)


def _branch(channels: int, out: int, num_layers: int, norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(num_layers):
        layers.append(nn.Linear(channels, channels))
        if norm:
            layers.append(nn.LayerNorm(channels))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers, nn.Linear(channels, out))


@MODELS.register_module()
class BoxHead(nn.Module):
    """Object detection by queries on a BEV map.

    num_classes, num_query: classes and queries of one group; num_groups: query groups in training (Group DETR; 1 is
    the plain head). At test time only the first group is used.
    pc_range: (x_min, y_min, z_min, x_max, y_max, z_max) of the BEV map and of normalised references, metres.
    embed_dims: channels of the BEV map. num_layers, num_heads, ffn_dims, num_points, dropout: of the decoder.
    cls_weight, bbox_weight, bbox_beta: weights of focal and box loss, and the latter's smooth-L1 beta (0: L1, as v1);
    the matching uses the same.
    label_smoothing: of the classes of matched queries, see losses.smoothed.
    let_weight, let_sensor_m: of Waymo's LET-IoU in the matching, see matching.HungarianMatcher.
    code_weights: weight of each of the 10 code numbers in the box loss (a frozen parameter, as published).
    max_num, post_center_range, score_threshold: see box_coder.NmsFreeCoder; without a range, pc_range and 10 m around.
    unknown_velocity: what a NaN velocity of a label means: "ignore" leaves it out of the loss; "zero" trains towards
    standing still, which is what the released weights learnt from. (ClipDataset gives zeros, unless configured
    otherwise.)
    quality_weight: above 0, the last layer also learns how good its boxes are (quality.py), with this weight.
    rescore: multiply the scores of detections by their centerness.
    """

    def __init__(
        self,
        num_classes: int = 10,
        num_query: int = 900,
        num_groups: int = 1,
        embed_dims: int = 256,
        num_layers: int = 6,
        num_heads: int = 8,
        ffn_dims: int = 512,
        num_points: int = 4,
        dropout: float = 0.1,
        num_reg_layers: int = 2,
        pc_range: Sequence[float] = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0),
        cls_weight: float = 2.0,
        bbox_weight: float = 0.75,
        bbox_beta: float = 1.0,
        code_weights: Sequence[float] = (1, 1, 1, 1, 1, 1, 1, 1, 0.2, 0.2),
        max_num: int = 300,
        post_center_range: Sequence[float] | None = None,
        score_threshold: float | None = None,
        unknown_velocity: str = "ignore",
        label_smoothing: float = 0.0,
        let_weight: float = 0.0,
        let_sensor_m: Sequence[float] = (1.43, 0.0, 2.18),
        quality_weight: float = 0.0,
        rescore: bool = False,
    ) -> None:
        super().__init__()
        if unknown_velocity not in ("ignore", "zero"):
            raise ValueError(f"unknown_velocity is 'ignore' or 'zero', got {unknown_velocity!r}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is from 0 to below 1, got {label_smoothing}")
        if rescore and quality_weight <= 0:
            raise ValueError("rescore takes what the head learns of its boxes' quality: set quality_weight above 0")
        self.label_smoothing, self.quality_weight, self.rescore = label_smoothing, quality_weight, rescore
        self.num_classes, self.num_query, self.num_groups = num_classes, num_query, num_groups
        self.cls_weight, self.bbox_weight, self.bbox_beta = cls_weight, bbox_weight, bbox_beta
        self.unknown_velocity = unknown_velocity
        self.point_range = tuple(map(float, pc_range))
        x, y, z = map(float, let_sensor_m)
        self.matcher = HungarianMatcher(cls_weight, bbox_weight, bbox_beta, let_weight, (x, y, z))
        self.coder = NmsFreeCoder(max_num, tuple(post_center_range or _widened(self.point_range)), score_threshold)
        self.register_buffer("pc_range", torch.tensor(pc_range, dtype=torch.float32), persistent=False)

        self.code_weights = nn.Parameter(torch.tensor(code_weights, dtype=torch.float32), requires_grad=False)
        layer = dict(num_heads=num_heads, num_points=num_points, ffn_dims=ffn_dims, dropout=dropout)
        self.decoder = ObjectDecoder(num_layers, embed_dims=embed_dims, **layer)
        self.reference_points = nn.Linear(embed_dims, 3)
        init_attention_module(self.decoder)
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)
        layers = range(num_layers)
        self.cls_branches = nn.ModuleList(_branch(embed_dims, num_classes, num_reg_layers, True) for _ in layers)
        self.reg_branches = nn.ModuleList(_branch(embed_dims, CODE_SIZE, num_reg_layers, False) for _ in layers)
        self.query_embedding = nn.Embedding(num_query * num_groups, 2 * embed_dims)
        self.quality_branch = None
        if quality_weight > 0:
            self.quality_branch = nn.Linear(embed_dims, NUM_QUALITIES)
            nn.init.zeros_(self.quality_branch.weight)  # the same for all boxes, at the start
            nn.init.zeros_(self.quality_branch.bias)
        for branch in self.cls_branches:
            nn.init.constant_(branch[-1].bias, -4.59511985)  # a prior of 0.01, Lin et al. 2017

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **options: Any) -> None:
        """``code_weights`` stand in published checkpoints, but are a setting of the loss: the config's count."""
        key = f"{prefix}code_weights"
        if key in state_dict and not self.code_weights.is_meta:
            state_dict[key] = self.code_weights.detach().clone()
        super()._load_from_state_dict(state_dict, prefix, *args, **options)

    # ---- BEV to boxes --------------------------------------------------------------------------------------------

    def decode(self, bev: Tensor, extra: ExtraQueries | None = None) -> QueryOutputs:
        """Class logits and box codes of all queries on a BEV map [B, C, num_y, num_x]."""
        batch = len(bev)
        groups = self.num_groups if self.training else 1
        embedding = self.query_embedding.weight[: groups * self.num_query]
        query_pos, query = (x.expand(batch, -1, -1) for x in embedding.chunk(2, dim=1))  # [B, G * Q, C]
        reference = self.initial_references(query_pos)  # [B, G * Q, 3]
        valid = None
        if extra is not None:
            query, query_pos, reference = (
                torch.cat([own.unflatten(1, (groups, -1)), new[:, None].expand(-1, groups, -1, -1)], 2).flatten(1, 2)
                for own, new in ((query, extra.query), (query_pos, extra.query_pos), (reference, extra.reference))
            )
            valid = torch.cat([extra.valid.new_ones(batch, self.num_query), extra.valid], 1)

        return self._answers(bev, query, query_pos, reference, groups, valid)

    def decode_apart(self, bev: Tensor, queries: ExtraQueries) -> QueryOutputs:
        """Answers of these queries alone, which see one another and none of the head's own.

        A sample without a valid query has answers, too, but they say nothing.
        """
        attended = queries.valid | ~queries.valid.any(1, keepdim=True)  # attention to nothing is NaN
        outs = self._answers(bev, queries.query, queries.query_pos, queries.reference, 1, attended)
        return replace(outs, valid=queries.valid)

    def _answers(
        self, bev: Tensor, query: Tensor, query_pos: Tensor, reference: Tensor, groups: int, valid: Tensor | None
    ) -> QueryOutputs:
        """What the decoder and its branches say of queries [B, G * Q, C] and their references [B, G * Q, 3]."""
        tokens, shape = bev.flatten(2).transpose(1, 2), tuple(bev.shape[2:])
        hidden, references = self.decoder(query, query_pos, reference, tokens, shape, self.reg_branches, groups, valid)
        logits, codes = [], []
        for layer, (cls_branch, reg_branch) in enumerate(zip(self.cls_branches, self.reg_branches)):
            logits.append(cls_branch(hidden[layer]))
            codes.append(self._to_metres(reg_branch(hidden[layer]), references[layer]))
        quality = None if self.quality_branch is None else self.quality_branch(hidden[-1])
        return QueryOutputs(torch.stack(logits), torch.stack(codes), groups, valid, quality, hidden[-1])

    def initial_references(self, query_pos: Tensor) -> Tensor:
        """Reference points [..., 3] in [0, 1] of query positions [..., C]; in float32 under autocast too, since half
        precision is off by a third of a cell of 200.
        """
        with torch.autocast(query_pos.device.type, enabled=False):
            return self.reference_points(query_pos.to(self.reference_points.weight.dtype)).sigmoid()

    def _to_metres(self, raw: Tensor, reference: Tensor) -> Tensor:
        """Codes [..., 10] from a branch's output and the reference (0..1) [..., 3] it refines."""
        centre = raw[..., [0, 1, 4]].float() + inverse_sigmoid(reference.float())
        centre = denormalise_points(centre.sigmoid(), self.pc_range)
        return torch.cat([centre[..., :2], raw[..., 2:4].float(), centre[..., 2:], raw[..., 5:].float()], dim=-1)

    # ---- training ------------------------------------------------------------------------------------------------

    def loss(self, outs: QueryOutputs, gt_boxes: Sequence[Tensor], gt_labels: Sequence[Tensor]) -> dict[str, Tensor]:
        """Losses of all layers: ``loss_cls``, ``loss_bbox`` of the last one, ``d0.loss_cls``, ... of the others; and
        ``loss_quality`` where the head learns it.

        gt_boxes: B x [n, 9] (x, y, z, l, w, h, yaw, vx, vy); gt_labels: B x [n]. Raises FloatingPointError if the
        matching meets non-finite predictions.
        """
        gt_codes = [encode_boxes(boxes.float()) for boxes in gt_boxes]
        last = len(outs.cls_logits) - 1
        losses: dict[str, Tensor] = {}
        for layer, (logits, codes) in enumerate(zip(outs.cls_logits, outs.box_codes)):
            prefix = "" if layer == last else f"d{layer}."
            logits, codes = (x.unflatten(1, (outs.groups, -1)).float() for x in (logits, codes))  # [B, G, Q, .]
            quality = outs.quality if layer == last else None
            terms = self._layer_loss(logits, codes, gt_codes, gt_labels, outs.valid, f"decoder layer {layer}", quality)
            losses |= {prefix + name: value for name, value in terms.items()}
        return losses

    def _layer_loss(
        self,
        logits: Tensor,
        codes: Tensor,
        gt_codes: Sequence[Tensor],
        gt_labels: Sequence[Tensor],
        valid: Tensor | None,
        where: str,
        quality: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Focal, box and quality loss of one layer: each group normalised by itself, mean over groups."""
        assigned = torch.stack(
            [
                self.matcher.match(
                    logits[b],
                    codes[b],
                    gt_codes[b],
                    gt_labels[b],
                    f"{where}, sample {b}",
                    None if valid is None else valid[b],
                )
                for b in range(len(logits))
            ]
        )  # [B, G, Q]
        b, g, q = (assigned != UNMATCHED).nonzero(as_tuple=True)  # [P] each, P positives
        offset = torch.tensor([0] + [len(labels) for labels in gt_labels[:-1]], device=b.device).cumsum(0)
        row = offset[b] + assigned[b, g, q]
        num_positive = torch.zeros(logits.shape[1], device=logits.device).index_add_(
            0, g, torch.ones_like(g, dtype=torch.float32)
        )
        normaliser = mean_over_ranks(num_positive).clamp(min=1)  # [G]

        one_hot = torch.zeros_like(logits)
        one_hot[b, g, q] = self.class_targets(torch.cat(list(gt_labels))[row])
        focal = sigmoid_focal_loss(logits, one_hot).sum(-1)  # [B, G, Q]
        if valid is not None:
            focal = focal * valid[:, None]
        cls = (focal.sum((0, 2)) / normaliser).mean() * self.cls_weight

        def mean_over_groups(values: Tensor) -> Tensor:
            """Of numbers [P] of the matched queries."""
            return (codes.new_zeros(codes.shape[1]).index_add(0, g, values) / normaliser).mean()

        target = torch.cat(list(gt_codes))[row]  # [P, 10]
        bbox = mean_over_groups(self.box_distance(codes[b, g, q], target))
        # The empty sum keeps the box branch in the graph when nothing is matched.
        terms = {"loss_cls": cls, "loss_bbox": bbox * self.bbox_weight + codes.sum() * 0}
        if quality is not None:
            judged = quality.unflatten(1, (codes.shape[1], -1)).float()
            wrong = mean_over_groups(quality_loss(judged[b, g, q], codes[b, g, q], target))
            terms["loss_quality"] = wrong * self.quality_weight + judged.sum() * 0
        return terms

    def class_targets(self, labels: Tensor) -> Tensor:
        """What the class probabilities of queries with these labels [P] are to be: [P, classes]."""
        return smoothed(labels, self.num_classes, self.label_smoothing)

    def box_distance(self, codes: Tensor, gt_codes: Tensor) -> Tensor:
        """The weighted (smooth) L1 distance [P] of codes [P, 10] from labelled ones [P, 10], unknown numbers aside."""
        known = gt_codes.isfinite()
        weight = self.code_weights * (known if self.unknown_velocity == "ignore" else torch.ones_like(known))
        target = torch.where(known, gt_codes, 0)
        return (F.smooth_l1_loss(codes, target, reduction="none", beta=self.bbox_beta) * weight).sum(-1)

    # ---- inference -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(
        self,
        outs: QueryOutputs,
        tokens: Sequence[str],
        query_ids: Sequence[Tensor] | None = None,
        left_out: Sequence[Tensor] | None = None,
    ) -> list[Detections]:
        """Detections of the last layer's first group, one per sample. Raises PredictionError if they are not finite.

        query_ids: B x [Q], the track of each query; its box of the best class has it. left_out: B x [Q], queries that
        are no answer.
        """
        per_group = outs.cls_logits.shape[2] // outs.groups
        found = []
        for b, token in enumerate(tokens):
            logits, codes = outs.cls_logits[-1, b, :per_group].float(), outs.box_codes[-1, b, :per_group].float()
            worth = None
            if self.rescore and outs.quality is not None:
                worth = outs.quality[b, :per_group, CENTERNESS].float().sigmoid()
            ids = None if query_ids is None else query_ids[b]
            kept = None if outs.valid is None else outs.valid[b]
            if left_out is not None and left_out[b].any():
                kept = ~left_out[b] if kept is None else kept & ~left_out[b]
            if kept is not None:
                logits, codes = logits[kept], codes[kept]
                worth, ids = (None if values is None else values[kept] for values in (worth, ids))
            check_answer("boxes", token, logits, codes)
            decoded, queries = self.coder.decode_queries(logits, codes, worth)
            boxes, scores, labels = (x.cpu().numpy() for x in decoded)
            track_ids = None
            if ids is not None:
                own = torch.where(logits.argmax(-1)[queries] == decoded[2], ids[queries], NO_TRACK)
                track_ids = own.cpu().numpy()
            found.append(Detections(token, boxes, scores, labels, track_ids))
        return found
