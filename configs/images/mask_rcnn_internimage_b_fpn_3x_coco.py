"""Mask R-CNN with InternImage-B, 36 epochs. Published: box AP 50.3, mask AP 44.8."""

from mmengine.config import read_base

with read_base():
    from .mask_rcnn_internimage_b_fpn_1x_coco import *

train_dataloader.dataset.pipeline = [*read, detr_augmentation, *finish]
param_scheduler[1].milestones = [27 * epoch, 33 * epoch]
train_cfg.max_iters = 36 * epoch
