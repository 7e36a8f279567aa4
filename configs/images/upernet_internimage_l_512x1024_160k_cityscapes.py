"""UperNet with InternImage-L on Cityscapes. Published: mIoU 83.68, at several scales 84.41."""

from mmengine.config import read_base

with read_base():
    from .._base_.cityscapes import *

model.net.encoder = "L"
optim_wrapper.optimizer.lr = 2e-5
optim_wrapper.paramwise_cfg.layer_decay_rate = 0.94
