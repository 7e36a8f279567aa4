"""Monocular 3D pretraining of the tiny synthetic models' encoder: two CPU cores train it in half an hour.

Encoder, neck, images and data are those of bevformerv2_tiny_synthetic and perception_tiny_synthetic, to which its
weights hand over.
"""

from mmengine.config import read_base
from mmengine.optim import CosineAnnealingLR, LinearLR

from drivestack.bev.perspective.head import NuscenesDD3D
from drivestack.bev.pretrain import MonoDetector

with read_base():
    from ..perception.perception_tiny_synthetic import *

max_iters = 3000
model = dict(
    type=MonoDetector,
    img_backbone=model.img_backbone,
    img_neck=model.img_neck,
    perspective=dict(
        type=NuscenesDD3D,
        num_classes=len(class_names),
        num_convs=2,
        strides=(8, 16, 32),
        sizes_of_interest=((-1, 32), (32, 64), (64, 1e8)),  # images a quarter of nuScenes' size: objects are small
        cls_prior=0.01,
        nms_iou=0.6,
    ),
)
# mirrored worlds do not reflect the labels of single images
train_dataloader.dataset.update(mono=True, mirror=False, occupancy=False, lanes=False)
new_parts = ()
optim_wrapper.optimizer.update(lr=1e-3)
param_scheduler = [
    dict(type=LinearLR, start_factor=0.05, by_epoch=False, begin=0, end=200),
    dict(type=CosineAnnealingLR, eta_min=1e-5, by_epoch=False, begin=200, end=max_iters),
]
train_cfg.update(max_iters=max_iters)
validation = dict(interval=500, metric="mAP")
