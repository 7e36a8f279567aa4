"""InternImage-XL, pretrained on ImageNet-22K, fine-tuned on ImageNet-1K: 88.0 % top-1 published, 512 images a step."""

from mmengine.config import read_base

with read_base():
    from .internimage_l_22kto1k_384 import *

model.network.variant = "XL"
