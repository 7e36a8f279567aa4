"""BEVFormer v2 with InternImage-S. The paper has no row for it: hyper-parameters of InternImage-B."""

from mmengine.config import read_base

with read_base():
    from .bevformerv2_internimage_b_t1 import *

model.img_backbone.variant = "S"
