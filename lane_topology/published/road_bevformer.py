"""OpenLane-V2's large baseline (BEVFormer on InternImage or ResNet-50): lanes, traffic elements and their topology.

Source: OpenLane-V2, arXiv 2304.10440, and its released code. State-dict prefixes are those of the published
models: ``img_backbone.``, ``img_neck.``, ``bev_constructor.``, ``pts_bbox_head.``, ``bbox_head.``, ``lclc_head.``,
``lcte_head.``. New models should take ``head.LaneTopologyHead``.

Shapes: B batch, N cameras, C channels, Q lane queries, E element queries, D numbers of a lane's code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ...bev.protocol import PerceptionModel, build, build_encoder
from ...bev.published.ego_motion import images_from_ego
from ...core.answers import LaneGraph, SceneAnswer
from ...core.batch import Batch
from ...core.errors import ConfigError
from ...core.finite import check_answer
from ...core.registries import MODELS
from ...data_tools.clips.can_bus import can_bus_of_pose
from ..curves import fit_lines, sample_curves
from ..front_image import boxes_on_disk, front_index, front_seen, without_elements
from . import losses
from .element_head import ElementOutputs


def lane_graph(
    token: str,
    controls: Tensor,
    scores: Tensor,
    elements: tuple[Tensor, Tensor, Tensor],
    lane_lane: Tensor,
    lane_element: Tensor,
    num_points: int = 11,
    scramble_edges: bool = False,
) -> LaneGraph:
    """One sample's answer: controls [Q, K, 3] metres, scores [Q], elements (boxes [E, 4], scores [E], attributes [E]),
    probabilities [Q, Q] and [Q, E]; lanes in the queries' order.

    ``scramble_edges`` gives what InternImage's fork gives: lanes by rising score, edges where they were, so that rows
    and columns belong to other lanes (docs/quirks.md#scrambled-edges).
    """
    points = sample_curves(controls.float(), num_points)
    if scramble_edges:
        order = scores.argsort(stable=True)
        points, scores = points[order], scores[order]
    boxes, element_scores, attributes = elements
    arrays = (points, scores, boxes, attributes, element_scores, lane_lane, lane_element)
    check_answer("lanes", token, *arrays)
    return LaneGraph(token, *(x.detach().cpu().numpy() for x in arrays))


class LaneBaseline(PerceptionModel):
    """What the baselines share: images to pyramid maps, matrices of the EGO frame, labels."""

    tasks = ("lanes",)

    def __init__(
        self,
        img_backbone: dict | nn.Module,
        img_neck: dict | nn.Module,
        front_camera: str | int | None = None,
        scramble_edges: bool = False,
        edge_weight: float = 5.0,
    ) -> None:
        super().__init__()
        self.img_backbone, self.img_neck = build_encoder(img_backbone, img_neck)
        self.front_camera = front_camera
        self.scramble_edges, self.edge_weight = scramble_edges, edge_weight

    def levels(self, batch: Batch) -> list[Tensor]:
        """Pyramid maps [B, N, C, h, w] of the current frame."""
        images = batch.images[:, batch.current]
        if batch.image_flipped.any():
            raise ConfigError("lanes do not follow image flips: leave image.flip off, use mirror")
        return [
            level.unflatten(0, images.shape[:2]) for level in self.img_neck(self.img_backbone(images.flatten(0, 1)))
        ]

    def front(self, batch: Batch) -> int:
        """Index of the front camera; 0, whose elements are dropped, where none looks ahead."""
        return front_index(self.front_camera, batch) or 0

    def front_seen(self, batch: Batch) -> list[bool]:
        """For each sample whether its frame has the front camera."""
        return front_seen(front_index(self.front_camera, batch), batch)

    def front_sizes(self, batch: Batch) -> Tensor:
        """[B, 2] (height, width) of the front images; where one is missing, of the padding that is in its place."""
        sizes = batch.image_size_px[:, batch.current, self.front(batch)]
        return torch.where(sizes > 0, sizes, sizes.new_tensor(batch.images.shape[-2:]))

    def with_front(self, batch: Batch) -> list[int]:
        """The samples of which the traffic elements are known, those that have the front camera."""
        return [b for b, seen in enumerate(self.front_seen(batch)) if seen]

    def labels(self, batch: Batch) -> dict[str, list[Tensor]]:
        """Per sample: ``codes`` [n, D] metres, ``boxes`` [k, 4] xyxy px, ``attributes`` [k], ``lane_lane``,
        ``lane_element``. Raises ConfigError where a sample has none.
        """
        if any(own is None for own in batch.lanes):
            raise ConfigError(
                f"samples {', '.join(batch.tokens)}: not all have lane labels; use a split that has, with lanes=True"
            )
        device = batch.images.device
        return {
            "codes": [fit_lines(own.centrelines).flatten(1).to(device) for own in batch.lanes],
            "boxes": [own.elements_xyxy_px.float() for own in batch.lanes],
            "attributes": [own.attributes for own in batch.lanes],
            "lane_lane": [own.lane_lane for own in batch.lanes],
            "lane_element": [own.lane_element for own in batch.lanes],
        }

    def edge_terms(
        self,
        lane_lane: Tensor,
        lane_element: Tensor,
        labels: Mapping[str, list[Tensor]],
        lane_of: Sequence[Tensor],
        element_of: Sequence[Tensor],
        seen: Sequence[int],
    ) -> tuple[Tensor, Tensor]:
        """Weighted losses of logits [B, Q, Q] and [B, Q, E], given the assignments; of elements those of ``seen``."""
        between = losses.edge_targets(labels["lane_lane"], lane_of, lane_of, lane_lane.shape[1:])
        edges, rows = [labels["lane_element"][b] for b in seen], [lane_of[b] for b in seen]
        governs = losses.edge_targets(edges, rows, element_of, lane_element.shape[1:])
        weight = self.edge_weight
        return losses.edge_loss(lane_lane, between) * weight, losses.edge_loss(lane_element[seen], governs) * weight

    def of_seen(self, graphs: Sequence[LaneGraph], batch: Batch) -> list[LaneGraph]:
        """The graphs without elements where the frame lacks the front camera."""
        shown = self.front_seen(batch)
        return [graph if seen else without_elements(graph) for graph, seen in zip(graphs, shown)]

    def graphs(self, batch: Batch) -> list[LaneGraph]:
        raise NotImplementedError

    @torch.no_grad()
    def predict(
        self, batch: Batch, memory: None = None, tasks: Sequence[str] | None = None
    ) -> tuple[list[SceneAnswer], None]:
        """The lanes of each sample; these models have no memory."""
        self.asked(tasks)
        return [SceneAnswer(graph.token, lanes=graph) for graph in self.graphs(batch)], None


@MODELS.register_module()
class RoadBevFormer(LaneBaseline):
    """bev_constructor: BevConstructor; pts_bbox_head: CentrelineHead; bbox_head: ElementHead; lclc_head, lcte_head:
    RelationshipHead. front_camera: name or index of the camera of the traffic elements. scramble_edges: see
    ``lane_graph``.
    """

    def __init__(
        self,
        *,
        bev_constructor: dict | nn.Module,
        pts_bbox_head: dict | nn.Module,
        bbox_head: dict | nn.Module,
        lclc_head: dict | nn.Module,
        lcte_head: dict | nn.Module,
        **shared: object,
    ) -> None:
        super().__init__(**shared)
        self.bev_constructor, self.pts_bbox_head = build(bev_constructor), build(pts_bbox_head)
        self.bbox_head, self.lclc_head, self.lcte_head = build(bbox_head), build(lclc_head), build(lcte_head)

    def outputs(self, batch: Batch) -> tuple:
        """Lanes (CentrelineOutputs), elements (ElementOutputs) and the edges' logits [B, Q, Q], [B, Q, E]."""
        levels, now, front = self.levels(batch), batch.current, self.front(batch)
        padded = tuple(batch.images.shape[-2:])
        can_bus = None
        if self.bev_constructor.can_bus_mlp is not None:
            signals = np.stack([can_bus_of_pose(f.global_from_ego, f.can_signals) for f in batch.frames])
            can_bus = torch.from_numpy(signals).to(batch.images.device)
        sizes, rows = batch.image_size_px[:, now], self.bev_constructor.embedding_rows(batch)
        bev = self.bev_constructor(levels, images_from_ego(batch)[:, now], sizes, padded, can_bus, camera_ids=rows)
        lanes = self.pts_bbox_head(bev)
        elements = self.bbox_head([level[:, front] for level in levels], self.front_sizes(batch), padded)
        state = lanes.states[-1]
        return lanes, elements, self.lclc_head(state, state).float(), self.lcte_head(state, elements.states[-1]).float()

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Terms of all heads, named as upstream. Without any element in the batch the element terms are zeros that keep
        the graph; samples without front camera add nothing to them. Raises ConfigError for samples without labels,
        FloatingPointError as the matching does.
        """
        labels = self.labels(batch)
        lanes, elements, lane_lane, lane_element = self.outputs(batch)
        lane_terms, lane_of = self.pts_bbox_head.loss(lanes, labels["codes"])
        known = self.with_front(batch)
        seen = known or [0]  # weighs nothing then
        boxes, attributes = ([labels[key][b] for b in seen] for key in ("boxes", "attributes"))
        shown = ElementOutputs(elements.logits[:, seen], elements.boxes[:, seen], elements.states[:, seen])
        element_terms, element_of = self.bbox_head.loss(shown, boxes, attributes, self.front_sizes(batch)[seen])
        between, governs = self.edge_terms(lane_lane, lane_element, labels, lane_of, element_of, seen)
        present = float(any(len(labels["boxes"][b]) for b in known))
        return (
            {f"lane_head.{name}": value for name, value in lane_terms.items()}
            | {f"bbox_head.{name}": value * present for name, value in element_terms.items()}
            | {"lclc_head.loss_rel": between, "lcte_head.loss_rel": governs * present}
        )

    def graphs(self, batch: Batch) -> list[LaneGraph]:
        lanes, elements, lane_lane, lane_element = self.outputs(batch)
        front = self.front(batch)
        found = self.bbox_head.predict(elements, self.front_sizes(batch))
        graphs = [
            lane_graph(
                token,
                lanes.codes[-1, b].unflatten(-1, (-1, 3)),
                lanes.logits[-1, b, :, 0].sigmoid(),
                (boxes_on_disk(boxes, batch, b, front), scores, attributes),
                lane_lane[b].sigmoid(),
                lane_element[b].sigmoid(),
                scramble_edges=self.scramble_edges,
            )
            for b, (token, (boxes, scores, attributes)) in enumerate(zip(batch.tokens, found))
        ]
        return self.of_seen(graphs, batch)
