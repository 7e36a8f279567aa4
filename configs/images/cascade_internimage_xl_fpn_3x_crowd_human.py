"""Cascade R-CNN (boxes) with InternImage-XL on CrowdHuman, 36 epochs. No result of this config is published.

Data: `--set data=DIR` with DIR/annotation_train.odgt, DIR/annotation_val.odgt and DIR/Images as unpacked; full-body
boxes. 128 images a step: 64 processes of 2.
"""

from mmengine.config import read_base

from drivestack.backbone.pretrain.toolbox_source import ToolboxData

with read_base():
    from .._base_.cascade_mask_rcnn import *

data = "data/crowd_human"
epoch = 118  # iterations: 15,000 images, 128 a step
people = dict(type="CrowdHumanDataset", data_root=f"{data}/", data_prefix=dict(img="Images/"))
model.net.update(encoder="XL", num_classes=1, masks=False)
read[1].with_mask = False
train_dataloader.dataset.source = dict(
    type=ToolboxData,
    dataset=dict(
        **people,
        ann_file="annotation_train.odgt",
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
    ),
)
train_dataloader.dataset.pipeline = [*read, detr_augmentation, *finish]
test_dataset.source = dict(
    type=ToolboxData,
    dataset=dict(**people, ann_file="annotation_val.odgt", test_mode=True),
)
optim_wrapper.optimizer.weight_decay = 1e-4
optim_wrapper.paramwise_cfg.layer_decay_rate = 0.94
param_scheduler[1].milestones = [27 * epoch, 33 * epoch]
train_cfg.max_iters = 36 * epoch
checkpoint.interval = epoch
