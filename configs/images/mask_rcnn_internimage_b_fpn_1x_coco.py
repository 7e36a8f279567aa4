"""Mask R-CNN with InternImage-B, 12 epochs. Published: box AP 48.8, mask AP 44.0."""

from mmengine.config import read_base

with read_base():
    from .._base_.mask_rcnn import *

model.net.encoder = "B"
