"""InternImage-S without layer-wise learning-rate decay, as its recipe from scratch is anyway: the release has a config of this name."""

from mmengine.config import read_base

with read_base():
    from .internimage_s_1k_224 import *
