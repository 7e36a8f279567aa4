"""InternImage-H, pretrained on 427 million images and ImageNet-22K, fine-tuned on ImageNet-1K at 384 pixels."""

from mmengine.config import read_base

with read_base():
    from .internimage_l_22kto1k_384 import *

model.network.variant = "H"
