"""Boxes and voxels from InternImage-T with a streaming memory in the place of four past frames: docs/memory.md.

As bevformerv2_internimage_t_t5_occ, which encodes the images of past keyframes again on the current grid and fuses five
maps: here a frame costs what a single one costs, however far back the past goes. Scenes of 40 keyframes are cut in two
for training, as SOLOFusion and StreamPETR do. Our scores: none yet.
"""

from mmengine.config import read_base

from drivestack.bev.map.memory import StreamingMemory
from drivestack.data_tools.clips.sampler import StreamingSampler

with read_base():
    from .bevformerv2_internimage_t_t5_occ import *

model.bev_map.update(frames=(0,))
model.update(memory=dict(type=StreamingMemory, gate_channels=64, unroll=3))
# one frame says little of a velocity; two do
model.boxes.head.update(code_weights=[1.0] * 10)
train_dataloader.sampler = dict(type=StreamingSampler, sequence_frames=20, interleave=4)
