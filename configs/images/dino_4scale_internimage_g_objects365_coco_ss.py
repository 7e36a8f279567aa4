"""DINO with InternImage-G, from Objects365. Published: box AP 64.2."""

from mmengine.config import read_base

with read_base():
    from .._base_.dino_objects365 import *

model.net.encoder = "G"
