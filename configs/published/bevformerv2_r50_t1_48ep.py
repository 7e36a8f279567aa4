"""t1 trained twice as long, learning rate stepped at epoch 44. Release: mAP 0.395, NDS 0.465."""

from mmengine.config import read_base

with read_base():
    from .bevformerv2_r50_t1_24ep import *

train_cfg.max_iters = 48 * iterations_per_epoch
param_scheduler[1].milestones = [44 * iterations_per_epoch]
