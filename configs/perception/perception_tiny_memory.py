"""Boxes, voxels and lanes of the tiny model with one streaming memory for all three: docs/memory.md.

Everything but the memory is perception_tiny_synthetic, whose weights give their own answers to the bit before the first
step (``drivestack train perception_tiny_memory --load-from perception_tiny_synthetic``). Training walks through scenes
in time order; longer scenes than the 6 keyframes of perception_tiny_synthetic teach more of it.
"""

from mmengine.config import read_base
from mmengine.optim import CosineAnnealingLR, LinearLR

from drivestack.bev.map.memory import StreamingMemory
from drivestack.data_tools.clips.sampler import StreamingSampler

with read_base():
    from .perception_tiny_synthetic import *

model.update(memory=dict(type=StreamingMemory, unroll=3))
# one frame says little of a velocity; two do
velocity_weights = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
model.boxes.head.update(code_weights=velocity_weights)
model.boxes.bev_proposals.update(code_weights=velocity_weights)
# batches of one: neighbouring steps see other scenes
train_dataloader.sampler = dict(type=StreamingSampler, interleave=8)

new_parts = ("memory.",)
max_iters = 3000
optim_wrapper.optimizer.update(lr=2e-4)
param_scheduler = [
    dict(type=LinearLR, start_factor=0.05, by_epoch=False, begin=0, end=100),
    dict(type=CosineAnnealingLR, eta_min=2e-6, by_epoch=False, begin=100, end=max_iters),
]
train_cfg.update(max_iters=max_iters)
