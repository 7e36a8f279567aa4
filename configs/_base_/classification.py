"""Classifiers on ImageNet-1K as InternImage's release trains and scores them (arXiv 2211.05778, classification/).

Data: one folder of classes, ``--set data=DIR`` with DIR/train/CLASS/IMAGE and DIR/val/CLASS/IMAGE, as ImageNet is
unpacked. Any other folder of classes will do: the number of classes, learning rates and iterations follow from it.
"""

from mmengine.config import read_base
from torch.optim import AdamW

from drivestack.backbone.builder import internimage
from drivestack.backbone.pretrain.classification.batch import collate
from drivestack.backbone.pretrain.classification.dataset import ClassDataset
from drivestack.backbone.pretrain.classification.model import Classifier
from drivestack.backbone.pretrain.classification.sources import FolderSource
from drivestack.backbone.pretrain.classification.transforms import ClassImageSettings
from drivestack.data_tools.clips.sampler import ResumableSampler
from drivestack.engine.layer_decay import ClassifierOptimizerConstructor
from drivestack.engine.optim import PrecisionOptimWrapper

with read_base():
    from .runtime import *

data = "data/imagenet"

model = dict(
    type=Classifier,
    network=dict(type=internimage, variant="T", task="classification", num_classes=1000),
    label_smoothing=0.1,
    mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0, prob=1.0, switch_prob=0.5, mode="batch"),
)
sized_by_classes = ("model.network.num_classes",)

image = dict(type=ClassImageSettings, size_px=224)
augment = dict(auto_augment="rand-m9-mstd0.5-inc1", color_jitter=0.4, re_prob=0.25, re_mode="pixel", re_count=1)
train_dataloader = dict(
    dataset=dict(
        type=ClassDataset,
        source=dict(type=FolderSource, root=data, part="train"),
        image=dict(**image, augment=augment),
        training=True,
    ),
    sampler=dict(type=ResumableSampler),
    batch_size=128,  # of one process; the rates below grow with the images of a step
    num_workers=8,
    collate_fn=collate,
)
test_dataset = dict(type=ClassDataset, source=dict(type=FolderSource, root=data, part="val"), image=dict(**image))

epochs = dict(total=300, warmup=20, lr=5e-4, warmup_lr=5e-7, min_lr=5e-6, images_per_lr=512)
optim_wrapper = dict(
    type=PrecisionOptimWrapper,
    precision="fp16",
    constructor=ClassifierOptimizerConstructor,
    paramwise_cfg=dict(layer_decay_rate=None),
    optimizer=dict(type=AdamW, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
)
ema = dict(momentum=1e-4, update_buffers=True)  # timm's decay 0.9999
sync_bn = False
