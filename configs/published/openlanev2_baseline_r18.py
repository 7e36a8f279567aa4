"""OpenLane-V2's small baseline: ResNet-18, inverse perspective mapping, one DETR layer per head.

arXiv 2304.10440, keys as published.
"""

from mmengine.config import read_base

from drivestack.backbone.resnet import ResNet
from drivestack.lane_topology.published.baseline_r18 import FinestFPN, RoadBaselineR18
from drivestack.lane_topology.published.detr_head import DetrHead
from drivestack.lane_topology.published.ipm import IpmViewTransformer
from drivestack.lane_topology.published.relationship import TopologyHead

with read_base():
    from .openlanev2_baseline_large_r50 import *

model = dict(
    type=RoadBaselineR18,
    img_backbone=dict(
        type=ResNet, depth=18, out_indices=(2, 3), frozen_stages=1, norm_eval=True, norm_requires_grad=False
    ),
    img_neck=dict(type=FinestFPN),
    img_view_transformer=dict(type=IpmViewTransformer),
    lc_head=dict(type=DetrHead),
    te_head=dict(type=DetrHead, num_query=30, num_classes=13, code_size=4),
    lclc_head=dict(type=TopologyHead),
    lcte_head=dict(type=TopologyHead),
    front_camera="CAM_FRONT",
    edge_weight=2.0,
)
