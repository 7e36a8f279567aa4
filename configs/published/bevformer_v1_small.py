"""BEVFormer v1 small: one feature level, three encoder layers, 150 x 150 cells, images at 0.8 of their size."""

from mmengine.config import read_base

with read_base():
    from .bevformer_v1_base import *

model.img_backbone.out_indices = (3,)
model.img_neck.num_outs = 1
model.bev_map.update(bev_size=(150, 150), num_levels=1, num_layers=3)
model.frame_offsets = (-2, -1, 0)
train_dataloader.dataset.image.train_heights_px = (720,)
test_dataset.image.test_height_px = 720
