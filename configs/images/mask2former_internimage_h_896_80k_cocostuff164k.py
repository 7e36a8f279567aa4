"""Mask2Former with InternImage-H on COCO-Stuff 164K. Published: mIoU 52.6, at several scales 52.8."""

from mmengine.config import read_base

with read_base():
    from .._base_.mask2former import *

data = "data/coco_stuff164k"
model.net.num_classes = 171
train_dataloader.dataset.source.dataset = dict(
    type="COCOStuffDataset",
    data_root=data,
    data_prefix=dict(img_path="images/train2017", seg_map_path="annotations/train2017"),
)
test_dataset.source.dataset = dict(
    type="COCOStuffDataset",
    data_root=data,
    data_prefix=dict(img_path="images/val2017", seg_map_path="annotations/val2017"),
    test_mode=True,
)
optim_wrapper.clip_grad = None
