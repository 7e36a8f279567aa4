"""Monocular 3D pretraining with InternImage-T on nuScenes, for bevformerv2_internimage_t_t1 and the like."""

from mmengine.config import read_base

with read_base():
    from .mono3d_internimage_b import *

model.img_backbone.variant = "T"
