"""Segmentors on Cityscapes and its coarse images (`train_extra`, labels `refinement_final`), after Mapillary."""

from mmengine.config import read_base

with read_base():
    from .cityscapes import *

data = "data/cityscapes"
fine = dict(
    type="CityscapesDataset",
    data_root=data,
    data_prefix=dict(img_path="leftImg8bit/train", seg_map_path="gtFine/train"),
)
extra = dict(
    type="CityscapesDataset",
    data_root=data,
    data_prefix=dict(img_path="leftImg8bit/train_extra", seg_map_path="refinement_final/train_extra"),
)
train_dataloader.dataset.source.dataset = dict(type="ConcatDataset", datasets=[fine, extra])
test_dataset.source.dataset.data_root = data
