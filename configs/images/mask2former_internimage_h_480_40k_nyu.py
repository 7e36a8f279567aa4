"""Mask2Former with InternImage-H on NYU Depth v2, 40 classes. Published: mIoU 67.1, at several scales 68.1.

Data: `--set data=DIR` with DIR/train/images, DIR/train/masks and the same for test. Masks: 0 no class, k + 1 class k.
"""

from mmengine.config import read_base

from drivestack.backbone.pretrain.segmentation.heads import mask2former
from drivestack.backbone.pretrain.segmentation.masks import MaskFolder

with read_base():
    from .._base_.segmentation import *

data = "data/nyu_depth_v2"
crop = (480, 480)
max_iters = 40_000
model.net = dict(type=mask2former, encoder="H", num_classes=40, train_size=crop)
new_parts = ("decode_head.",)  # that a classifier's file lacks
names = [
    "wall",
    "floor",
    "cabinet",
    "bed",
    "chair",
    "sofa",
    "table",
    "door",
    "window",
    "bookshelf",
    "picture",
    "counter",
    "blinds",
    "desk",
    "shelves",
    "curtain",
    "dresser",
    "pillow",
    "mirror",
    "floor mat",
    "clothes",
    "ceiling",
    "books",
    "refridgerator",
    "television",
    "paper",
    "towel",
    "shower curtain",
    "box",
    "whiteboard",
    "person",
    "night stand",
    "toilet",
    "sink",
    "lamp",
    "bathtub",
    "bag",
    "otherstructure",
    "otherfurniture",
    "otherprop",
]
labels = dict(type=MaskFolder, classes=names, reduce_zero_label=True)
train_dataloader.dataset.source = dict(**labels, images=f"{data}/train/images", masks=f"{data}/train/masks")
train_dataloader.dataset.pipeline[2].scale = (2048, 512)
train_dataloader.dataset.pipeline[3].crop_size = crop
train_dataloader.batch_size = 1
test_dataset.source = dict(**labels, images=f"{data}/test/images", masks=f"{data}/test/masks")
test_dataset.pipeline[1].scale = (640, 480)
optim_wrapper.optimizer.lr = 2e-5
optim_wrapper.paramwise_cfg.layer_decay_rate = 0.95
param_scheduler[1].end = max_iters
train_cfg.max_iters = max_iters
