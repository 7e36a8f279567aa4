"""BEVFormer v1 base (arXiv 2203.17270), ResNet-101 with DCNv2, for its published checkpoint.

Release: mAP 0.416, NDS 0.517 on nuScenes val. Keys are the published ones (DCNv2 is torchvision's operator here: mmcv
is not needed). Classes are numbered as in v1's checkpoints, not as in v2's. New models should be BEVFormerV2.
"""

from mmengine.config import read_base
from mmengine.optim import CosineAnnealingLR, LinearLR
from torch.optim import AdamW

from drivestack.backbone.fpn import FPN
from drivestack.backbone.resnet import ResNet
from drivestack.bev.boxes.head import BoxHead
from drivestack.bev.published.bevformer_v1 import BEVFormerV1
from drivestack.bev.published.recurrent_map import RecurrentBevMap
from drivestack.data_tools.clips.transforms import ImageSettings
from drivestack.engine.layer_decay import LayerDecayOptimizerConstructor
from drivestack.engine.optim import PrecisionOptimWrapper

with read_base():
    from .._base_.nuscenes import *
    from .._base_.runtime import *

model = dict(
    type=BEVFormerV1,
    img_backbone=dict(
        type=ResNet,
        depth=101,
        style="caffe",
        out_indices=(1, 2, 3),
        frozen_stages=1,
        norm_eval=True,
        norm_requires_grad=False,
        stage_with_dcn=(False, False, True, True),
    ),
    img_neck=dict(type=FPN, out_channels=256, num_outs=4, add_extra_convs="on_output", relu_before_extra_convs=True),
    bev_map=dict(type=RecurrentBevMap, pc_range=pc_range, bev_size=(200, 200), num_level_embeds=4),
    box_head=dict(type=BoxHead, num_classes=len(class_names), bbox_weight=0.25, bbox_beta=0.0, unknown_velocity="zero"),
    frame_offsets=(-3, -2, -1, 0),
)

classes = [
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
]
images = dict(
    type=ImageSettings, crop=(0.0, 0.0, 1.0, 1.0), train_heights_px=(900,), test_height_px=900, resample="bilinear"
)
train_dataloader.dataset.update(classes=classes, image=images, mono=False)
test_dataset.update(classes=classes, image=images)

max_iters = 24 * 28130 // 8  # 24 epochs, a clip on each of 8 GPUs
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
