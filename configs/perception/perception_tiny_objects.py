"""The tiny model with a streaming memory for its map and one for its objects, whose ids make tracks: docs/tracking.md.

With the weights of perception_tiny_synthetic the first frame of a scene is that model's to the bit.
"""

from mmengine.config import read_base

from drivestack.bev.boxes.memory import ObjectMemory

with read_base():
    from .perception_tiny_memory import *

model.boxes.update(memory=dict(type=ObjectMemory))

new_parts = ("memory.", "boxes.memory.")
