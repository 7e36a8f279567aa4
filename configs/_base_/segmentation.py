"""Segmentors on ADE20K as InternImage's release trains and scores them (arXiv 2211.05778, segmentation/configs).

16 images a step: 8 processes (torchrun) of 2. Data: `--set data=DIR` with DIR/images and DIR/annotations as ADE20K's
challenge of 2016 is unpacked. Start from a classifier: `--load-from FILE`.
"""

from mmengine.config import read_base
from mmengine.optim import LinearLR, PolyLR
from torch.optim import AdamW

from drivestack.backbone.pretrain.mm_data import MMData, collate_images
from drivestack.backbone.pretrain.openmmlab import MMModel
from drivestack.backbone.pretrain.reading import ReadImage, ReadPixelLabels
from drivestack.backbone.pretrain.segmentation.heads import upernet
from drivestack.backbone.pretrain.toolbox_source import ToolboxData
from drivestack.data_tools.clips.sampler import ResumableSampler
from drivestack.engine.layer_decay import LayerDecayOptimizerConstructor
from drivestack.engine.optim import PrecisionOptimWrapper

with read_base():
    from .runtime import *

data = "data/ADEChallengeData2016"
crop = (512, 512)  # height, width
scale = (2048, 512)
max_iters = 160_000

model = dict(type=MMModel, task="segmentation", net=dict(type=upernet, encoder="T", num_classes=150, train_size=crop))
new_parts = ("decode_head.", "auxiliary_head.")  # that a classifier's file lacks

train_dataloader = dict(
    dataset=dict(
        type=MMData,
        task="segmentation",
        source=dict(
            type=ToolboxData,
            task="segmentation",
            dataset=dict(
                type="ADE20KDataset",
                data_root=data,
                data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
            ),
        ),
        pipeline=[
            dict(type=ReadImage),
            dict(type=ReadPixelLabels),
            dict(type="RandomResize", scale=scale, ratio_range=(0.5, 2.0), keep_ratio=True),
            dict(type="RandomCrop", crop_size=crop, cat_max_ratio=0.75),
            dict(type="RandomFlip", prob=0.5),
            dict(type="PhotoMetricDistortion"),
            dict(type="PackSegInputs"),
        ],
    ),
    sampler=dict(type=ResumableSampler),
    batch_size=2,
    num_workers=4,
    collate_fn=collate_images,
)
test_dataset = dict(
    type=MMData,
    task="segmentation",
    source=dict(
        type=ToolboxData,
        task="segmentation",
        dataset=dict(
            type="ADE20KDataset",
            data_root=data,
            data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
            test_mode=True,
        ),
    ),
    pipeline=[
        dict(type=ReadImage),
        dict(type="Resize", scale=scale, keep_ratio=True),
        dict(type="ResizeToMultiple", size_divisor=32),
        dict(type="PackSegInputs"),
    ],
)
optim_wrapper = dict(
    type=PrecisionOptimWrapper,
    optimizer=dict(type=AdamW, lr=6e-5, betas=(0.9, 0.999), weight_decay=0.05),
    constructor=LayerDecayOptimizerConstructor,
    # released=None takes the same decay without the release's oversights (engine/layer_decay.py)
    paramwise_cfg=dict(prefix="net.backbone.", released="segmentation", layer_decay_rate=1.0),
)
param_scheduler = [
    dict(type=LinearLR, start_factor=1e-6, begin=0, end=1500),
    dict(type=PolyLR, eta_min=0.0, power=1.0, begin=0, end=max_iters),
]
train_cfg = dict(max_iters=max_iters)
checkpoint = dict(interval=4000, keep=2)
