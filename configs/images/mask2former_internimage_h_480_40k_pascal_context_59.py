"""Mask2Former with InternImage-H on Pascal Context, 59 classes. Published: mIoU 69.7, at several scales 70.3."""

from mmengine.config import read_base

from drivestack.backbone.pretrain.segmentation.heads import mask2former

with read_base():
    from .._base_.segmentation import *

data = "data/VOCdevkit/VOC2010"
crop = (480, 480)
max_iters = 40_000
model.net = dict(type=mask2former, encoder="H", num_classes=59, train_size=crop)
new_parts = ("decode_head.",)  # that a classifier's file lacks
context = dict(
    type="PascalContextDataset59",
    data_root=data,
    data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClassContext"),
)
train_dataloader.dataset.source.dataset = dict(**context, ann_file="ImageSets/SegmentationContext/train.txt")
train_dataloader.dataset.pipeline[2].scale = (520, 520)
train_dataloader.dataset.pipeline[3].crop_size = crop
train_dataloader.batch_size = 1
test_dataset.source.dataset = dict(**context, ann_file="ImageSets/SegmentationContext/val.txt", test_mode=True)
test_dataset.pipeline[1].scale = (4096, 520)
optim_wrapper.optimizer.lr = 2e-5
optim_wrapper.paramwise_cfg.layer_decay_rate = 0.95
param_scheduler[1].end = max_iters
train_cfg.max_iters = max_iters
