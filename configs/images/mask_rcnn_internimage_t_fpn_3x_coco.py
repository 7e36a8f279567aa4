"""Mask R-CNN with InternImage-T, 36 epochs. Published: box AP 49.1, mask AP 43.7."""

from mmengine.config import read_base

with read_base():
    from .mask_rcnn_internimage_t_fpn_1x_coco import *

train_dataloader.dataset.pipeline = [*read, detr_augmentation, *finish]
param_scheduler[1].milestones = [27 * epoch, 33 * epoch]
train_cfg.max_iters = 36 * epoch
