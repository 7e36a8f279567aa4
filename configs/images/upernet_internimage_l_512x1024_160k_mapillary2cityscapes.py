"""UperNet with InternImage-L on Cityscapes, from Mapillary: `--fine-tune FILE`.

Published: mIoU 85.94, at several scales 86.22.

The release starts from its SegFormer's weights of Mapillary, of which only the encoder fits.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.cityscapes_extra import *

model.net.encoder = "L"
optim_wrapper.optimizer.lr = 2e-5
optim_wrapper.paramwise_cfg.layer_decay_rate = 0.94
