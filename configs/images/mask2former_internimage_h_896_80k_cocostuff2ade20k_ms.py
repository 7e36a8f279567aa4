"""Mask2Former with InternImage-H on ADE20K, tested at several scales and mirrored. Published: mIoU 62.9."""

from mmengine.config import read_base

with read_base():
    from .mask2former_internimage_h_896_80k_cocostuff2ade20k_ss import *

width, height = 3584, 896
ratios = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
views = [
    [dict(type="Resize", scale=(int(width * ratio), int(height * ratio)), keep_ratio=True) for ratio in ratios],
    [dict(type="ResizeToMultiple", size_divisor=32)],
    [
        dict(type="RandomFlip", prob=0.0, direction="horizontal"),
        dict(type="RandomFlip", prob=1.0, direction="horizontal"),
    ],
    [dict(type="PackSegInputs")],
]
test_dataset.pipeline = [test_dataset.pipeline[0], dict(type="TestTimeAug", transforms=views)]
model.tta = dict(type="SegTTAModel")
