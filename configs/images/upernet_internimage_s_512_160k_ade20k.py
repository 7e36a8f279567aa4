"""UperNet with InternImage-S on ADE20K. Published: mIoU 50.1, at several scales 50.9."""

from mmengine.config import read_base

with read_base():
    from .._base_.segmentation import *

model.net.encoder = "S"
