"""InternImage-H, fine-tuned on ImageNet-1K at 640 pixels: 89.6 % top-1 published, 512 images a step."""

from mmengine.config import read_base

with read_base():
    from .internimage_h_22kto1k_384 import *

size_px = 640
train_dataloader.dataset.image.size_px = size_px
test_dataset.image.size_px = size_px
