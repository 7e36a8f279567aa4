"""Mask2Former with InternImage-H on ADE20K, from COCO-Stuff: `--fine-tune FILE`. Published: mIoU 62.6."""

from mmengine.config import read_base

with read_base():
    from .._base_.mask2former import *

optim_wrapper.optimizer.lr = 1e-5
