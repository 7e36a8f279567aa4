"""Mask2Former with InternImage-H on Cityscapes, from Mapillary: `--load-from FILE`.

Published: mIoU 86.37, at several scales 86.96.
"""

from mmengine.config import read_base

from drivestack.backbone.pretrain.segmentation.heads import mask2former

with read_base():
    from .._base_.cityscapes_extra import *

crop = (1024, 1024)
max_iters = 80_000
windows = dict(mode="slide", crop_size=crop, stride=(512, 512))
model.net = dict(type=mask2former, encoder="H", num_classes=19, train_size=crop, test=windows)
train_dataloader.dataset.pipeline[3].crop_size = crop
optim_wrapper.optimizer.lr = 1e-5
optim_wrapper.paramwise_cfg.layer_decay_rate = 0.95
optim_wrapper.clip_grad = dict(max_norm=0.1, norm_type=2)
param_scheduler[1].end = max_iters
train_cfg.max_iters = max_iters
