"""The challenge's own small model: two feature levels, three encoder layers, images at 0.8 of their size.

In the challenge's repository it is called bevformer_small_occ, a name that InternImage's authors gave to another model.
"""

from mmengine.config import read_base

with read_base():
    from .bevformer_base_occ import *

model.img_backbone.out_indices = (2, 3)
model.img_neck.num_outs = 2
model.bev_map.update(num_levels=2, num_level_embeds=4, num_layers=3)

train_dataloader.dataset.image.train_heights_px = (720,)
test_dataset.image.test_height_px = 720
