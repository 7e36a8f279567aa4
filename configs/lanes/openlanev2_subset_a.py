"""OpenLane-V2 subset A (Argoverse 2, seven cameras) as one would train it today: the shared model with its lane head.

InternImage-S, a BEV of 200 x 100 cells, no CAN-bus signal; lanes are refined from dense guesses, their position enters
the topology heads (TopoMLP, arXiv 2310.06753) and the gap between two lanes is a prior of their edge (TopoLogic, arXiv
2405.14747). Images at about half size; the portrait front image is stretched to the shape of the others, as in the
published baselines (spec/lane_topology.md section 2). Schedule as there: 24 epochs, 8 clips a step. Not trained by us.
"""

from mmengine.config import read_base
from mmengine.optim import CosineAnnealingLR, LinearLR
from torch.optim import AdamW

from drivestack.backbone.builder import internimage
from drivestack.backbone.fpn import FPN
from drivestack.bev.boxes.head import BEVFormerHead
from drivestack.bev.map.transformer import BevTransformer
from drivestack.bev.multi_task import BevPerception
from drivestack.data_tools.clips.collate import collate_clips
from drivestack.data_tools.clips.sampler import ResumableSampler
from drivestack.data_tools.clips.transforms import ImageSettings, PhotometricSettings
from drivestack.data_tools.readers.openlane import OpenLaneDataset
from drivestack.engine.layer_decay import LayerDecayOptimizerConstructor
from drivestack.engine.optim import PrecisionOptimWrapper
from drivestack.lane_topology.head import LaneTopologyHead

with read_base():
    from .._base_.runtime import *

lane_range = [-51.2, -25.6, -2.3, 51.2, 25.6, 1.7]
bev_size = (100, 200)
frames_to_train = 22477
max_iters = 24 * frames_to_train // 8

model = dict(
    type=BevPerception,
    tasks=("lanes",),
    img_backbone=dict(
        type=internimage,
        variant="S",
        out_indices=(1, 2, 3),
        activation_checkpointing=True,
        # pretrained="internimage_s_1k_224.safetensors": published weights to start from
    ),
    img_neck=dict(
        type=FPN,
        in_channels=(160, 320, 640),
        out_channels=256,
        num_outs=4,
        add_extra_convs="on_output",
        relu_before_extra_convs=True,
    ),
    # of the box head only the BEV encoder is used, which lives in it under the published keys
    pts_bbox_head=dict(
        type=BEVFormerHead,
        transformer=dict(
            type=BevTransformer,
            point_range=lane_range,
            bev_size=bev_size,
            num_cams=7,
            encoder_layers=3,
            decoder_layers=1,
            checkpoint_encoder=True,
        ),
        num_classes=1,
        num_query=1,
        num_groups=1,
        num_decoder_layers=1,
        pc_range=lane_range,
        bev_size=bev_size,
    ),
    lane_head=dict(
        type=LaneTopologyHead,
        lane_range=lane_range,
        bev_size=bev_size,
        element_channels=128,
        element_stem=32,
        front_camera=0,
    ),
)

dataset = dict(
    type=OpenLaneDataset,
    dataroots=["data/OpenLane-V2"],
    classes=[],  # no boxes in it
    image=dict(
        type=ImageSettings,
        crop=(0.0, 0.0, 1.0, 1.0),
        train_heights_px=(800,),
        test_height_px=800,
        aspect=1.32,  # 1056 x 800
        mean=(123.675, 116.28, 103.53),
        std=(58.395, 57.12, 57.375),
        channels="rgb",
        resample="area",
    ),
)
train_dataloader = dict(
    dataset=dict(**dataset, split="train", training=True, photometric=dict(type=PhotometricSettings)),
    sampler=dict(type=ResumableSampler),
    batch_size=1,
    num_workers=4,
    collate_fn=collate_clips,
)
test_dataset = dict(**dataset, split="val")

optim_wrapper = dict(
    type=PrecisionOptimWrapper,
    precision="bf16",
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
