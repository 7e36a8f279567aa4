"""DINO with InternImage-L, 12 epochs, the encoder at a tenth of the rate. Published: box AP 57.6."""

from mmengine.config import read_base

with read_base():
    from .._base_.dino import *

model.net.encoder = "L"
optim_wrapper.optimizer.weight_decay = 0.05
optim_wrapper.paramwise_cfg = dict(prefix="net.backbone.", lr_mults={"backbone.": 0.1}, decay_one_dim=True)
