"""Lane head of OpenLane-V2's large baselines: queries on the BEV map, each with five Bezier control points.

Source: OpenLane-V2, arXiv 2304.10440; keys of the published models (prefix ``pts_bbox_head.``).

Shapes: B batch, Q queries, C channels, num_y x num_x BEV cells, D = 15 numbers of a lane's code, R decoder layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...bev.boxes.decoder import ObjectDecoder, inverse_sigmoid
from ...core.registries import MODELS
from ..curves import NUM_CONTROL
from . import losses
from .bev_constructor import OPENLANE_RANGE


@dataclass(frozen=True)
class CentrelineOutputs:
    logits: Tensor
    """[R, B, Q, 1]"""
    codes: Tensor
    """[R, B, Q, D] metres, EGO frame"""
    states: Tensor
    """[R, B, Q, C]"""


def branch(channels: int, out: int, norm: bool) -> nn.Sequential:
    """Two hidden layers (with norms for scores) and an output layer."""
    layers: list[nn.Module] = []
    for _ in range(2):
        layers += [nn.Linear(channels, channels), *([nn.LayerNorm(channels)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(channels, out))


def _middle_of_ends(move: nn.Module) -> Callable[[Tensor], Tensor]:
    """A branch whose slots 0, 1 and 4, which refine a reference point, are the mean movement of both ends."""

    def moved(state: Tensor) -> Tensor:
        points = move(state).unflatten(-1, (-1, 3))
        return ((points[..., 0, :] + points[..., -1, :]) / 2)[..., [0, 1, 2, 2, 2]]

    return moved


class LaneTransformer(nn.Module):
    """Decoder and first reference points, under the published names."""

    def __init__(self, embed_dims: int, num_layers: int, **layer: object) -> None:
        super().__init__()
        self.decoder = ObjectDecoder(num_layers, embed_dims=embed_dims, **layer)
        self.reference_points = nn.Linear(embed_dims, 3)


@MODELS.register_module()
class CentrelineHead(nn.Module):
    """num_query: Q; with_box_refine: move the reference points from layer to layer (the published models do not);
    cls_weight, reg_weight: of focal and L1 loss, and of the matching; code_weights: of the D numbers (a frozen
    parameter, as published).
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_query: int = 100,
        num_layers: int = 6,
        num_heads: int = 8,
        ffn_dims: int = 512,
        dropout: float = 0.1,
        pc_range: Sequence[float] = OPENLANE_RANGE,
        num_control: int = NUM_CONTROL,
        with_box_refine: bool = False,
        cls_weight: float = 1.5,
        reg_weight: float = 0.0075,
    ) -> None:
        super().__init__()
        self.with_box_refine = with_box_refine
        self.cls_weight, self.reg_weight = cls_weight, reg_weight
        self.code_weights = nn.Parameter(torch.ones(3 * num_control), requires_grad=False)
        self.transformer = LaneTransformer(
            embed_dims, num_layers, num_heads=num_heads, ffn_dims=ffn_dims, dropout=dropout
        )
        self.cls_branches = nn.ModuleList(branch(embed_dims, 1, True) for _ in range(num_layers))
        self.reg_branches = nn.ModuleList(branch(embed_dims, 3 * num_control, False) for _ in range(num_layers))
        self.query_embedding = nn.Embedding(num_query, 2 * embed_dims)
        for own in self.cls_branches:
            nn.init.constant_(own[-1].bias, -4.59511985)  # a prior of 0.01
        self.register_buffer("low", torch.tensor(pc_range[:3]), persistent=False)
        self.register_buffer("size", torch.tensor(pc_range[3:]) - self.low, persistent=False)

    def forward(self, bev: Tensor) -> CentrelineOutputs:
        """From a BEV map [B, C, num_y, num_x]."""
        query_pos, query = (x.expand(len(bev), -1, -1) for x in self.query_embedding.weight.chunk(2, 1))
        with torch.autocast(bev.device.type, enabled=False):
            reference = self.transformer.reference_points(query_pos.float()).sigmoid()
        refine = [_middle_of_ends(move) for move in self.reg_branches] if self.with_box_refine else None
        tokens, shape = bev.flatten(2).transpose(1, 2), tuple(bev.shape[2:])
        states, references = self.transformer.decoder(query, query_pos, reference, tokens, shape, refine)
        logits, codes = [], []
        for state, anchor, score, move in zip(states, references, self.cls_branches, self.reg_branches):
            logits.append(score(state).float())
            points = move(state).float().unflatten(-1, (-1, 3)) + inverse_sigmoid(anchor.float())[..., None, :]
            codes.append((points.sigmoid() * self.size + self.low).flatten(-2))
        return CentrelineOutputs(torch.stack(logits), torch.stack(codes), states)

    def loss(self, outs: CentrelineOutputs, gt_codes: Sequence[Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
        """``loss_lane_cls``, ``loss_lane_reg`` of the last layer, ``d0.`` ... of the others; and the last assignment.

        gt_codes: B x [n, D] control points in metres. Raises FloatingPointError if the matching meets NaN or inf.
        """
        terms, assigned = {}, []
        last = len(outs.logits) - 1
        for layer, (logits, codes) in enumerate(zip(outs.logits, outs.codes)):
            weights = self.cls_weight, self.reg_weight
            assigned = losses.match_lanes(logits, codes, gt_codes, *weights, f"lanes, layer {layer}")
            cls, reg = losses.lane_losses(logits, codes, gt_codes, assigned, self.code_weights)
            prefix = "" if layer == last else f"d{layer}."
            terms[f"{prefix}loss_lane_cls"], terms[f"{prefix}loss_lane_reg"] = cls * weights[0], reg * weights[1]
        return terms, assigned
