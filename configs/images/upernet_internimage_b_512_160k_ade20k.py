"""UperNet with InternImage-B on ADE20K. Published: mIoU 50.8, at several scales 51.3."""

from mmengine.config import read_base

with read_base():
    from .._base_.segmentation import *

model.net.encoder = "B"
