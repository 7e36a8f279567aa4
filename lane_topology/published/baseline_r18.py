"""OpenLane-V2's small baseline: ResNet-18, inverse perspective mapping, one DETR layer for lanes and one for elements.

Source: OpenLane-V2, arXiv 2304.10440, and its released code. Keys are those of the published model.

Shapes: as road_bevformer.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_convert

from ...backbone.fpn import ConvModule
from ...bev.protocol import build
from ...bev.published.ego_motion import images_from_ego
from ...core.answers import LaneGraph
from ...core.batch import Batch
from ...core.registries import MODELS
from ..curves import NUM_CONTROL
from ..front_image import boxes_on_disk
from . import losses
from .road_bevformer import LaneBaseline, lane_graph


@MODELS.register_module()
class FinestFPN(nn.Module):
    """A feature pyramid of which only the finest level is made."""

    def __init__(self, in_channels: Sequence[int] = (256, 512), out_channels: int = 128) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(ConvModule(c, out_channels, 1) for c in in_channels)
        self.fpn_convs = nn.ModuleList([ConvModule(out_channels, out_channels, 3)])

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        merged = None
        for conv, x in reversed(list(zip(self.lateral_convs, features))):
            own = conv(x)
            merged = own if merged is None else own + F.interpolate(merged, size=own.shape[-2:], mode="nearest")
        return [self.fpn_convs[0](merged)]


@MODELS.register_module()
class RoadBaselineR18(LaneBaseline):
    """img_view_transformer: IpmViewTransformer; lc_head, te_head: DetrHead; lclc_head, lcte_head: TopologyHead.

    point_range: of the lanes' codes, metres of the EGO frame; lane_weights, element_weights: of classification and L1
    (and GIoU), and of the matching. unnormalised_matching: match codes in 0..1 to labels in metres, only to repeat
    published training (docs/quirks.md#lanes-matched-without-normalisation).
    """

    def __init__(
        self,
        *,
        img_view_transformer: dict | nn.Module,
        lc_head: dict | nn.Module,
        te_head: dict | nn.Module,
        lclc_head: dict | nn.Module,
        lcte_head: dict | nn.Module,
        point_range: Sequence[float] = (-50.0, -25.0, -3.0, 50.0, 25.0, 2.0),
        lane_weights: tuple[float, float] = (1.0, 2.5),
        element_weights: tuple[float, float, float] = (1.0, 2.5, 1.0),
        unnormalised_matching: bool = False,
        **shared: object,
    ) -> None:
        super().__init__(**shared)
        self.img_view_transformer, self.lc_head = build(img_view_transformer), build(lc_head)
        self.te_head, self.lclc_head, self.lcte_head = build(te_head), build(lclc_head), build(lcte_head)
        self.lane_weights, self.element_weights = tuple(lane_weights), tuple(element_weights)
        self.unnormalised_matching = unnormalised_matching
        low = torch.tensor(point_range[:3])
        self.register_buffer("low", low.repeat(NUM_CONTROL), persistent=False)
        self.register_buffer("size", (torch.tensor(point_range[3:]) - low).repeat(NUM_CONTROL), persistent=False)

    def outputs(self, batch: Batch) -> tuple:
        """Lanes and elements (DetrOutputs) and the edges' logits [B, Q, Q], [B, Q, E]."""
        (maps,), sizes = self.levels(batch), batch.image_size_px[:, batch.current]
        padded, front = tuple(batch.images.shape[-2:]), self.front(batch)
        lanes = self.lc_head(self.img_view_transformer(maps, images_from_ego(batch)[:, batch.current], sizes, padded))
        elements = self.te_head(maps[:, front])
        return (
            lanes,
            elements,
            self.lclc_head(lanes.states, lanes.states).float(),
            self.lcte_head(lanes.states, elements.states).float(),
        )

    def lane_terms(
        self, logits: Tensor, codes: Tensor, gt_codes: Sequence[Tensor]
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Losses and assignment of codes [B, Q, D] in 0..1 against labels [n, D] in metres."""
        labels = [(own - self.low) / self.size for own in gt_codes]
        matched_to = gt_codes if self.unnormalised_matching else labels
        cls_weight, reg_weight = self.lane_weights
        lane_of = losses.match_lanes(logits, codes, matched_to, cls_weight, reg_weight, "lanes")
        cls, reg = losses.lane_losses(logits, codes, labels, lane_of, torch.ones_like(self.size))
        return {"loss_cls": cls * cls_weight, "loss_bbox": reg * reg_weight}, lane_of

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Terms of all heads. Raises as RoadBevFormer.loss."""
        labels = self.labels(batch)
        lanes, elements, lane_lane, lane_element = self.outputs(batch)
        lane_terms, lane_of = self.lane_terms(lanes.logits, lanes.codes, labels["codes"])
        known = self.with_front(batch)
        seen = known or [0]  # weighs nothing then
        sizes = batch.images.new_tensor([*reversed(batch.images.shape[-2:])]).repeat(2)
        boxes, attributes = ([labels[key][b] for b in seen] for key in ("boxes", "attributes"))
        truth = boxes, attributes, [sizes] * len(seen)
        found = elements.logits[seen], elements.codes[seen]
        element_of = losses.match_boxes(*found, *truth, self.element_weights, "traffic elements")
        values = losses.box_losses(*found, *truth, element_of)
        between, governs = self.edge_terms(
            self.lclc_head.loss_logits(lane_lane),
            self.lcte_head.loss_logits(lane_element),
            labels,
            lane_of,
            element_of,
            seen,
        )
        terms = {f"lc_head.{name}": value for name, value in lane_terms.items()}
        for name, value, weight in zip(("loss_cls", "loss_bbox", "loss_iou"), values, self.element_weights):
            terms[f"te_head.{name}"] = value * weight * float(bool(known))
        return terms | {"lclc_head.loss_rel": between, "lcte_head.loss_rel": governs * float(bool(known))}

    def graphs(self, batch: Batch) -> list[LaneGraph]:
        lanes, elements, lane_lane, lane_element = self.outputs(batch)
        front, graphs = self.front(batch), []
        sizes = batch.images.new_tensor([*reversed(batch.images.shape[-2:])]).repeat(2)
        for b, token in enumerate(batch.tokens):
            scores, attributes = elements.logits[b].sigmoid().max(-1)
            boxes = box_convert(elements.codes[b], "cxcywh", "xyxy") * sizes
            graphs.append(
                lane_graph(
                    token,
                    (lanes.codes[b] * self.size + self.low).unflatten(-1, (-1, 3)),
                    lanes.logits[b, :, 0].sigmoid(),
                    (boxes_on_disk(boxes, batch, b, front), scores, attributes),
                    lane_lane[b].sigmoid(),
                    lane_element[b].sigmoid(),
                    scramble_edges=self.scramble_edges,
                )
            )
        return self.of_seen(graphs, batch)
