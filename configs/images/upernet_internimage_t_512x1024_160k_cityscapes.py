"""UperNet with InternImage-T on Cityscapes. Published: mIoU 82.58, at several scales 83.40."""

from mmengine.config import read_base

with read_base():
    from .._base_.cityscapes import *

model.net.encoder = "T"
