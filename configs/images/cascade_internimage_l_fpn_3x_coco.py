"""Cascade Mask R-CNN with InternImage-L, 36 epochs. Published: box AP 56.1, mask AP 48.5."""

from mmengine.config import read_base

with read_base():
    from .cascade_internimage_l_fpn_1x_coco import *

epoch = 1832  # iterations: 64 images a step, 32 processes of 2
train_dataloader.dataset.pipeline = [*read, detr_augmentation, *finish]
optim_wrapper.optimizer.lr = 2e-4
optim_wrapper.paramwise_cfg.update(layer_decay_rate=0.9, offset_lr_scale=0.01)
param_scheduler[1].milestones = [27 * epoch, 33 * epoch]
train_cfg.max_iters = 36 * epoch
checkpoint.interval = epoch
ema = dict(momentum=1e-4)
