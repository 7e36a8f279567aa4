"""InternImage-G, fine-tuned on ImageNet-1K at 512 pixels: 90.1 % top-1 published, 512 images a step (64 GPUs x 8)."""

from mmengine.config import read_base

with read_base():
    from .internimage_l_22kto1k_384 import *

model.network.variant = "G"
train_dataloader.batch_size = 8
size_px = 512
train_dataloader.dataset.image.size_px = size_px
test_dataset.image.size_px = size_px
