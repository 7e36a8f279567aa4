"""BEVFormer v2 with InternImage-XL (arXiv 2211.10439 table 7): 32 clips per step, AdamW 5e-4, layer-wise decay 0.94."""

from mmengine.config import read_base

with read_base():
    from .bevformerv2_internimage_b_t1 import *

model.img_backbone.variant = "XL"

iterations_per_epoch = 880  # 28,130 keyframes, 32 at a time
train_cfg.max_iters = 24 * iterations_per_epoch
param_scheduler[1].milestones = [20 * iterations_per_epoch]
optim_wrapper.optimizer.lr = 5e-4
optim_wrapper.paramwise_cfg.layer_decay_rate = 0.94
