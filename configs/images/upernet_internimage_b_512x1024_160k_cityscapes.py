"""UperNet with InternImage-B on Cityscapes. Published: mIoU 83.18, at several scales 83.97."""

from mmengine.config import read_base

with read_base():
    from .._base_.cityscapes import *

model.net.encoder = "B"
