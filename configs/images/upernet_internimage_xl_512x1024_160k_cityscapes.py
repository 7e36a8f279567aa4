"""UperNet with InternImage-XL on Cityscapes. Published: mIoU 83.62, at several scales 84.28."""

from mmengine.config import read_base

with read_base():
    from .._base_.cityscapes import *

model.net.encoder = "XL"
optim_wrapper.optimizer.lr = 2e-5
optim_wrapper.paramwise_cfg.layer_decay_rate = 0.94
