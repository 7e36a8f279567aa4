"""UperNet with InternImage-S on Cityscapes. Published: mIoU 82.74, at several scales 83.45."""

from mmengine.config import read_base

with read_base():
    from .._base_.cityscapes import *

model.net.encoder = "S"
