"""Monocular 3D pretraining of the encoder of bevformerv2_internimage_b_t1 on nuScenes, before any BEV model.

Encoder, neck, perspective head, images, optimiser and schedule are those of that config; only the BEV part is absent.
Afterwards: drivestack hand-over runs/mono3d_internimage_b/best.pth bevformerv2_internimage_b_t1 --out b.safetensors,
then train --fine-tune b.safetensors. Not trained to the end by us.
"""

from mmengine.config import read_base

from drivestack.bev.pretrain import MonoDetector

with read_base():
    from ..boxes.bevformerv2_internimage_b_t1 import *

model = dict(
    type=MonoDetector,
    img_backbone=model.img_backbone,
    img_neck=model.img_neck,
    perspective=model.boxes.perspective,
)
train_dataloader.dataset.bda = None  # it moves BEV maps, and there is none
validation = dict(interval=iterations_per_epoch, metric="NDS")
