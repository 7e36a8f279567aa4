"""DINO with InternImage-H, from Objects365. Published: box AP 63.4."""

from mmengine.config import read_base

with read_base():
    from .._base_.dino_objects365 import *

model.net.encoder = "H"
