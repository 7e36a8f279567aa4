"""UperNet with InternImage-G on ADE20K, images of 896 pixels. No result is published."""

from mmengine.config import read_base

with read_base():
    from .upernet_internimage_h_896_160k_ade20k import *

model.net.update(encoder="G", backbone=dict(activation_checkpointing=True))
