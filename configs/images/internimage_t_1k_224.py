"""InternImage-T on ImageNet-1K from scratch: 83.5 % top-1 published, with 4096 images a step (32 GPUs x 128)."""

from mmengine.config import read_base

with read_base():
    from .._base_.classification import *
