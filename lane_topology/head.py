"""The lane head of the shared model: directed lanes, traffic elements, and their relations, from one BEV map.

Lanes are Bezier curves, refined layer by layer from dense guesses (lane_map.py) and learned ones (lane_decoder.py);
elements come from the front camera's pyramid (elements.py); relations.py joins them. Every layer is supervised.

Shapes: B batch, N cameras, C channels, Q lane queries, K control points, n labelled lanes, k labelled elements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..bev.map.resample import resample_bev
from ..core.answers import LaneGraph
from ..core.batch import Batch, BevFeatures
from ..core.errors import ConfigError
from ..core.finite import check_answer
from ..core.labels import LaneTargets
from ..core.registries import MODELS
from ..geometry import BevGrid
from .curves import NUM_CONTROL, fit_lines, sample_curves
from .elements import NUM_ATTRIBUTES, DenseElements, ElementMaps, Elements
from .end_map import EndMap, EndMapOutputs, snap
from .front_image import boxes_on_disk, front_index, front_seen, without_elements
from .lane_decoder import LaneDecoder
from .lane_losses import LaneLosses, edge_terms, repeated
from .lane_map import LaneMap, LaneMapOutputs
from .one_to_many import OneToMany, random_curves
from .relations import LaneElementRelation, LaneRelation
from .street_attention import StreetAttention


@dataclass(frozen=True)
class LaneOutputs:
    """Outputs of the head for each lane query, cell of the BEV map and cell of the front image."""

    logits: Tensor
    """[layers, B, Q] score of each lane"""
    controls: Tensor
    """[layers, B, Q, K, 3] metres, EGO frame"""
    lanes: Tensor
    """[B, Q, C] embeddings of the last layer: feature and position"""
    lane_lane: Tensor
    """[B, Q, Q] logits: the end of lane i leads into the start of lane j"""
    dense: LaneMapOutputs
    elements: ElementMaps
    image_size_px: tuple[int, int]
    """(height, width) of the padded front image"""
    ends: EndMapOutputs | None = None
    """where lanes start and end; None without an end map"""
    many: tuple[Tensor, Tensor] | None = None
    """logits and controls, as above, of the group that is matched one-to-many; None outside training"""


@MODELS.register_module()
class LaneTopologyHead(nn.Module):
    """A task head of bev.bevformer_v2.BEVFormerV2.

    in_channels: of BEV and pyramid maps; channels: C of this head, a multiple of num_heads.
    lane_range: (x_min, y_min, z_min, x_max, y_max, z_max) metres of the EGO frame; bev_size: (num_y, num_x) cells of
        the lanes' own map, to which the shared one is resampled.
    num_queries, num_proposals: learned lane queries, and those from the dense guesses.
    num_layers, num_heads, num_along, ffn_dims, dropout: of the decoder (lane_decoder.py); dilations: of the dense
        branch (lane_map.py); hidden: of the pair MLPs.
    front_camera: name or index of the camera whose image shows the elements; default the one that looks ahead, by its
        name or its optical axis (front_image.py). A frame without it has no elements.
    element_level: which pyramid map shows the elements, 0 the finest; element_upsample: finer cells than the map's;
        element_stem: channels of convolutions on the front image itself (elements.py), 0 without; max_elements: peaks
        returned.
    max_lanes: lanes returned, best first (None: all); num_points: points of each.
    near_m: a query that is matched to no label, but within this mean distance per axis of one, learns that lane's edges
        too.
    end_map: arguments of EndMap, e.g. ``dict()``; None: without. snap_radius_m, snap_falloff_m: at inference ends of
        lanes move to its points (end_map.snap), and edges follow from the moved lanes; radius 0: they do not.
    one_to_many: arguments of OneToMany, a second group of queries in training only; None: without.
    street_map: arguments of StreetAttention, e.g. ``dict()``; the lanes' map then also sees the batch's street maps,
        where it has any. None: without.
    min_score: lanes below are left out. OLS ranks lanes and hardly sees the bad ones; the F-score and who uses the
        lanes count every one (docs/lane_topology.md).
    weights: factor of each loss term, see ``WEIGHTS``; terms that are not named keep theirs.

    Raises ConfigError for unknown weights, and for a snap_radius_m without end_map.
    """

    WEIGHTS = {
        "cls": 1.5,
        "points": 0.25,
        "control": 0.1,
        "dense_mask": 1.0,
        "dense_heat": 1.0,
        "dense_direction": 0.5,
        "dense_points": 0.25,
        "topology": 2.0,
        "element_heat": 1.0,
        "element_class": 0.5,
        "element_box": 1.0,
        "element_relation": 2.0,
        "end_heat": 1.0,
        "end_places": 0.5,
        "many": 1.0,  # of the one-to-many group's terms, beside their own
    }

    def __init__(
        self,
        in_channels: int = 256,
        channels: int = 256,
        lane_range: Sequence[float] = (-51.2, -25.6, -2.3, 51.2, 25.6, 1.7),
        bev_size: tuple[int, int] = (100, 200),
        num_queries: int = 100,
        num_proposals: int = 100,
        num_layers: int = 6,
        num_heads: int = 8,
        num_along: int = 5,
        ffn_dims: int = 512,
        dropout: float = 0.0,
        dilations: Sequence[int] = (1, 2, 4, 8),
        hidden: int = 128,
        num_control: int = NUM_CONTROL,
        front_camera: str | int | None = None,
        element_level: int = 0,
        element_upsample: int = 2,
        element_channels: int | None = None,
        element_stem: int = 0,
        num_attributes: int = NUM_ATTRIBUTES,
        max_elements: int = 50,
        max_lanes: int | None = None,
        num_points: int = 11,
        near_m: float = 1.0,
        end_map: Mapping[str, Any] | None = None,
        snap_radius_m: float = 0.0,
        snap_falloff_m: float = 1.0,
        one_to_many: Mapping[str, Any] | None = None,
        street_map: Mapping[str, Any] | None = None,
        min_score: float = 0.0,
        weights: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        if snap_radius_m and end_map is None:
            raise ConfigError("snap_radius_m moves lanes to the points of an end map: give end_map, or leave it 0")
        if unknown := set(weights or {}) - set(self.WEIGHTS):
            raise ConfigError(f"weights: {sorted(unknown)[0]!r} is no loss; choose from {', '.join(self.WEIGHTS)}")
        self.weights = self.WEIGHTS | (weights or {})
        self.losses = LaneLosses(num_points, self.weights)
        self.snap_radius_m, self.snap_falloff_m, self.min_score = snap_radius_m, snap_falloff_m, min_score
        self.front_camera = front_camera
        self.num_control, self.num_points, self.near_m = num_control, num_points, near_m
        self.num_proposals, self.max_elements, self.max_lanes = num_proposals, max_elements, max_lanes
        self.element_level, self.num_attributes = element_level, num_attributes
        self.lane_range = tuple(map(float, lane_range))
        x_min, y_min, _, x_max, y_max, _ = self.lane_range
        self.grid = BevGrid(x_min, y_min, x_max, y_max, num_x=bev_size[1], num_y=bev_size[0])
        self.lane_map = LaneMap(in_channels, channels, self.grid, dilations, num_control)
        self.decoder = LaneDecoder(
            self.lane_range, channels, num_layers, num_heads, num_along, ffn_dims, num_control, dropout=dropout
        )
        self.proposal_query = nn.Linear(channels, channels)
        self.query = nn.Embedding(num_queries, channels)
        self.first_curves = nn.Parameter(random_curves(num_queries, self.lane_range, num_control))
        element_channels = element_channels or channels
        self.element_maps = DenseElements(
            in_channels, element_channels, element_upsample, 2, num_attributes, stem_channels=element_stem
        )
        self.lane_relation = LaneRelation(channels, hidden)
        self.element_relation = LaneElementRelation(channels, element_channels, num_attributes, hidden)
        # after all others, so that a seed gives those the same numbers with and without
        self.end_map = None if end_map is None else EndMap(channels, self.grid, **end_map)
        self.streets = None if street_map is None else StreetAttention(channels, self.grid, **street_map)
        self.many = None if one_to_many is None else OneToMany(channels, self.lane_range, num_control, **one_to_many)

    def pyramid_views(self, batch: Batch) -> list[tuple[int, int]]:
        """(level, camera) of the pyramid maps that ``forward`` reads: that of the front camera."""
        return [(self.element_level, front_index(self.front_camera, batch) or 0)]

    def forward(self, features: BevFeatures, levels: Sequence[Tensor], batch: Batch) -> LaneOutputs:
        """From the shared BEV map and the current frame's pyramid maps [B, N, C, h, w].

        Raises ConfigError where the batch does not have the front camera, or its labels name another one.
        """
        front = front_index(self.front_camera, batch) or 0  # without one, `loss` and `predict` drop the elements
        add_streets = None if self.streets is None else partial(self.streets, streets=batch.street_maps)
        dense = self.lane_map(resample_bev(features, self.grid, batch.ego_from_bev), add_streets)
        size = self.decoder.size
        guesses, at_guesses = self.lane_map.proposals(dense, self.num_proposals)
        learned = self.first_curves * size + self.decoder.low
        count = len(guesses)
        controls = torch.cat([learned.expand(count, -1, -1, -1), guesses], 1)
        query = torch.cat([self.query.weight.expand(count, -1, -1), self.proposal_query(at_guesses)], 1)
        states, logits, curves = self.decoder(query, controls, dense.features)
        lanes = states + self.decoder.embed(curves[-1].detach())
        image_size_px = tuple(batch.images.shape[-2:])
        front_images = batch.images[:, batch.current, front]
        maps = self.element_maps(levels[self.element_level][:, front], front_images)
        ends = None if self.end_map is None else self.end_map(dense.features)
        relation = self.lane_relation(lanes, curves[-1])
        many = None
        if self.many is not None and self.training:
            first = self.many(guesses, self.proposal_query(at_guesses))
            many = self.decoder(*first, dense.features)[1:]  # apart: nothing of it reaches the ordinary queries
        return LaneOutputs(logits, curves, lanes, relation, dense, maps, image_size_px, ends, many)

    def relate(self, outputs: LaneOutputs, elements: Elements) -> Tensor:
        """[B, Q, E] logits: element j governs lane i."""
        height, width = outputs.image_size_px
        boxes = elements.boxes / elements.boxes.new_tensor([width, height, width, height])
        return self.element_relation(outputs.lanes, elements.features, elements.attributes, boxes)

    # ---- training ------------------------------------------------------------------------------------------------

    def loss(self, outputs: LaneOutputs, batch: Batch) -> dict[str, Tensor]:
        """Named terms; those of earlier decoder layers carry ``d0_``, ``d1_``, ... Samples without labels add nothing.

        Raises FloatingPointError if the matching meets numbers that are not finite.
        """
        count, device = outputs.logits.shape[1], outputs.logits.device
        targets = list(batch.lanes) or [None] * count
        controls = [None if t is None else self._labels(t, device) for t in targets]
        shown = front_seen(front_index(self.front_camera, batch), batch)
        boxes = [None if t is None or not seen else t.elements_xyxy_px for t, seen in zip(targets, shown)]
        kinds = [None if t is None or not seen else t.attributes for t, seen in zip(targets, shown)]
        terms = {f"dense_{name}": value for name, value in self.lane_map.loss(outputs.dense, controls).items()}
        terms |= {f"element_{n}": value for n, value in self.element_maps.loss(outputs.elements, boxes, kinds).items()}
        if self.end_map is not None:
            assert outputs.ends is not None
            terms |= {f"end_{n}": value for n, value in self.end_map.loss(outputs.ends, controls).items()}
        of_layers, assigned = self._layer_losses(outputs.logits, outputs.controls, controls, "lanes")
        terms |= of_layers | self._edge_losses(outputs, targets, controls, assigned, boxes)
        weighted = {name: value * self.weights[self._term(name)] for name, value in terms.items()}
        if outputs.many is not None:
            assert self.many is not None
            often = repeated(controls, self.many.repeats, outputs.many[0].shape[2])
            of_layers, _ = self._layer_losses(*outputs.many, often, "lanes, one-to-many")
            factor = self.weights["many"]
            weighted |= {f"many_{n}": v * factor * self.weights[self._term(n)] for n, v in of_layers.items()}
        return {f"loss_lane_{name}": value for name, value in weighted.items()}

    @staticmethod
    def _term(name: str) -> str:
        return name.split("_", 1)[1] if name[0] == "d" and name[1].isdigit() else name

    def _labels(self, targets: LaneTargets, device: torch.device) -> Tensor:
        return fit_lines(targets.centrelines, self.num_control).to(device)

    def _layer_losses(
        self, logits: Tensor, curves: Tensor, labels: Sequence[Tensor | None], where: str
    ) -> tuple[dict[str, Tensor], list[Tensor | None]]:
        """Terms of all layers, and the last one's matching; logits [layers, B, Q], curves [layers, B, Q, K, 3]."""
        terms: dict[str, Tensor] = {}
        assigned: list[Tensor | None] = []
        for layer, of_layer in enumerate(zip(logits, curves)):
            assigned = self.losses.assign(*of_layer, labels, f"{where}, layer {layer}")
            prefix = "" if layer == len(logits) - 1 else f"d{layer}_"
            terms |= {prefix + n: v for n, v in self.losses.terms(*of_layer, labels, assigned).items()}
        return terms, assigned

    def _edge_losses(
        self,
        outputs: LaneOutputs,
        targets: Sequence[LaneTargets | None],
        labels: Sequence[Tensor | None],
        assigned: Sequence[Tensor | None],
        boxes: Sequence[Tensor | None],
    ) -> dict[str, Tensor]:
        element_logits = self.relate(outputs, self.element_maps.labelled(outputs.elements, boxes))
        stands_for = [
            None if own is None or to is None else self.losses.stands_for(to, outputs.controls[-1, b], own, self.near_m)
            for b, (own, to) in enumerate(zip(labels, assigned))
        ]
        return edge_terms(outputs.lane_lane, element_logits, targets, stands_for)

    # ---- inference -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, outputs: LaneOutputs, batch: Batch) -> list[LaneGraph]:
        """One graph per sample: lanes best first, and the elements' boxes in the front image as it lies on disk; none
        where the frame lacks the front camera. Raises PredictionError where one is not finite."""
        controls, lane_lane = outputs.controls[-1], outputs.lane_lane
        if self.snap_radius_m and self.end_map is not None and outputs.ends is not None:
            controls = snap(controls, self.end_map.points(outputs.ends), self.snap_radius_m, self.snap_falloff_m)
            lane_lane = self.lane_relation(outputs.lanes, controls)
        elements = self.element_maps.peaks(outputs.elements, self.max_elements)
        lane_element = self.relate(outputs, elements).sigmoid()
        scores, order = outputs.logits[-1].sigmoid().sort(dim=1, descending=True, stable=True)
        front, found = front_index(self.front_camera, batch), []
        shown = front_seen(front, batch)
        for b, token in enumerate(batch.tokens):
            count = None if not self.min_score else int((~(scores[b] < self.min_score)).sum())  # NaN stays, to be seen
            kept = order[b, :count][: self.max_lanes]
            arrays = (
                sample_curves(controls[b, kept], self.num_points),
                scores[b, : len(kept)],
                boxes_on_disk(elements.boxes[b], batch, b, front or 0),
                elements.attributes[b].argmax(-1),
                elements.scores[b],
                lane_lane[b, kept[:, None], kept].sigmoid(),
                lane_element[b, kept],
            )
            check_answer("lanes", token, *(arrays if shown[b] else (*arrays[:2], arrays[5])))
            graph = LaneGraph(token, *(x.cpu().numpy() for x in arrays))
            found.append(graph if shown[b] else without_elements(graph))
        return found
