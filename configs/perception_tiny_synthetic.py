"""Boxes, voxels and lanes from one pass: the tiny BEVFormer v2 with two more heads on its BEV map.

Everything up to the BEV map, and the boxes, is bevformerv2_tiny_synthetic, so its weights can be loaded to start from
(``drivestack train perception_tiny_synthetic --load-from weights/bevformerv2_tiny_synthetic.safetensors``).
"""

from mmengine.config import read_base

from drivestack.bev.perception import BevPerception
from drivestack.lane_topology.head import LaneTopologyHead
from drivestack.occupancy.head import OccupancyHead

with read_base():
    from .bevformerv2_tiny_synthetic import *

model.update(
    type=BevPerception,
    occupancy_head=dict(
        type=OccupancyHead,
        in_channels=channels,
        channels=64,
        coarse_cells=100,
        columns_per_sample=3000,
        loss_weights=dict(cross_entropy=1.0, lovasz=0.5, semantic_affinity=0.3, geometric_affinity=0.3),
    ),
    lane_head=dict(
        type=LaneTopologyHead,
        in_channels=channels,
        channels=64,
        bev_size=(34, 68),
        num_queries=20,
        num_proposals=30,
        num_layers=3,
        num_heads=4,
        ffn_dims=128,
        hidden=64,
        element_upsample=4,
        front_camera=0,  # CAM_FRONT
    ),
)
train_dataloader.dataset.update(occupancy=True, lanes=True)
