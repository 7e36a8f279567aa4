"""InternImage-T without layer-wise learning-rate decay: its recipe from scratch has none anyway."""

from mmengine.config import read_base

with read_base():
    from .internimage_t_1k_224 import *
