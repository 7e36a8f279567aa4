"""A BEVFormer v2 that two CPU cores train in about an hour on the synthetic world: boxes alone.

One frame, 384 x 128 pixel images, an InternImage of 32 channels, a BEV of 56 x 56 cells of 1.5 m. Proposals come from
centre heat maps on the BEV map (bev/boxes/proposals.py): their dense supervision is what lets the decoder converge in
so few iterations.
"""

from mmengine.config import read_base
from mmengine.optim import CosineAnnealingLR, LinearLR
from torch.optim import AdamW

from drivestack.backbone.fpn import FPN
from drivestack.backbone.internimage.model import InternImage
from drivestack.bev.bevformer_v2 import BEVFormerV2
from drivestack.bev.boxes.head import BoxHead
from drivestack.bev.boxes.proposals import BevProposals, HybridQueries
from drivestack.bev.boxes.task import BoxTask
from drivestack.bev.map.bev_map import BevMap
from drivestack.data_tools.clips.transforms import ImageSettings
from drivestack.engine.optim import PrecisionOptimWrapper

with read_base():
    from .._base_.nuscenes import *
    from .._base_.runtime import *

bev_size = (56, 56)
pc_range = [-42.0, -42.0, -5.0, 42.0, 42.0, 3.0]
channels = 64
layers = dict(num_heads=4, ffn_dims=128, dropout=0.0)  # of encoder and decoder
max_iters = 10800

model = dict(
    type=BEVFormerV2,
    img_backbone=dict(type=InternImage, channels=32, depths=(1, 2, 5, 2), groups=(2, 4, 8, 16), out_indices=(1, 2, 3)),
    img_neck=dict(type=FPN, out_channels=channels, num_outs=3),
    bev_map=dict(
        type=BevMap,
        pc_range=pc_range,
        bev_size=bev_size,
        embed_dims=channels,
        num_levels=3,
        num_layers=3,
        **layers,
    ),
    boxes=dict(
        type=BoxTask,
        head=dict(
            type=BoxHead,
            num_classes=len(class_names),
            num_query=40,
            num_groups=3,
            num_layers=3,
            post_center_range=[-50.0, -50.0, -10.0, 50.0, 50.0, 10.0],
            **layers,
        ),
        bev_proposals=dict(type=BevProposals, num_proposals=120, min_radius_cells=1.0),
        hybrid_queries=dict(type=HybridQueries),
    ),
    grid_mask=False,
)

data_command = "for n in 100 101 102; do drivestack synthesize data/train$n --scenes 100 --keyframes 6 --seed $n; done"
data = dict(
    pc_range=pc_range,
    image=dict(
        type=ImageSettings,
        crop=(0.0, 0.4, 1.0, 1.0),  # the street begins a little above the horizon
        train_heights_px=(128,),
        test_height_px=128,
        mean=(110.0, 110.0, 110.0),
        std=(60.0, 60.0, 60.0),
        resample="area",
    ),
)
# Neither upstream's image flip nor its BEV flips: both blur which way an object faces, and a short run never recovers
# from that (docs/LOG.md). The mirror world augments without contradiction.
train_dataloader.dataset.update(**data, photometric=None, mono=False, mirror=True, cache_images=True)
train_dataloader.num_workers = 0
test_dataset.update(data)
train_dataloader.dataset.source.root = ["data/train100", "data/train101", "data/train102"]
test_dataset.source.root = "data/val"

optim_wrapper = dict(
    type=PrecisionOptimWrapper,
    precision="auto",
    optimizer=dict(type=AdamW, lr=7e-4, weight_decay=0.01, fused=True),
    clip_grad=dict(max_norm=10.0),
)
param_scheduler = [
    dict(type=LinearLR, start_factor=0.05, by_epoch=False, begin=0, end=300),
    dict(type=CosineAnnealingLR, eta_min=7e-6, by_epoch=False, begin=300, end=max_iters),
]
train_cfg = dict(max_iters=max_iters)
ema = dict(momentum=0.002)
checkpoint = dict(interval=500, keep=2)
