"""Mask R-CNN with InternImage-T fine-tuned on your own images; a recipe of ours, for some hundred images and one GPU.

    drivestack train mask_rcnn_internimage_t_own_coco --set data=DIR --fine-tune mask_rcnn_internimage_t_fpn_1x_coco.pth

DIR holds images/, and train.json and val.json in COCO's format with polygons or run lengths. Classes, iterations and
the learning rate follow from train.json. Another size: `--set model.net.encoder=S`.
"""

from mmengine.config import read_base
from torch.optim import AdamW

with read_base():
    from .mask_rcnn_internimage_t_fpn_1x_coco import *

data = "data/own"
sized_by_classes = ("model.net.num_classes",)
train_dataloader.dataset.source.update(annotations=f"{data}/train.json", images=f"{data}/images", min_side_px=0)
train_dataloader.dataset.pipeline = [*read, detr_augmentation, *finish]
test_dataset.source.update(annotations=f"{data}/val.json", images=f"{data}/images")
epochs = dict(total=24, warmup=1, lr=1e-4, images_per_lr=16)
train_cfg = dict()
param_scheduler = None
optim_wrapper.update(
    precision="auto",
    optimizer=dict(type=AdamW, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(prefix="net.backbone.", layer_decay_rate=0.9),
    clip_grad=dict(max_norm=1.0),
)
ema = dict(momentum=0.001)
