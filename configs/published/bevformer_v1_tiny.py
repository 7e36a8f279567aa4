"""BEVFormer v1 tiny: ResNet-50, one feature level, three encoder layers, 50 x 50 cells, images at half their size."""

from mmengine.config import read_base

with read_base():
    from .._base_.images import *
    from .bevformer_v1_base import *

model.img_backbone.update(depth=50, style="pytorch", out_indices=(3,), stage_with_dcn=(False, False, False, False))
model.img_neck.num_outs = 1
model.bev_map.update(bev_size=(50, 50), num_levels=1, num_layers=3)
model.frame_offsets = (-2, -1, 0)
train_dataloader.dataset.image.update(train_heights_px=(450,), **imagenet_rgb)
test_dataset.image.update(test_height_px=450, **imagenet_rgb)
