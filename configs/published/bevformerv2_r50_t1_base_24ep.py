"""BEVFormer v2, ResNet-50, one frame, no augmentation: the released base model, 24 epochs.

Release (fundamentalvision/BEVFormer): 16 GPUs x 1 clip, mAP 0.351, NDS 0.426 on nuScenes val, 24 GB per GPU. With n
GPUs set optim_wrapper.accumulative_counts and train_cfg.max_iters to 16 / n times as much.
"""

from mmengine.config import read_base
from mmengine.optim import LinearLR, MultiStepLR
from torch.optim import AdamW

from drivestack.backbone.fpn import FPN
from drivestack.backbone.resnet import ResNet
from drivestack.bev.bevformer_v2 import BEVFormerV2
from drivestack.bev.boxes.head import BoxHead
from drivestack.bev.boxes.task import BoxTask
from drivestack.bev.map.bev_map import BevMap
from drivestack.bev.perspective.head import NuscenesDD3D
from drivestack.engine.layer_decay import LayerDecayOptimizerConstructor
from drivestack.engine.optim import PrecisionOptimWrapper

with read_base():
    from .._base_.nuscenes import *
    from .._base_.runtime import *

model = dict(
    type=BEVFormerV2,
    img_backbone=dict(type=ResNet, depth=50, style="caffe", out_indices=(1, 2, 3)),
    img_neck=dict(
        type=FPN,
        out_channels=256,
        num_outs=5,
        add_extra_convs="on_output",
        relu_before_extra_convs=True,
    ),
    bev_map=dict(type=BevMap, pc_range=pc_range, bev_size=(200, 200)),
    boxes=dict(
        type=BoxTask,
        head=dict(type=BoxHead, num_classes=len(class_names), num_query=900, num_groups=1, unknown_velocity="zero"),
        perspective=dict(type=NuscenesDD3D),
    ),
)

iterations_per_epoch = 1759  # 28,130 keyframes, 16 at a time
train_cfg = dict(max_iters=24 * iterations_per_epoch)
optim_wrapper = dict(
    type=PrecisionOptimWrapper,
    precision="fp32",
    optimizer=dict(type=AdamW, lr=4e-4, weight_decay=0.01),
    constructor=LayerDecayOptimizerConstructor,
    paramwise_cfg=dict(lr_mults={"img_backbone.": 0.5}, decay_one_dim=True),
    clip_grad=dict(max_norm=35.0),
)
param_scheduler = [
    dict(type=LinearLR, start_factor=1 / 3, by_epoch=False, begin=0, end=2000),
    dict(type=MultiStepLR, milestones=[20 * iterations_per_epoch], gamma=0.1, by_epoch=False),
]
