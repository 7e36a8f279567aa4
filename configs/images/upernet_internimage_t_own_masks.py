"""UperNet with InternImage-T fine-tuned on your own images; a recipe of ours, for some hundred images and one GPU.

    drivestack train upernet_internimage_t_own_masks --set data=DIR --fine-tune FILE

DIR holds train/images, train/masks, val/images, val/masks (a PNG of class numbers for each image, 255 for none) and
classes.txt, a name a line. Classes, iterations and the learning rate follow from them.
"""

from mmengine.config import read_base
from torch.optim import AdamW

from drivestack.backbone.pretrain.segmentation.masks import MaskFolder

with read_base():
    from .upernet_internimage_t_512_160k_ade20k import *

data = "data/own"
labels = dict(type=MaskFolder, classes=f"{data}/classes.txt")
sized_by_classes = ("model.net.num_classes",)
train_dataloader.dataset.source = dict(**labels, images=f"{data}/train/images", masks=f"{data}/train/masks")
test_dataset.source = dict(**labels, images=f"{data}/val/images", masks=f"{data}/val/masks")
epochs = dict(total=60, warmup=2, lr=6e-5, images_per_lr=16)
train_cfg = dict()
param_scheduler = None
optim_wrapper.update(
    precision="auto",
    optimizer=dict(type=AdamW, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(prefix="net.backbone.", layer_decay_rate=0.9),
    clip_grad=dict(max_norm=1.0),
)
ema = dict(momentum=0.001)
