"""Mask2Former with InternImage-H on ADE20K, 80,000 iterations, images of 896 pixels. 16 processes of one image each."""

from mmengine.config import read_base

from drivestack.backbone.pretrain.segmentation.heads import mask2former

with read_base():
    from .segmentation import *

crop = (896, 896)
scale = (3584, 896)
max_iters = 80_000
large = dict(width=1024, num_heads=32, ffn_width=4096, num_queries=200)
model.net = dict(type=mask2former, encoder="H", num_classes=150, train_size=crop, **large)
new_parts = ("decode_head.",)  # that a classifier's file lacks
train_dataloader.dataset.pipeline[2].scale = scale
train_dataloader.dataset.pipeline[3].crop_size = crop
train_dataloader.batch_size = 1
test_dataset.pipeline[1].scale = scale
optim_wrapper.optimizer.lr = 2e-5
optim_wrapper.paramwise_cfg.layer_decay_rate = 0.95
optim_wrapper.clip_grad = dict(max_norm=0.1, norm_type=2)
param_scheduler[1].end = max_iters
train_cfg.max_iters = max_iters
