"""Mask R-CNN with InternImage-T, its weights those of DCNv3. The release runs them by DCNv4's operator; the numbers are
the same, and so is our operator.
"""

from mmengine.config import read_base

with read_base():
    from .mask_rcnn_internimage_t_fpn_1x_coco import *
