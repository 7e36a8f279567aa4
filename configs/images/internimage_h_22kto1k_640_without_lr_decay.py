"""InternImage-H without layer-wise learning-rate decay: the paper's numbers were trained so."""

from mmengine.config import read_base

with read_base():
    from .internimage_h_22kto1k_640 import *

optim_wrapper.paramwise_cfg.layer_decay_rate = None
