"""DINO with InternImage-L, 12 epochs. Published: box AP 57.5."""

from mmengine.config import read_base

with read_base():
    from .._base_.dino import *

model.net.encoder = "L"
