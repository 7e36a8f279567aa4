"""OpenLane-V2 subset B (nuScenes, six cameras of one shape), otherwise as subset A. Not trained by us."""

from mmengine.config import read_base

with read_base():
    from .openlanev2_subset_a import *

model.bev_map.num_cams = 6
# 1408 x 800: nearly the cameras' own shape, and a multiple of 32
train_dataloader.dataset.image.aspect = test_dataset.image.aspect = 1.76
max_iters = 24 * 27968 // 8
param_scheduler[1].end = train_cfg.max_iters = max_iters
