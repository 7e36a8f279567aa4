"""The model that `make speedrun` ends with: perception_tiny_objects whose objects keep their places, and voxels with a
bias for free, and whose lanes have an end map.

It is smaller than perception_tiny_drive: a map to 42 m, no teachers. How it is trained, and what came of it:
docs/speedrun.md.
"""

from mmengine.config import read_base

from drivestack.bev.boxes.trails import TrailVelocity

with read_base():
    from .perception_tiny_objects import *

model.boxes.memory.update(velocity=dict(type=TrailVelocity, smooth=True))
model.occupancy_head.update(free_bias=1.5)
model.lane_head.update(end_map=dict(), snap_radius_m=4.0, snap_falloff_m=4.0, min_score=0.2)

new_parts = (*new_parts, "lane_head.end_map.")
