"""perception_tiny_synthetic with a BEV map to 51 m: as far as its lanes go.

``drivestack train perception_tiny_wide_synthetic --fine-tune perception_tiny_synthetic`` starts from the shipped
weights: all cells are where they were, those beyond 42 m begin as the old border's (docs/lane_topology.md).
"""

from mmengine.config import read_base

with read_base():
    from .._base_.wide_bev import *
    from .perception_tiny_synthetic import *

model["bev_map"].update(wide_bev_map)
model["boxes"]["head"].update(post_center_range=wide_box_range)
train_dataloader.dataset.update(pc_range=wide_bev_map["pc_range"])
test_dataset.update(pc_range=wide_bev_map["pc_range"])
