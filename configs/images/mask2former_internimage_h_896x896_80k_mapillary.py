"""Mask2Former with InternImage-H on Mapillary with Cityscapes' classes. No result is published."""

from mmengine.config import read_base

from drivestack.backbone.pretrain.segmentation.heads import mask2former

with read_base():
    from .._base_.mapillary import *

crop = (896, 896)
windows = dict(mode="slide", crop_size=crop, stride=(512, 512))
model.net = dict(type=mask2former, encoder="H", num_classes=19, train_size=crop, test=windows)
new_parts = ("decode_head.",)  # that a classifier's file lacks
train_dataloader.dataset.pipeline[2].ratio_range = (0.5, 2.0)
train_dataloader.dataset.pipeline[3].crop_size = crop
optim_wrapper.optimizer.lr = 2e-5
optim_wrapper.paramwise_cfg.layer_decay_rate = 0.95
optim_wrapper.clip_grad = dict(max_norm=0.1, norm_type=2)
