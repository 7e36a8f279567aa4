"""Mask R-CNN with InternImage-S, 12 epochs. Published: box AP 47.8, mask AP 43.3."""

from mmengine.config import read_base

with read_base():
    from .._base_.mask_rcnn import *

model.net.encoder = "S"
