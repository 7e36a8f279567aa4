"""UperNet with InternImage-T on ADE20K. Published: mIoU 47.9, at several scales 48.1."""

from mmengine.config import read_base

with read_base():
    from .._base_.segmentation import *

model.net.encoder = "T"
