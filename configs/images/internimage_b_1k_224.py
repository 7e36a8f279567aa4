"""InternImage-B on ImageNet-1K from scratch: 84.9 % top-1 published, 4096 images a step."""

from mmengine.config import read_base

with read_base():
    from .internimage_t_1k_224 import *

model.network.variant = "B"
