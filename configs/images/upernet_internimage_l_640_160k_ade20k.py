"""UperNet with InternImage-L on ADE20K, images of 640 pixels. Published: mIoU 53.9, at several scales 54.1."""

from mmengine.config import read_base

with read_base():
    from .._base_.segmentation import *

crop = (640, 640)
scale = (2560, 640)
model.net.update(encoder="L", train_size=crop)
train_dataloader.dataset.pipeline[2].scale = scale
train_dataloader.dataset.pipeline[3].crop_size = crop
test_dataset.pipeline[1].scale = scale
optim_wrapper.optimizer.lr = 2e-5
optim_wrapper.paramwise_cfg.layer_decay_rate = 0.94
