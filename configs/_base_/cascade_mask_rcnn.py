"""Cascade Mask R-CNN on COCO, 12 epochs. Start from a classifier: `--load-from FILE`."""

from mmengine.config import read_base

from drivestack.backbone.pretrain.detection.heads import cascade_mask_rcnn
from drivestack.backbone.pretrain.openmmlab import MMModel

with read_base():
    from .detection import *

model = dict(type=MMModel, net=dict(type=cascade_mask_rcnn, encoder="L", num_classes=80))
new_parts = ("neck.", "rpn_head.", "roi_head.")  # that a classifier's file lacks
