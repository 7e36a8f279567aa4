"""Monocular 3D pretraining with ResNet-50 on nuScenes, for bevformerv2_r50_t1_24ep and the like."""

from mmengine.config import read_base

from drivestack.bev.pretrain import MonoDetector

with read_base():
    from ..published.bevformerv2_r50_t1_24ep import *

model.boxes.perspective.cls_prior = 0.01  # a prior saves the first thousand iterations; the release forgot it
model = dict(
    type=MonoDetector,
    img_backbone=model.img_backbone,
    img_neck=model.img_neck,
    perspective=model.boxes.perspective,
)
train_dataloader.dataset.bda = None  # it moves BEV maps, and there is none
validation = dict(interval=iterations_per_epoch, metric="NDS")
