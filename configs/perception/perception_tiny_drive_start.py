"""How a training of perception_tiny_drive from random weights begins: with single frames in random order.

Memory costs time, and neighbouring frames teach less; so it comes when map and heads are there
(``drivestack train perception_tiny_drive --fine-tune CHECKPOINT``; docs/speedrun.md has what came of it in 75 minutes).
"""

from mmengine.config import read_base

with read_base():
    from .._base_.tiny_drive import *
    from .perception_tiny_wide_synthetic import *

model.update(depth_teacher=drive_teacher)
model.lane_head.update(drive_lanes)
model.occupancy_head.update(drive_voxels)
data_command = drive_command
train_dataloader.dataset.update(depth=True)
train_dataloader.dataset.source.root = drive_sets
new_parts = (*new_parts, "depth_teacher.")
