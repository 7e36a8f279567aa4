"""OpenLane-V2's large baseline with InternImage-S, the configuration that InternImage's authors published.

Reported there (metric of 2023): OLS 0.325, against 0.292 with ResNet-50. Our scores: none yet.
"""

from mmengine.config import read_base

from drivestack.backbone.builder import internimage

with read_base():
    from .openlanev2_baseline_large_r50 import *

model.img_backbone = dict(type=internimage, variant="S", out_indices=(0, 1, 2, 3))
