"""OpenLane-V2 subset A (Argoverse 2, seven cameras) as one would train it today: the shared model with its lane head.

InternImage-S, a BEV of 200 x 100 cells, no CAN-bus signal; lanes are refined from dense guesses, their position enters
the topology heads (TopoMLP, arXiv 2310.06753) and the gap between two lanes is a prior of their edge (TopoLogic, arXiv
2405.14747). Images at about half size; the portrait front image is stretched to the shape of the others, as in the
published baselines (arXiv 2304.10440). Schedule as there: 24 epochs, 8 clips a step. Not trained by us.
"""

from mmengine.config import read_base
from mmengine.optim import CosineAnnealingLR, LinearLR
from torch.optim import AdamW

from drivestack.backbone.builder import internimage
from drivestack.backbone.fpn import FPN
from drivestack.bev.bevformer_v2 import BEVFormerV2
from drivestack.bev.map.bev_map import BevMap
from drivestack.data_tools.clips.clip_dataset import ClipDataset
from drivestack.data_tools.clips.collate import collate_clips
from drivestack.data_tools.clips.sampler import ResumableSampler
from drivestack.data_tools.clips.transforms import ImageSettings, PhotometricSettings
from drivestack.engine.layer_decay import LayerDecayOptimizerConstructor
from drivestack.engine.optim import PrecisionOptimWrapper
from drivestack.lane_topology.head import LaneTopologyHead

with read_base():
    from .._base_.images import *
    from .._base_.runtime import *

lane_range = [-51.2, -25.6, -2.3, 51.2, 25.6, 1.7]
bev_size = (100, 200)
frames_to_train = 22477
max_iters = 24 * frames_to_train // 8

model = dict(
    type=BEVFormerV2,
    img_backbone=dict(
        type=internimage,
        variant="S",
        out_indices=(1, 2, 3),
        activation_checkpointing=True,
        # pretrained="internimage_s_1k_224.safetensors": published weights to start from
    ),
    img_neck=dict(
        type=FPN,
        out_channels=256,
        num_outs=4,
        add_extra_convs="on_output",
        relu_before_extra_convs=True,
    ),
    bev_map=dict(
        type=BevMap, pc_range=lane_range, bev_size=bev_size, num_cams=7, num_layers=3, checkpoint_encoder=True
    ),
    lane_head=dict(
        type=LaneTopologyHead,
        lane_range=lane_range,
        bev_size=bev_size,
        element_channels=128,
        element_stem=32,
    ),
)

source = dict(reader="openlane", root="data/OpenLane-V2")
dataset = dict(
    type=ClipDataset,
    classes=[],  # no boxes in it
    lanes=True,
    image=dict(
        type=ImageSettings,
        crop=(0.0, 0.0, 1.0, 1.0),
        train_heights_px=(800,),
        test_height_px=800,
        aspect=1.32,  # 1056 x 800
        **imagenet_rgb,
        resample="area",
    ),
)
train_dataloader = dict(
    dataset=dict(
        **dataset, source=dict(**source, split="train"), training=True, photometric=dict(type=PhotometricSettings)
    ),
    sampler=dict(type=ResumableSampler),
    batch_size=1,
    num_workers=4,
    collate_fn=collate_clips,
)
test_dataset = dict(**dataset, source=dict(**source, split="val"))

optim_wrapper = dict(
    type=PrecisionOptimWrapper,
    precision="auto",
    optimizer=dict(type=AdamW, lr=2e-4, weight_decay=0.01),
    constructor=LayerDecayOptimizerConstructor,
    paramwise_cfg=dict(lr_mults={"img_backbone.": 0.1}),
    clip_grad=dict(max_norm=35.0),
)
param_scheduler = [
    dict(type=LinearLR, start_factor=1 / 3, by_epoch=False, begin=0, end=500),
    dict(type=CosineAnnealingLR, eta_min_ratio=1e-3, by_epoch=False, begin=500, end=max_iters),
]
train_cfg = dict(max_iters=max_iters)
