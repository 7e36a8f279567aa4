"""InternImage's small model: ResNet-50 with DCNv2, two feature levels, one encoder layer, images at 0.8 of their size.

As released it trains on images of 0.2 of their size and tests on 0.8; here both are 0.8.
"""

from mmengine.config import read_base

with read_base():
    from .bevformer_small_occ_challenge import *

model.img_backbone.depth = 50
model.bev_map.num_layers = 1
