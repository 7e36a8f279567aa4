"""DINO fine-tuned from Objects365 on large images, at a constant rate (H, G and CB-H of the InternImage release).

8 processes (torchrun) of one image each. Start from the release's Objects365 detector: `--fine-tune FILE`.
"""

from mmengine.config import read_base
from mmengine.optim import LinearLR

with read_base():
    from .dino import *

model.net.update(encoder="H", dn_queries=1000, backbone=dict(activation_checkpointing=True))
scale = (2000, 1000)
sides = dict(type="RandomResize", scale=[(2000, 600), (2000, 1800)], keep_ratio=True)
train_dataloader.dataset.pipeline = [*read, sides, *finish]
train_dataloader.batch_size = 1
test_dataset.pipeline[1].scale = scale
optim_wrapper.paramwise_cfg.update(layer_decay_rate=0.94, offset_lr_scale=0.001)
param_scheduler = [dict(type=LinearLR, start_factor=0.001, begin=0, end=500)]
train_cfg = dict(max_iters=20_000)
checkpoint = dict(interval=2000, keep=2)
