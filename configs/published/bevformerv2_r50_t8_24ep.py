"""t1 with the seven previous keyframes fused in. Release: mAP 0.460, NDS 0.553, 40 GB per GPU."""

from mmengine.config import read_base

with read_base():
    from .bevformerv2_r50_t1_24ep import *

model.bev_map.frames = (-7, -6, -5, -4, -3, -2, -1, 0)
