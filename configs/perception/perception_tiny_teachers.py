"""perception_tiny_synthetic with teachers that only training meets: its answers cost what they cost without.

Depth comes from the set's file of depth (``drivestack synthesize --labels occupancy lanes depth``), or else from its
LiDAR. docs/teachers.md says what each teacher is, and what was measured of it.
"""

from mmengine.config import read_base

from drivestack.bev.boxes.denoising import RayDenoising
from drivestack.bev.perspective.depth import DepthTeacher

with read_base():
    from .perception_tiny_synthetic import *

model.update(depth_teacher=dict(type=DepthTeacher, weight=0.5))
model.boxes.update(ray_denoising=dict(type=RayDenoising))
model.boxes.head.update(quality_weight=1.0)
train_dataloader.dataset.update(depth=True)
new_parts = (*new_parts, "depth_teacher.", "pts_bbox_head.quality_branch.")
