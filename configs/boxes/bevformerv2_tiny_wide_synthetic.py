"""bevformerv2_tiny_synthetic with a BEV map to 51 m: as far as boxes are scored.

``--fine-tune bevformerv2_tiny_synthetic`` starts from the shipped weights. Lanes and voxels:
perception_tiny_wide_synthetic.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.wide_bev import *
    from .bevformerv2_tiny_synthetic import *

model["bev_map"].update(wide_bev_map)
model["boxes"]["head"].update(post_center_range=wide_box_range)
train_dataloader.dataset.update(pc_range=wide_bev_map["pc_range"])
test_dataset.update(pc_range=wide_bev_map["pc_range"])
