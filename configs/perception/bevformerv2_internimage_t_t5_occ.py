"""Voxels as one would train them today: InternImage-T, four past keyframes, masked and balanced losses, and boxes.

The BEV map of the LIDAR frame is fused over five frames (two seconds) and resampled to the EGO grid of Occ3D; columns
are unfolded from its channels (FlashOcc, arXiv 2311.12058). Losses count the voxels that the cameras see, weighed by
1 / ln of their classes' frequency, with Lovasz and scene-class affinity terms (MonoScene, arXiv 2112.00726). For
RayIoU set model.occupancy_head.mask="none". Boxes are learned beside (they sharpen what moves); voxels alone:
model.tasks=("occupancy",). Chosen from public ablations (spec/occupancy.md section 5). Our scores: none yet.
"""

from mmengine.config import read_base
from mmengine.optim import CosineAnnealingLR, LinearLR
from torch.optim import AdamW

from drivestack.backbone.builder import internimage
from drivestack.backbone.fpn import FPN
from drivestack.bev.boxes.head import BEVFormerHead
from drivestack.bev.map.transformer import BevTransformer
from drivestack.bev.multi_task import BevPerception
from drivestack.data_tools.clips.transforms import ImageSettings
from drivestack.engine.layer_decay import LayerDecayOptimizerConstructor
from drivestack.engine.optim import PrecisionOptimWrapper
from drivestack.occupancy.head import OccupancyHead

with read_base():
    from .._base_.nuscenes import *
    from .._base_.runtime import *

pc_range = [-42.0, -42.0, -5.0, 42.0, 42.0, 3.0]  # the LIDAR is a metre ahead of the EGO frame's +-40 m
bev_size = (100, 100)
frames = (-4, -3, -2, -1, 0)
max_iters = 24 * 28130 // 16  # 24 epochs, 16 clips a step

model = dict(
    type=BevPerception,
    tasks=("boxes", "occupancy"),
    img_backbone=dict(
        type=internimage,
        variant="T",
        out_indices=(1, 2, 3),
        activation_checkpointing=True,
        # pretrained="internimage_t_1k_224.safetensors": published weights to start from
    ),
    img_neck=dict(type=FPN, in_channels=(128, 256, 512), out_channels=256, num_outs=4, add_extra_convs="on_output"),
    pts_bbox_head=dict(
        type=BEVFormerHead,
        transformer=dict(
            type=BevTransformer,
            point_range=pc_range,
            bev_size=bev_size,
            encoder_layers=3,
            decoder_layers=3,
            frames=frames,
        ),
        num_query=600,
        num_decoder_layers=3,
        pc_range=pc_range,
        bev_size=bev_size,
        post_center_range=[-50.0, -50.0, -10.0, 50.0, 50.0, 10.0],
    ),
    occupancy_head=dict(
        type=OccupancyHead,
        in_channels=256,
        mask="camera",
        class_weights="log_frequency",
        loss_weights=dict(cross_entropy=1.0, lovasz=1.0, semantic_affinity=1.0, geometric_affinity=1.0),
    ),
    frame_offsets=frames,
)

data = dict(
    dataroots=["data/occ3d-nus"],  # nuScenes with gts/<scene>/<sample>/labels.npz beside samples/
    pc_range=pc_range,
    frame_offsets=frames,
    image=dict(
        type=ImageSettings,
        crop=(0.0, 319 / 900, 1.0, 1.0),  # 256 x 704, the size most published voxel models use
        train_heights_px=(256,),
        test_height_px=256,
        mean=(123.675, 116.28, 103.53),
        std=(58.395, 57.12, 57.375),
        channels="rgb",
    ),
)
# voxels follow neither image flips nor BEV augmentation; the mirror world mirrors all at once
train_dataloader.dataset.update(**data, mono=False, occupancy=True, mirror=True, keep_unknown_velocity=True)
test_dataset.update(data)

optim_wrapper = dict(
    type=PrecisionOptimWrapper,
    precision="bf16",
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
