"""OpenLane-V2's large baseline (BEVFormer, ResNet-50), as published: lanes, traffic elements, topology.

arXiv 2304.10440. The keys are the published ones, and so is what their weights depend on: the CAN-bus signal
(docs/quirks.md#absolute-can-bus: set model.bev_constructor.use_can_bus=False for a model of your own) and values
projected twice (docs/quirks.md#values-projected-twice). Reads nuScenes with lane labels (OpenLane-V2 subset B). For new
models take LaneTopologyHead on a BEVFormerV2.
"""

from mmengine.config import read_base
from mmengine.optim import CosineAnnealingLR, LinearLR
from torch.optim import AdamW

from drivestack.backbone.fpn import FPN
from drivestack.backbone.resnet import ResNet
from drivestack.data_tools.clips.transforms import ImageSettings
from drivestack.engine.layer_decay import LayerDecayOptimizerConstructor
from drivestack.engine.optim import PrecisionOptimWrapper
from drivestack.lane_topology.published.bev_constructor import BevConstructor
from drivestack.lane_topology.published.centreline_head import CentrelineHead
from drivestack.lane_topology.published.element_head import ElementHead
from drivestack.lane_topology.published.relationship import RelationshipHead
from drivestack.lane_topology.published.road_bevformer import RoadBevFormer

with read_base():
    from .._base_.images import *
    from .._base_.nuscenes import *
    from .._base_.runtime import *

max_iters = 24 * 27968 // 8  # 24 epochs of subset B on 8 GPUs

model = dict(
    type=RoadBevFormer,
    img_backbone=dict(
        type=ResNet, depth=50, out_indices=(1, 2, 3), frozen_stages=1, norm_eval=True, norm_requires_grad=False
    ),
    img_neck=dict(
        type=FPN,
        out_channels=256,
        num_outs=4,
        add_extra_convs="on_output",
        relu_before_extra_convs=True,
    ),
    bev_constructor=dict(type=BevConstructor, bev_size=(100, 200), num_cams=7, use_can_bus=True),
    pts_bbox_head=dict(type=CentrelineHead),
    bbox_head=dict(type=ElementHead),
    lclc_head=dict(type=RelationshipHead),
    lcte_head=dict(type=RelationshipHead),
    front_camera="CAM_FRONT",
)

data = dict(image=dict(type=ImageSettings, **imagenet_rgb), lanes=True, front_camera="CAM_FRONT")
train_dataloader.dataset.update(**data, mono=False)
test_dataset.update(data)

optim_wrapper = dict(
    type=PrecisionOptimWrapper,
    precision="fp32",
    optimizer=dict(type=AdamW, lr=2e-4, weight_decay=0.01),
    constructor=LayerDecayOptimizerConstructor,
    paramwise_cfg=dict(lr_mults={"img_backbone.": 0.1}),
    clip_grad=dict(max_norm=35.0),
)
param_scheduler = [
    dict(type=LinearLR, start_factor=1 / 3, by_epoch=False, begin=0, end=500),
    dict(type=CosineAnnealingLR, eta_min_ratio=1e-3, by_epoch=False, begin=500, end=max_iters),
]
train_cfg = dict(max_iters=max_iters)
