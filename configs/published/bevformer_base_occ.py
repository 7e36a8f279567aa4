"""The occupancy challenge's BEVFormer, ResNet-101 with DCNv2, as published: images and history to Occ3D voxels.

InternImage's autonomous_driving/occupancy_prediction. Keys are the published ones (DCNv2
is torchvision's operator here: mmcv is not needed). Reported: mIoU 23.67 with camera mask. Trained with
model.voxel_head.mask="camera" the same model reaches 39 there, and loses RayIoU. Our scores: none yet.
For a new model take bevformerv2_internimage_t_t5_occ.
"""

from mmengine.config import read_base
from mmengine.optim import CosineAnnealingLR, LinearLR
from torch.optim import AdamW

from drivestack.backbone.fpn import FPN
from drivestack.backbone.resnet import ResNet
from drivestack.data_tools.clips.transforms import ImageSettings
from drivestack.engine.layer_decay import LayerDecayOptimizerConstructor
from drivestack.engine.optim import PrecisionOptimWrapper
from drivestack.occupancy.published.bevformer_occ import BEVFormerOcc, OccupancyMap, VoxelHead

with read_base():
    from .._base_.nuscenes import *
    from .._base_.runtime import *

pc_range = [-40.0, -40.0, -1.0, 40.0, 40.0, 5.4]  # of the EGO frame
max_iters = 24 * 28130 // 8  # 24 epochs, a clip on each of 8 GPUs
sync_bn = False

model = dict(
    type=BEVFormerOcc,
    img_backbone=dict(
        type=ResNet,
        depth=101,
        style="caffe",
        out_indices=(1, 2, 3),
        frozen_stages=1,
        norm_eval=True,
        norm_requires_grad=False,
        stage_with_dcn=(False, False, True, True),
        # pretrained="r101_dcn_fcos3d_pretrain.pth": published weights to start from
    ),
    img_neck=dict(
        type=FPN,
        out_channels=256,
        num_outs=4,
        add_extra_convs="on_output",
        relu_before_extra_convs=True,
    ),
    bev_map=dict(type=OccupancyMap, pc_range=pc_range, bev_size=(200, 200), num_levels=4),
    voxel_head=dict(type=VoxelHead),
    frame_offsets=(-4, -3, -2, -1, 0),  # a step draws three of the four past ones
    history_frames=3,
)

data = dict(
    pc_range=pc_range,
    image=dict(
        type=ImageSettings,
        crop=(0.0, 0.0, 1.0, 1.0),
        train_heights_px=(900,),
        test_height_px=900,
        resample="bilinear",
    ),
)
train_dataloader.dataset.update(**data, mono=False, occupancy=True)
test_dataset.update(data)
# nuScenes with gts/<scene>/<sample>/labels.npz beside samples/
train_dataloader.dataset.source.root = test_dataset.source.root = "data/occ3d-nus"

optim_wrapper = dict(
    type=PrecisionOptimWrapper,
    precision="fp32",
    optimizer=dict(type=AdamW, lr=2e-4, weight_decay=0.01),
    constructor=LayerDecayOptimizerConstructor,
    paramwise_cfg=dict(lr_mults={"img_backbone.": 0.1}, decay_one_dim=True),
    clip_grad=dict(max_norm=35.0),
)
param_scheduler = [
    dict(type=LinearLR, start_factor=1 / 3, by_epoch=False, begin=0, end=500),
    dict(type=CosineAnnealingLR, eta_min_ratio=1e-3, by_epoch=False, begin=500, end=max_iters),
]
train_cfg = dict(max_iters=max_iters)
