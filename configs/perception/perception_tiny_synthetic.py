"""Boxes, voxels and lanes from one pass: the tiny BEVFormer v2 with two more heads on its BEV map.

Everything up to the BEV map, and the boxes, is bevformerv2_tiny_synthetic, so its weights can be loaded to start from
(``drivestack train perception_tiny_synthetic --load-from bevformerv2_tiny_synthetic``).
"""

from mmengine.config import read_base
from mmengine.optim import CosineAnnealingLR, LinearLR

from drivestack.lane_topology.head import LaneTopologyHead
from drivestack.occupancy.head import OccupancyHead

with read_base():
    from ..boxes.bevformerv2_tiny_synthetic import *

model.update(
    occupancy_head=dict(
        type=OccupancyHead,
        channels=64,
        coarse_cells=100,
        columns_per_sample=2000,
        loss_weights=dict(cross_entropy=1.0, lovasz=0.5, semantic_affinity=0.3, geometric_affinity=0.3),
    ),
    lane_head=dict(
        type=LaneTopologyHead,
        channels=64,
        bev_size=(34, 68),
        num_queries=20,
        num_proposals=30,
        num_layers=3,
        num_heads=4,
        ffn_dims=128,
        hidden=64,
        element_stem=16,
        min_score=0.05,  # the F-score counts all lanes: it doubles, and OLS stays (docs/lane_topology.md)
    ),
    # against gradients into the BEV map that differ a hundredfold at the start (docs/LOG.md)
    loss_weights=dict(occupancy=5.0, lanes=0.5),
)
train_dataloader.dataset.update(occupancy=True, lanes=True)
train_dataloader.dataset.source.root = ["data/train100", "data/train101"]

new_parts = ("occupancy_head.", "lane_head.", "adapters.")
max_iters = 6000
optim_wrapper.optimizer.update(lr=6e-4)
param_scheduler = [
    dict(type=LinearLR, start_factor=0.05, by_epoch=False, begin=0, end=200),
    dict(type=CosineAnnealingLR, eta_min=6e-6, by_epoch=False, begin=200, end=max_iters),
]
train_cfg.update(max_iters=max_iters)
