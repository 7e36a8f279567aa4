"""Cascade Mask R-CNN with InternImage-XL, 12 epochs. Published: box AP 55.3, mask AP 48.1."""

from mmengine.config import read_base

with read_base():
    from .._base_.cascade_mask_rcnn import *

model.net.encoder = "XL"
optim_wrapper.paramwise_cfg.layer_decay_rate = 0.94
