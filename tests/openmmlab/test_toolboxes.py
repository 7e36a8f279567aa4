"""mmdet's and mmsegmentation's own Runner, data sets and metrics train InternImage under their heads."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from .tiny_pictures import CLASSES, INTERNIMAGE, SIZE_PX, run, write_coco, write_segmentation

RUNTIME = """
custom_imports = dict(imports=["drivestack.compat.openmmlab"], allow_failed_imports=False)
train_cfg = dict(type="IterBasedTrainLoop", max_iters={iterations}, val_interval={iterations})
val_cfg = dict(type="ValLoop")
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr={lr}), clip_grad=dict(max_norm=1.0))
param_scheduler = []
randomness = dict(seed=0)
default_hooks = dict(logger=dict(type="LoggerHook", interval=1))
train_dataloader = dict(batch_size=2, num_workers=0, sampler=dict(type="InfiniteSampler"), dataset=dict(**data,
    pipeline=loading + [dict(type="RandomFlip", prob=0.5), packing]))
val_dataloader = dict(batch_size=1, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(**data, test_mode=True, pipeline=loading + [packing]))
"""
DETECTION = """
data = dict(type="CocoDataset", data_root="{data}", ann_file="instances.json", data_prefix=dict(img="images"),
    metainfo=dict(classes={classes}))
loading = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", with_bbox=True, with_mask={masks}),
    dict(type="Resize", scale={size}, keep_ratio=True)]
packing = dict(type="PackDetInputs")
val_evaluator = dict(type="CocoMetric", ann_file="{data}/instances.json", metric={metrics})
"""
SEGMENTATION = """
data = dict(type="BaseSegDataset", data_root="{data}", data_prefix=dict(img_path="images", seg_map_path="labels"),
    img_suffix=".png", seg_map_suffix=".png", metainfo=dict(classes={classes}, palette={palette}))
loading = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"),
    dict(type="Resize", scale={size}, keep_ratio=True)]
packing = dict(type="PackSegInputs")
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
"""
MASK_RCNN = """
_base_ = ["mmdet::_base_/models/mask-rcnn_r50_fpn.py", "mmdet::_base_/default_runtime.py"]
model = dict(
    backbone={backbone},
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=32),
    rpn_head=dict(in_channels=32, feat_channels=32, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32), mask_roi_extractor=dict(out_channels=32),
        bbox_head=dict(in_channels=32, fc_out_channels=64, num_classes=2),
        mask_head=dict(num_convs=1, in_channels=32, conv_out_channels=32, num_classes=2)),
    test_cfg=dict(rcnn=dict(score_thr=0.0)))
"""
DINO = """
_base_ = ["mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py"]
model = dict(
    num_queries=20, backbone={backbone}, neck=dict(in_channels=[32, 64, 128]),
    encoder=dict(num_layers=1, layer_cfg=dict(ffn_cfg=dict(feedforward_channels=64))),
    decoder=dict(num_layers=2, layer_cfg=dict(ffn_cfg=dict(feedforward_channels=64))),
    bbox_head=dict(num_classes=2), dn_cfg=dict(group_cfg=dict(num_dn_queries=4)), test_cfg=dict(max_per_img=20))
"""
UPERNET = """
_base_ = ["mmseg::_base_/models/upernet_r50.py", "mmseg::_base_/default_runtime.py"]
norm_cfg = dict(type="BN")
model = dict(
    pretrained=None, data_preprocessor=dict(size_divisor=32), backbone={backbone},
    decode_head=dict(in_channels=[16, 32, 64, 128], channels=16, num_classes=3, norm_cfg=norm_cfg),
    auxiliary_head=dict(in_channels=64, channels=16, num_classes=3, norm_cfg=norm_cfg))
"""
MASK2FORMER = """
_base_ = ["mmseg::mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py"]
model = dict(
    data_preprocessor=dict(size={crop}), backbone={backbone},
    decode_head=dict(
        in_channels=[16, 32, 64, 128], feat_channels=32, out_channels=32, num_classes=3, num_queries=8,
        loss_cls=dict(class_weight=[1.0, 1.0, 1.0, 0.1]),
        pixel_decoder=dict(
            encoder=dict(num_layers=1, layer_cfg=dict(
                self_attn_cfg=dict(embed_dims=32), ffn_cfg=dict(embed_dims=32, feedforward_channels=32))),
            positional_encoding=dict(num_feats=16)),
        positional_encoding=dict(num_feats=16),
        transformer_decoder=dict(num_layers=2, layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=32), cross_attn_cfg=dict(embed_dims=32),
            ffn_cfg=dict(embed_dims=32, feedforward_channels=32))),
        train_cfg=dict(num_points=256)))
"""
REPLACED = r"(train|val)_(dataloader|evaluator|cfg) = dict\(|optim_wrapper = dict\("


def config(model: str, data: str, iterations: int, lr: float = 1e-3, *, whole: bool = False) -> str:
    """whole: ``model`` derives from a config that has data and an optimizer of its own."""
    rest = data + RUNTIME.format(iterations=iterations, lr=lr)
    return model + (re.sub(REPLACED, lambda found: found[0] + "_delete_=True, ", rest) if whole else rest)


@pytest.fixture(scope="module")
def coco(openmmlab: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coco") / "set"
    write_coco(folder, 6)
    return folder


def detection(folder: Path, masks: bool) -> str:
    metrics = ["bbox", "segm"] if masks else ["bbox"]
    return DETECTION.format(data=folder, classes=list(CLASSES), masks=masks, size=SIZE_PX, metrics=metrics)


@pytest.fixture(scope="module")
def segmentation(openmmlab: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("segmentation") / "set"
    write_segmentation(folder, 6)
    palette = [[0, 0, 0], *map(list, CLASSES.values())]
    return SEGMENTATION.format(data=folder, classes=["road", *CLASSES], palette=palette, size=SIZE_PX)


def backbone(levels: list[int]) -> str:
    return INTERNIMAGE.format(out_indices=levels)


def test_mask_rcnn(coco: Path, tmp_path: Path) -> None:
    text = config(MASK_RCNN.format(backbone=backbone([0, 1, 2, 3])), detection(coco, True), 6)
    runner, losses, scores = run(tmp_path / "run", text)
    assert type(runner.model.backbone).__name__ == "ReleasedInternImage"
    assert runner.model.backbone.levels[0].activation_checkpointing
    assert np.isfinite(losses).all() and np.mean(losses[-2:]) < np.mean(losses[:2])
    assert {"val/coco/bbox_mAP_50", "val/coco/segm_mAP_50"} <= scores.keys()


def test_dino(coco: Path, tmp_path: Path) -> None:
    text = config(DINO.format(backbone=backbone([1, 2, 3])), detection(coco, False), 6, whole=True)
    _, losses, scores = run(tmp_path / "run", text)
    assert np.isfinite(losses).all() and np.mean(losses[-2:]) < np.mean(losses[:2])
    assert "val/coco/bbox_mAP" in scores


def test_upernet(segmentation: str, tmp_path: Path) -> None:
    """With the layer-wise learning rates of InternImage, by our constructor of optimizers."""
    text = config(UPERNET.format(backbone=backbone([0, 1, 2, 3])), segmentation, 6)
    text += """
custom_imports = dict(imports=["drivestack.compat.openmmlab", "drivestack.engine.layer_decay"])
optim_wrapper.update(constructor="drivestack.LayerDecayOptimizerConstructor",
    paramwise_cfg=dict(prefix="backbone.", layer_decay_rate=0.5))
"""
    runner, losses, scores = run(tmp_path / "run", text)
    rates = {group["lr"] for group in runner.optim_wrapper.param_groups}
    assert rates == {1e-3 * 0.5**i for i in range(6)}  # head, four blocks, stem
    assert np.isfinite(losses).all() and np.mean(losses[-2:]) < np.mean(losses[:2])
    assert 0 < scores["val/mIoU"] < 100


def test_mask2former(segmentation: str, tmp_path: Path) -> None:
    model = MASK2FORMER.format(backbone=backbone([0, 1, 2, 3]), crop=SIZE_PX[::-1])
    _, losses, scores = run(tmp_path / "run", config(model, segmentation, 6, whole=True))
    assert np.isfinite(losses).all() and np.mean(losses[-2:]) < np.mean(losses[:2])
    assert 0 < scores["val/mIoU"] < 100
