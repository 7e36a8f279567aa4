"""Traffic-element head of OpenLane-V2's large baselines: Deformable DETR on the front image.

Source: Deformable DETR, arXiv 2010.04159, with box refinement, as in OpenLane-V2. Keys are those of the
published models (prefix ``bbox_head.``).

Shapes: B batch, C channels, L levels, S tokens of all levels, Q queries, M heads, P points, R decoder layers,
A attributes (classes).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from ...backbone.internimage.layers import LayerNorm
from ...bev.boxes.decoder import GroupSelfAttention, inverse_sigmoid
from ...bev.map.attention import DeformableAttention, Shapes
from ...bev.map.encoder import FeedForward
from ...core.registries import MODELS
from ...ops import ms_deform_attn
from . import losses


@dataclass(frozen=True)
class ElementOutputs:
    logits: Tensor
    """[R, B, Q, A]"""
    boxes: Tensor
    """[R, B, Q, 4] centre and size (x, y, w, h) as fractions of the image before padding"""
    states: Tensor
    """[R, B, Q, C]"""


def sine_positions(valid: Tensor, num_feats: int, offset: float = 0.0, temperature: float = 10000.0) -> Tensor:
    """[B, 2 * num_feats, h, w]: sines and cosines of the row, then of the column, counted over valid cells [B, h, w]
    and scaled to 2 pi; ``offset`` cells are added before scaling (DETR, arXiv 2005.12872).
    """
    eps = 1e-6
    y, x = valid.cumsum(1, dtype=torch.float32), valid.cumsum(2, dtype=torch.float32)
    y = (y + offset) / (y[:, -1:] + eps) * 2 * math.pi
    x = (x + offset) / (x[:, :, -1:] + eps) * 2 * math.pi
    index = torch.arange(num_feats, dtype=torch.float32, device=valid.device)
    wavelength = temperature ** (2 * (index // 2) / num_feats)
    parts = []
    for coordinate in (y, x):
        phase = coordinate[..., None] / wavelength  # [B, h, w, num_feats]
        parts.append(torch.stack([phase[..., 0::2].sin(), phase[..., 1::2].cos()], -1).flatten(-2))
    return torch.cat(parts, -1).permute(0, 3, 1, 2)


class ImageAttention(DeformableAttention):
    """Deformable attention of Deformable DETR: around points, or around boxes whose size scales the offsets."""

    def __init__(
        self, embed_dims: int, num_heads: int, num_levels: int, num_points: int = 4, dropout: float = 0.1
    ) -> None:
        super().__init__(embed_dims, num_heads, num_levels, num_points, dropout=dropout)

    def forward(
        self, query: Tensor, query_pos: Tensor, value: Tensor, padding: Tensor, shapes: Shapes, reference: Tensor
    ) -> Tensor:
        """``query``, ``query_pos`` [B, Q, C]; ``value`` [B, S, C], ``padding`` [B, S] True where it shows nothing;
        ``reference`` [B, Q, L, 2 or 4] fractions of each padded level. Returns [B, Q, C] with the query added.
        """
        offsets, logits = self._predict(query + query_pos)
        values = self._values(value).masked_fill(padding[..., None, None], 0)
        weights = logits.float().flatten(-2).softmax(-1).view(logits.shape)
        anchor = reference[:, :, None, :, None].float()  # [B, Q, 1, L, 1, 2 or 4]
        if reference.shape[-1] == 2:
            size = torch.tensor([(w, h) for h, w in shapes], dtype=torch.float32, device=value.device)
            locations = anchor + offsets.float() / size[:, None]
        else:
            locations = anchor[..., :2] + offsets.float() / self.num_points * anchor[..., 2:] * 0.5
        return self._project(ms_deform_attn(values, shapes, locations, weights), query)


class EncoderLayer(nn.Module):
    def __init__(self, embed_dims: int, num_heads: int, num_levels: int, ffn_dims: int, dropout: float) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([ImageAttention(embed_dims, num_heads, num_levels, dropout=dropout)])
        self.ffns = nn.ModuleList([FeedForward(embed_dims, ffn_dims, dropout)])
        self.norms = nn.ModuleList(LayerNorm(embed_dims) for _ in range(2))

    def forward(self, tokens: Tensor, positions: Tensor, padding: Tensor, shapes: Shapes, reference: Tensor) -> Tensor:
        tokens = self.norms[0](self.attentions[0](tokens, positions, tokens, padding, shapes, reference))
        return self.norms[1](self.ffns[0](tokens))


class ElementDecoderLayer(nn.Module):
    def __init__(self, embed_dims: int, num_heads: int, num_levels: int, ffn_dims: int, dropout: float) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(
            [
                GroupSelfAttention(embed_dims, num_heads, dropout),
                ImageAttention(embed_dims, num_heads, num_levels, dropout=dropout),
            ]
        )
        self.ffns = nn.ModuleList([FeedForward(embed_dims, ffn_dims, dropout)])
        self.norms = nn.ModuleList(LayerNorm(embed_dims) for _ in range(3))

    def forward(
        self, query: Tensor, query_pos: Tensor, memory: Tensor, padding: Tensor, shapes: Shapes, reference: Tensor
    ) -> Tensor:
        query = self.norms[0](self.attentions[0](query, query_pos))
        query = self.norms[1](self.attentions[1](query, query_pos, memory, padding, shapes, reference))
        return self.norms[2](self.ffns[0](query))


class _Layers(nn.Module):
    """Layers under the key ``layers``."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class ElementTransformer(nn.Module):
    """Deformable-DETR encoder and decoder with iterative box refinement, under the published names."""

    def __init__(
        self,
        embed_dims: int,
        num_layers: tuple[int, int],
        num_heads: int,
        num_levels: int,
        ffn_dims: int,
        dropout: float,
    ) -> None:
        super().__init__()
        layer = (embed_dims, num_heads, num_levels, ffn_dims, dropout)
        self.level_embeds = nn.Parameter(torch.randn(num_levels, embed_dims))
        self.encoder = _Layers([EncoderLayer(*layer) for _ in range(num_layers[0])])
        self.decoder = _Layers([ElementDecoderLayer(*layer) for _ in range(num_layers[1])])
        self.reference_points = nn.Linear(embed_dims, 2)

    def forward(
        self, levels: Sequence[Tensor], valid: Sequence[Tensor], queries: Tensor, reg_branches: nn.ModuleList
    ) -> tuple[Tensor, list[Tensor]]:
        """States [R, B, Q, C] and the references [B, Q, 2 or 4] that each layer started from, fractions of the image
        before padding; levels [B, C, h, w], valid cells [B, h, w], queries [Q, 2 C] (position, content).
        """
        shapes = [tuple(level.shape[-2:]) for level in levels]
        num_feats = levels[0].shape[1] // 2
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], 1)
        positions = torch.cat(
            [
                (sine_positions(mask, num_feats, offset=-0.5).flatten(2).transpose(1, 2) + embed).to(tokens.dtype)
                for mask, embed in zip(valid, self.level_embeds)
            ],
            1,
        )
        padding = ~torch.cat([mask.flatten(1) for mask in valid], 1)  # [B, S]
        # share (x, y) of each padded level that the image fills
        filled = torch.stack(
            [torch.stack([m[:, 0].float().mean(1), m[:, :, 0].float().mean(1)], -1) for m in valid], 1
        )  # [B, L, 2]
        cells = []
        for level, (h, w) in enumerate(shapes):
            y, x = ((torch.arange(n, device=tokens.device) + 0.5) / n for n in (h, w))
            centre = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1)  # [h * w, 2]
            cells.append(centre / filled[:, level, None])
        anchors = torch.cat(cells, 1)[:, :, None] * filled[:, None]  # [B, S, L, 2]
        for layer in self.encoder.layers:
            tokens = layer(tokens, positions, padding, shapes, anchors)

        query_pos, query = (x.expand(len(tokens), -1, -1) for x in queries.chunk(2, 1))
        with torch.autocast(query.device.type, enabled=False):
            reference = self.reference_points(query_pos.float()).sigmoid()
        states, references = [], []
        for layer, move in zip(self.decoder.layers, reg_branches):
            scale = filled if reference.shape[-1] == 2 else filled.repeat(1, 1, 2)
            query = layer(query, query_pos, tokens, padding, shapes, reference[:, :, None] * scale[:, None])
            states.append(query)
            references.append(reference)
            with torch.no_grad():
                reference = refined(move(query).float(), reference)
        return torch.stack(states), references


def refined(move: Tensor, reference: Tensor) -> Tensor:
    """Boxes [..., 4] in (0, 1): a reference point or box, moved before the sigmoid."""
    logit = inverse_sigmoid(reference)
    return torch.cat([move[..., : logit.shape[-1]] + logit, move[..., logit.shape[-1] :]], -1).sigmoid()


@MODELS.register_module()
class ElementHead(nn.Module):
    """num_layers: of encoder and decoder; cls_weight, l1_weight, giou_weight: of the losses and of the matching."""

    def __init__(
        self,
        embed_dims: int = 256,
        num_query: int = 100,
        num_attributes: int = 13,
        num_layers: tuple[int, int] = (6, 6),
        num_heads: int = 8,
        num_levels: int = 4,
        ffn_dims: int = 512,
        dropout: float = 0.1,
        cls_weight: float = 1.0,
        l1_weight: float = 2.5,
        giou_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.weights = (cls_weight, l1_weight, giou_weight)
        self.transformer = ElementTransformer(embed_dims, num_layers, num_heads, num_levels, ffn_dims, dropout)
        for parameter in self.transformer.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.transformer.modules():
            if isinstance(module, DeformableAttention):
                module.init_weights()
        nn.init.normal_(self.transformer.level_embeds)
        layers = range(num_layers[1])
        self.cls_branches = nn.ModuleList(nn.Linear(embed_dims, num_attributes) for _ in layers)
        self.reg_branches = nn.ModuleList(
            nn.Sequential(
                nn.Linear(embed_dims, embed_dims),
                nn.ReLU(),
                nn.Linear(embed_dims, embed_dims),
                nn.ReLU(),
                nn.Linear(embed_dims, 4),
            )
            for _ in layers
        )
        self.query_embedding = nn.Embedding(num_query, 2 * embed_dims)
        for score, move in zip(self.cls_branches, self.reg_branches):
            nn.init.constant_(score.bias, -4.59511985)  # a prior of 0.01
            nn.init.zeros_(move[-1].weight)
            nn.init.zeros_(move[-1].bias)
        nn.init.constant_(self.reg_branches[0][-1].bias[2:], -2.0)  # first boxes an eighth of the image wide

    def forward(self, levels: Sequence[Tensor], image_size_px: Tensor, padded_size: tuple[int, int]) -> ElementOutputs:
        """From front-image levels [B, C, h, w]; image_size_px [B, 2] (height, width) inside padded_size."""
        valid = []
        for level in levels:
            # a cell is valid where the pixel that nearest-neighbour scaling picks for it lies in the image
            inside = []
            for axis, cells in enumerate(level.shape[-2:]):
                pixel = torch.arange(cells, device=level.device) * padded_size[axis] // cells
                inside.append(pixel < image_size_px[:, axis : axis + 1])  # [B, cells]
            valid.append(inside[0][:, :, None] & inside[1][:, None])
        states, references = self.transformer(levels, valid, self.query_embedding.weight, self.reg_branches)
        logits = [score(state).float() for score, state in zip(self.cls_branches, states)]
        boxes = [refined(m(s).float(), reference) for m, s, reference in zip(self.reg_branches, states, references)]
        return ElementOutputs(torch.stack(logits), torch.stack(boxes), states)

    def loss(
        self,
        outs: ElementOutputs,
        gt_boxes: Sequence[Tensor],
        gt_labels: Sequence[Tensor],
        image_size_px: Tensor,
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """``loss_cls``, ``loss_bbox``, ``loss_iou`` of the last layer, ``d0.`` ... of the others; the last assignment.

        gt_boxes: B x [k, 4] xyxy pixels; gt_labels: B x [k]. Raises FloatingPointError as the matching does.
        """
        sizes = list(image_size_px.flip(1).repeat(1, 2).float())  # B x [4] (w, h, w, h)
        terms, assigned = {}, []
        last = len(outs.logits) - 1
        for layer, (logits, boxes) in enumerate(zip(outs.logits, outs.boxes)):
            where = f"traffic elements, layer {layer}"
            assigned = losses.match_boxes(logits, boxes, gt_boxes, gt_labels, sizes, self.weights, where)
            values = losses.box_losses(logits, boxes, gt_boxes, gt_labels, sizes, assigned)
            prefix = "" if layer == last else f"d{layer}."
            for name, value, weight in zip(("loss_cls", "loss_bbox", "loss_iou"), values, self.weights):
                terms[prefix + name] = value * weight
        return terms, assigned

    @torch.no_grad()
    def predict(
        self, outs: ElementOutputs, image_size_px: Tensor, scale_factors: Tensor | None = None
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Per sample: boxes [Q, 4] xyxy pixels, scores [Q] and attributes [Q], in the queries' order.

        scale_factors [B, 4] (w, h, w, h): by what the image on disk was scaled; boxes are divided by it. The fork
        divides all four by the first (docs/quirks.md#one-scale-for-both-axes): to repeat it, pass [w, w, w, w].
        """
        found = []
        for b, (logits, code) in enumerate(zip(outs.logits[-1], outs.boxes[-1])):
            size = image_size_px[b].flip(0).repeat(2).float()
            boxes = (box_convert(code, "cxcywh", "xyxy") * size).clamp(min=torch.zeros_like(size), max=size)
            if scale_factors is not None:
                boxes = boxes / scale_factors[b]
            scores, attributes = logits.sigmoid().max(-1)
            found.append((boxes, scores, attributes))
        return found
