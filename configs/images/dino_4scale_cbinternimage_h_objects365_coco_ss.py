"""DINO with CB-InternImage-H, from Objects365. Published: box AP 64.5."""

from mmengine.config import read_base

with read_base():
    from .._base_.dino_objects365 import *

model.net.composite = True
