"""InternImage-L, pretrained on ImageNet-22K, fine-tuned on ImageNet-1K: 87.7 % top-1 published, 512 images a step.

Start it with `--fine-tune internimage_l_22k_192to384.pth`.
"""

from mmengine.config import read_base

with read_base():
    from .internimage_t_1k_224 import *

model.network.update(variant="L", activation_checkpointing=True)
model.update(mixup=None, label_smoothing=0.3)
size_px = 384
train_dataloader.dataset.image.size_px = size_px
train_dataloader.dataset.image.augment.re_prob = 0.0
train_dataloader.batch_size = 16
test_dataset.image.size_px = size_px
epochs.update(total=20, warmup=2, lr=2e-5, warmup_lr=0.0, min_lr=0.0)
optim_wrapper.paramwise_cfg.update(layer_decay_rate=0.9, dcn_lr_mul=0.1)
