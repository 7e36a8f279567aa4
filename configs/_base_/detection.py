"""Detectors on COCO as InternImage's release trains and scores them (arXiv 2211.05778, detection/configs).

Rates and iterations are for 16 images a step: 8 processes (torchrun) of 2. Data: `--set data=DIR` with DIR/annotations,
DIR/train2017 and DIR/val2017 as COCO is unpacked.
"""

from mmengine.config import read_base
from mmengine.optim import LinearLR, MultiStepLR
from torch.optim import AdamW

from drivestack.backbone.pretrain.detection.coco import CocoImages
from drivestack.backbone.pretrain.mm_data import MMData, collate_images
from drivestack.backbone.pretrain.reading import ReadImage
from drivestack.data_tools.clips.sampler import ResumableSampler
from drivestack.engine.layer_decay import LayerDecayOptimizerConstructor
from drivestack.engine.optim import PrecisionOptimWrapper

with read_base():
    from .runtime import *

data = "data/coco"
epoch = 7330  # iterations: 117,266 images of train2017 with objects, 16 a step

read = [dict(type=ReadImage), dict(type="LoadAnnotations", with_bbox=True, with_mask=True)]
finish = [dict(type="RandomFlip", prob=0.5), dict(type="PackDetInputs")]
shorter_sides = dict(type="RandomChoiceResize", scales=[(side, 1333) for side in range(480, 801, 32)], keep_ratio=True)
# DETR's augmentation (arXiv 2005.12872): half of the images are enlarged parts.
detr_augmentation = dict(
    type="RandomChoice",
    transforms=[
        [shorter_sides],
        [
            dict(type="RandomChoiceResize", scales=[(400, 1333), (500, 1333), (600, 1333)], keep_ratio=True),
            dict(type="RandomCrop", crop_type="absolute_range", crop_size=(384, 600), allow_negative_crop=True),
            shorter_sides,
        ],
    ],
)
train_dataloader = dict(
    dataset=dict(
        type=MMData,
        source=dict(
            type=CocoImages,
            annotations=f"{data}/annotations/instances_train2017.json",
            images=f"{data}/train2017",
            only_annotated=True,
            min_side_px=32,
        ),
        pipeline=[*read, dict(type="Resize", scale=(1333, 800), keep_ratio=True), *finish],
    ),
    sampler=dict(type=ResumableSampler),
    batch_size=2,
    num_workers=4,
    collate_fn=collate_images,
)
test_dataset = dict(
    type=MMData,
    source=dict(type=CocoImages, annotations=f"{data}/annotations/instances_val2017.json", images=f"{data}/val2017"),
    pipeline=[
        dict(type=ReadImage),
        dict(type="Resize", scale=(1333, 800), keep_ratio=True),
        dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
    ],
)
optim_wrapper = dict(
    type=PrecisionOptimWrapper,
    optimizer=dict(type=AdamW, lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor=LayerDecayOptimizerConstructor,
    # released=None takes the same decay without the release's oversights (engine/layer_decay.py)
    paramwise_cfg=dict(prefix="net.backbone.", released="detection", layer_decay_rate=1.0),
)
param_scheduler = [
    dict(type=LinearLR, start_factor=0.001, begin=0, end=500),
    dict(type=MultiStepLR, gamma=0.1, milestones=[8 * epoch, 11 * epoch]),
]
train_cfg = dict(max_iters=12 * epoch)
checkpoint = dict(interval=epoch, keep=2)
