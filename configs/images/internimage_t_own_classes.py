"""InternImage-T fine-tuned on your own folder of classes; a recipe of ours, for some thousand images and one GPU.

    drivestack train internimage_t_own_classes --set data=DIR --fine-tune internimage_t_1k_224.pth

DIR holds a folder of images for each class (or train/ and val/ with these; else one image in ten is for validation).
Another size: `--set model.network.variant=S`.
"""

from mmengine.config import read_base

with read_base():
    from .internimage_t_1k_224 import *

model.mixup = None
train_dataloader.update(batch_size=32, num_workers=4)
epochs.update(total=30, warmup=2, lr=2e-4, warmup_lr=0.0, min_lr=0.0, images_per_lr=32)
optim_wrapper.update(precision="auto", paramwise_cfg=dict(layer_decay_rate=0.9))
ema = dict(momentum=0.002)
