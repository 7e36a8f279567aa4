"""Mask R-CNN with InternImage-T, 12 epochs. Published: box AP 47.2, mask AP 42.5."""

from mmengine.config import read_base

with read_base():
    from .._base_.mask_rcnn import *

model.net.encoder = "T"
