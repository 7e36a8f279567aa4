"""InternImage-G without layer-wise learning-rate decay: the paper's numbers were trained so."""

from mmengine.config import read_base

with read_base():
    from .internimage_g_22kto1k_512 import *

optim_wrapper.paramwise_cfg.layer_decay_rate = None
