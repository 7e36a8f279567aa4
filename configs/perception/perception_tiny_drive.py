"""The model of `make demo`: boxes, voxels and lanes of a drive, with memories of map and objects, a map to 51 m,
and teachers.

Training walks through scenes of 20 keyframes in time order (``data_command``). Depth, a second group of lane queries,
rays and voxels that only the LiDAR saw teach in training alone; a frame costs what perception_tiny_objects' costs
with a map of that size (docs/tiny_model.md).
"""

from mmengine.config import read_base
from mmengine.optim import CosineAnnealingLR, LinearLR

from drivestack.bev.boxes.trails import TrailVelocity

with read_base():
    from .._base_.tiny_drive import *
    from .._base_.wide_bev import *
    from .perception_tiny_objects import *

model["bev_map"].update(wide_bev_map)
model["boxes"]["head"].update(post_center_range=wide_box_range)
model.update(depth_teacher=drive_teacher)
# a keyframe has 44 objects on average: with 40 remembered, ids are lost
model.boxes.memory.update(num_objects=80, velocity=dict(type=TrailVelocity, smooth=True))
model.lane_head.update(drive_lanes)
model.occupancy_head.update(drive_voxels)

data_command = drive_command
train_dataloader.dataset.update(pc_range=wide_bev_map["pc_range"], depth=True)
train_dataloader.dataset.source.root = drive_sets
test_dataset.update(pc_range=wide_bev_map["pc_range"])

new_parts = (*new_parts, "depth_teacher.", "lane_head.")
max_iters = 7000
optim_wrapper.optimizer.update(lr=4e-4)
param_scheduler = [
    dict(type=LinearLR, start_factor=0.05, by_epoch=False, begin=0, end=200),
    dict(type=CosineAnnealingLR, eta_min=4e-6, by_epoch=False, begin=200, end=max_iters),
]
train_cfg.update(max_iters=max_iters)
