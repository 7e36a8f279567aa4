"""SegFormer with InternImage-XL on Cityscapes, from Mapillary: `--load-from FILE`.

Published: mIoU 85.41, at several scales 85.93.
"""

from mmengine.config import read_base

from drivestack.backbone.pretrain.segmentation.heads import segformer

with read_base():
    from .._base_.cityscapes_extra import *

model.net.update(type=segformer, encoder="XL")
optim_wrapper.optimizer.lr = 2e-5
optim_wrapper.paramwise_cfg.layer_decay_rate = 0.94
