"""DINO with InternImage-T, 12 epochs. Published: box AP 53.9."""

from mmengine.config import read_base

with read_base():
    from .._base_.dino import *

model.net.update(encoder="T", max_per_image=100, backbone=dict(activation_checkpointing=True))
