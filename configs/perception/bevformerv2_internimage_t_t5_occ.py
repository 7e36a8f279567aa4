"""Voxels as one would train them today: InternImage-T, four past keyframes, masked and balanced losses, and boxes.

The BEV map of the BEV frame is fused over five frames (two seconds) and resampled to the EGO grid of Occ3D; columns
are unfolded from its channels (FlashOcc, arXiv 2311.12058). Losses count the voxels that the cameras see, weighed by
1 / ln of their classes' frequency, with Lovasz and scene-class affinity terms (MonoScene, arXiv 2112.00726). For
RayIoU set model.occupancy_head.mask="none". Boxes are learned beside (they sharpen what moves); voxels alone:
model.tasks=("occupancy",). Chosen from public ablations. Our scores: none yet.
"""

from mmengine.config import read_base
from mmengine.optim import CosineAnnealingLR, LinearLR
from torch.optim import AdamW

from drivestack.backbone.builder import internimage
from drivestack.backbone.fpn import FPN
from drivestack.bev.bevformer_v2 import BEVFormerV2
from drivestack.bev.boxes.head import BoxHead
from drivestack.bev.boxes.task import BoxTask
from drivestack.bev.map.bev_map import BevMap
from drivestack.data_tools.clips.transforms import ImageSettings
from drivestack.engine.layer_decay import LayerDecayOptimizerConstructor
from drivestack.engine.optim import PrecisionOptimWrapper
from drivestack.occupancy.head import OccupancyHead

with read_base():
    from .._base_.images import *
    from .._base_.nuscenes import *
    from .._base_.runtime import *

pc_range = [-42.0, -42.0, -5.0, 42.0, 42.0, 3.0]  # the LIDAR is a metre ahead of the EGO frame's +-40 m
max_iters = 24 * 28130 // 16  # 24 epochs, 16 clips a step

model = dict(
    type=BEVFormerV2,
    img_backbone=dict(
        type=internimage,
        variant="T",
        out_indices=(1, 2, 3),
        activation_checkpointing=True,
        # pretrained="internimage_t_1k_224.safetensors": published weights to start from
    ),
    img_neck=dict(type=FPN, out_channels=256, num_outs=4, add_extra_convs="on_output"),
    bev_map=dict(type=BevMap, pc_range=pc_range, bev_size=(100, 100), num_layers=3, frames=(-4, -3, -2, -1, 0)),
    boxes=dict(
        type=BoxTask,
        head=dict(
            type=BoxHead,
            num_classes=len(class_names),
            num_query=600,
            num_layers=3,
            post_center_range=[-50.0, -50.0, -10.0, 50.0, 50.0, 10.0],
        ),
    ),
    occupancy_head=dict(
        type=OccupancyHead,
        mask="camera",
        class_weights="log_frequency",
        loss_weights=dict(cross_entropy=1.0, lovasz=1.0, semantic_affinity=1.0, geometric_affinity=1.0),
    ),
)

data = dict(
    pc_range=pc_range,
    image=dict(
        type=ImageSettings,
        crop=(0.0, 319 / 900, 1.0, 1.0),  # 256 x 704, the size most published voxel models use
        train_heights_px=(256,),
        test_height_px=256,
        **imagenet_rgb,
    ),
)
# voxels follow neither image flips nor BEV augmentation; the mirror world mirrors all at once
train_dataloader.dataset.update(**data, mono=False, occupancy=True, mirror=True, keep_unknown_velocity=True)
test_dataset.update(data)
# nuScenes with gts/<scene>/<sample>/labels.npz beside samples/
train_dataloader.dataset.source.root = test_dataset.source.root = "data/occ3d-nus"

optim_wrapper = dict(
    type=PrecisionOptimWrapper,
    precision="auto",
    optimizer=dict(type=AdamW, lr=4e-4, weight_decay=0.01),
    constructor=LayerDecayOptimizerConstructor,
    paramwise_cfg=dict(layer_decay_rate=0.96),
    clip_grad=dict(max_norm=35.0),
)
param_scheduler = [
    dict(type=LinearLR, start_factor=1 / 3, by_epoch=False, begin=0, end=1000),
    dict(type=CosineAnnealingLR, eta_min_ratio=1e-2, by_epoch=False, begin=1000, end=max_iters),
]
train_cfg = dict(max_iters=max_iters)
ema = dict(momentum=0.0002)
