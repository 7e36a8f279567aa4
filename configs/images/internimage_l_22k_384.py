"""InternImage-L on ImageNet-22K (trained at 192, then 384 pixels): for the released weights with 21841 classes.

The release has no recipe of this training; the settings are those of fine-tuning. ImageNet-1K is scored with the rows
of its classes: `--set model.class_rows=map22kto1k.txt`, a file of the release.
"""

from mmengine.config import read_base

with read_base():
    from .internimage_l_22kto1k_384 import *

model.network.update(variant="L", num_classes=21841)
