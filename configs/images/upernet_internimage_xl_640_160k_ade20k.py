"""UperNet with InternImage-XL on ADE20K, images of 640 pixels. Published: mIoU 55.0, at several scales 55.3."""

from mmengine.config import read_base

with read_base():
    from .upernet_internimage_l_640_160k_ade20k import *

model.net.encoder = "XL"
