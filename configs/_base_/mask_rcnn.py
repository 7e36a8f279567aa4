"""Mask R-CNN on COCO, 12 epochs. Start from a classifier: `--load-from internimage_VARIANT_1k_224.pth`."""

from mmengine.config import read_base

from drivestack.backbone.pretrain.detection.heads import mask_rcnn
from drivestack.backbone.pretrain.openmmlab import MMModel

with read_base():
    from .detection import *

model = dict(type=MMModel, net=dict(type=mask_rcnn, encoder="T", num_classes=80))
new_parts = ("neck.", "rpn_head.", "roi_head.")  # that a classifier's file lacks
