"""Cascade R-CNN (boxes) with InternImage-XL on CrowdHuman, 36 epochs. No result of this config is published.

Data: annotations in COCO's format, written by `python -m drivestack.backbone.pretrain.detection.crowd_human`; full-body
boxes. 128 images a step: 64 processes of 2.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.cascade_mask_rcnn import *

data = "data/crowd_human"
epoch = 118  # iterations: 15,000 images, 128 a step
model.net.update(encoder="XL", num_classes=1, masks=False)
read[1].with_mask = False
train_dataloader.dataset.pipeline = [*read, detr_augmentation, *finish]
train_dataloader.dataset.source.update(
    annotations=f"{data}/annotations/train.json", images=f"{data}/Images", masks=False
)
test_dataset.source.update(annotations=f"{data}/annotations/val.json", images=f"{data}/Images", masks=False)
optim_wrapper.optimizer.weight_decay = 1e-4
optim_wrapper.paramwise_cfg.layer_decay_rate = 0.94
param_scheduler[1].milestones = [27 * epoch, 33 * epoch]
train_cfg.max_iters = 36 * epoch
checkpoint.interval = epoch
