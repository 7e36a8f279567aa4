"""The published BEVFormer v1 models (arXiv 2203.17270) as data: base, small and tiny, ready for their checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from ...backbone import FPN, ResNet
from ..boxes.head import BEVFormerHead
from ..map.transformer import BevTransformerV1
from .bevformer_v1 import BEVFormerV1

V1_CLASSES = (
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
)
"""Labels of the v1 checkpoints in their order, which is not that of v2's."""


@dataclass(frozen=True)
class V1Variant:
    """What differs between the published models."""

    depth: int
    style: str
    stage_with_dcn: tuple[bool, bool, bool, bool]
    out_indices: tuple[int, ...]
    neck_channels: tuple[int, ...]
    num_levels: int
    bev_cells: int
    """Cells along either side of the BEV map."""
    encoder_layers: int


V1_VARIANTS = {
    "base": V1Variant(101, "caffe", (False, False, True, True), (1, 2, 3), (512, 1024, 2048), 4, 200, 6),
    "small": V1Variant(101, "caffe", (False, False, True, True), (3,), (2048,), 1, 150, 3),
    "tiny": V1Variant(50, "pytorch", (False, False, False, False), (3,), (2048,), 1, 50, 3),
}


def bevformer_v1(name: str) -> BEVFormerV1:
    """A published v1 model with random weights; its classes are ``V1_CLASSES``. Raises ValueError for other names."""
    if name not in V1_VARIANTS:
        raise ValueError(f"no BEVFormer v1 model {name!r}: choose one of {', '.join(V1_VARIANTS)}")
    variant = V1_VARIANTS[name]
    cells = (variant.bev_cells, variant.bev_cells)
    backbone = ResNet(
        depth=variant.depth,
        style=variant.style,
        out_indices=variant.out_indices,
        frozen_stages=1,
        norm_eval=True,
        norm_requires_grad=False,
        stage_with_dcn=variant.stage_with_dcn,
    )
    neck = FPN(
        in_channels=variant.neck_channels,
        out_channels=256,
        num_outs=variant.num_levels,
        add_extra_convs="on_output",
        relu_before_extra_convs=True,
    )
    transformer = BevTransformerV1(
        bev_size=cells,
        num_levels=variant.num_levels,
        num_level_embeds=4,
        encoder_layers=variant.encoder_layers,
    )
    head = BEVFormerHead(transformer, bev_size=cells, bbox_weight=0.25, bbox_beta=0.0)
    return BEVFormerV1(img_backbone=backbone, img_neck=neck, pts_bbox_head=head)
