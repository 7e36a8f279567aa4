"""Cascade Mask R-CNN with InternImage-L, 12 epochs. Published: box AP 54.9, mask AP 47.7."""

from mmengine.config import read_base

with read_base():
    from .._base_.cascade_mask_rcnn import *

model.net.encoder = "L"
optim_wrapper.paramwise_cfg.layer_decay_rate = 0.94
