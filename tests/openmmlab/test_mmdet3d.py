"""mmdet3d's monocular and multi-view data sets, FCOS3D and its nuScenes metric on synthetic streets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drivestack.bev.evaluation.nuscenes_metrics import evaluate_submission
from drivestack.compat.mmdet3d import CLASSES, write_infos
from drivestack.core.frames import Frame
from drivestack.core.pickles import load_pickle
from drivestack.data_tools.readers.nuscenes.reader import read_nuscenes
from drivestack.data_tools.synthetic import synthesize

from .tiny_pictures import INTERNIMAGE, run

SET = dict(version="v1.0-trainval", split="val")
FCOS3D = """
_base_ = ["mmdet3d::_base_/datasets/nus-mono3d.py", "mmdet3d::_base_/models/fcos3d.py",
    "mmdet3d::_base_/default_runtime.py"]
custom_imports = dict(imports=["drivestack.compat.openmmlab", "drivestack.compat.mmdet3d"])
model = dict(
    backbone={backbone}, neck=dict(in_channels=[16, 32, 64, 128], out_channels=32, num_outs=5),
    bbox_head=dict(in_channels=32, feat_channels=32, stacked_convs=1, cls_branch=(32,), dir_branch=(32,),
        attr_branch=(32,), reg_branch=((32,), (32,), (32,), (32,), ()),),
    test_cfg=dict(score_thr=0.0, nms_pre=50, max_per_img=20))
loading = [dict(type="LoadImageFromFileMono3D")]
packed = ["img", "gt_bboxes", "gt_bboxes_labels", "attr_labels", "gt_bboxes_3d", "gt_labels_3d", "centers_2d", "depths"]
train_pipeline = loading + [
    dict(type="LoadAnnotations3D", with_bbox=True, with_label=True, with_attr_label=True, with_bbox_3d=True,
        with_label_3d=True, with_bbox_depth=True),
    dict(type="mmdet.Resize", scale_factor=1.0), dict(type="RandomFlip3D", flip_ratio_bev_horizontal=0.5),
    dict(type="Pack3DDetInputs", keys=packed)]
test_pipeline = loading + [dict(type="mmdet.Resize", scale_factor=1.0), dict(type="Pack3DDetInputs", keys=["img"])]
one_process = dict(num_workers=0, persistent_workers=False)
infos = dict(data_root="{data}/", ann_file="infos.pkl")
train_dataloader = dict(**one_process, dataset=dict(**infos, pipeline=train_pipeline),
    sampler=dict(_delete_=True, type="InfiniteSampler"))
val_dataloader = dict(**one_process, dataset=dict(**infos, pipeline=test_pipeline))
val_evaluator = dict(_delete_=True, type="drivestack.NuScenesMetric", data_root="{data}/", ann_file="{data}/infos.pkl",
    jsonfile_prefix="{out}")
train_cfg = dict(type="IterBasedTrainLoop", max_iters=6, val_interval=6)
val_cfg = dict(type="ValLoop")
test_dataloader = test_evaluator = test_cfg = None
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3), clip_grad=dict(max_norm=10.0))
param_scheduler = []
randomness = dict(seed=0)
default_hooks = dict(logger=dict(type="LoggerHook", interval=1))
"""


@pytest.fixture(scope="module")
def street(openmmlab: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("street") / "set"
    synthesize(root, "val", 1, 2, image_width_px=320, labels=(), workers=1, progress=False)
    write_infos(read_nuscenes(root, **SET), root / "infos.pkl")
    return root


@pytest.fixture(scope="module")
def frames(street: Path) -> list[Frame]:
    return read_nuscenes(street, **SET)


def build_dataset(street: Path, **options: Any) -> Any:
    from mmdet3d.datasets import NuScenesDataset
    from mmdet3d.utils import register_all_modules

    register_all_modules(init_default_scope=True)
    prefix = {path.name: f"samples/{path.name}" for path in (street / "samples").iterdir()}
    modality = dict(use_camera=True, use_lidar=False)
    return NuScenesDataset(str(street), "infos.pkl", data_prefix=prefix, modality=modality, **options)


def test_camera_labels_are_those_of_mmdet3ds_converter(
    street: Path, frames: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmdet3d.datasets import convert_utils
    from nuscenes import NuScenes

    crop = convert_utils.post_process_coords  # for images of nuScenes' size, unless told
    size_px = frames[0].cameras[0].image_size_px
    monkeypatch.setattr(convert_utils, "post_process_coords", lambda corners: crop(corners, size_px))
    devkit = NuScenes("v1.0-trainval", str(street), verbose=False)
    count = 0
    for entry in load_pickle(street / "infos.pkl")["data_list"]:
        for name, image in entry["images"].items():
            theirs = convert_utils.get_nuscenes_2d_boxes(devkit, image["sample_data_token"], ["", "1", "2", "3", "4"])
            ours = entry["cam_instances"][name]
            count += len(ours)
            assert [list(found) for found in ours] and len(ours) == len(theirs)
            for a, b in zip(ours, theirs, strict=True):
                assert a.keys() == b.keys() and (a["bbox_label"], a["attr_label"]) == (b["bbox_label"], b["attr_label"])
                for key in ("bbox", "bbox_3d", "center_2d", "depth", "velocity"):
                    np.testing.assert_allclose(a[key], b[key], rtol=1e-5, atol=1e-5, equal_nan=True, err_msg=key)
    assert count > 20


def test_the_multi_view_data_set(street: Path, frames: list[Frame]) -> None:
    load = dict(type="LoadMultiViewImageFromFiles", to_float32=True, num_views=6)
    label = dict(type="LoadAnnotations3D", with_bbox_3d=True, with_label_3d=True)
    pack = dict(
        type="Pack3DDetInputs", keys=["img", "gt_bboxes_3d", "gt_labels_3d"], meta_keys=["lidar2cam", "cam2img"]
    )
    dataset = build_dataset(street, pipeline=[load, label, pack])
    for frame, sample in zip(frames, (dataset[i] for i in range(len(dataset))), strict=True):
        assert sample["inputs"]["img"].shape[:2] == (6, 3)
        objects = sample["data_samples"].gt_instances_3d
        seen = frame.annotations.num_lidar_points > 0
        np.testing.assert_allclose(objects.bboxes_3d.gravity_center, frame.bev_boxes()[seen, :3], atol=1e-4)
        np.testing.assert_allclose(objects.bboxes_3d.tensor[:, 3:7], frame.bev_boxes()[seen, 3:7], atol=1e-5)
        assert [CLASSES[i] for i in objects.labels_3d] == [
            name for name, known in zip(frame.annotations.names, seen) if known
        ]
        for view, intrinsics, camera_from_lidar in zip(
            frame.cameras, sample["data_samples"].cam2img, sample["data_samples"].lidar2cam, strict=True
        ):
            ours = frame.image_from_bev(view)[:3]
            np.testing.assert_allclose(np.array(intrinsics)[:3, :3] @ camera_from_lidar[:3], ours, rtol=1e-4, atol=1e-2)


def test_fcos3d_trains_and_its_scores_are_ours(
    street: Path, frames: list[Frame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = "mmdet3d.models.dense_heads.anchor_free_mono3d_head.bias_init_with_prob"
    monkeypatch.setattr(head, lambda prior: 0.0)  # scores start at a half: the metric drops those below 0.01
    backbone = INTERNIMAGE.format(out_indices=[0, 1, 2, 3])
    text = FCOS3D.format(backbone=backbone, data=street, out=tmp_path / "submission")
    runner, losses, scores = run(tmp_path / "run", text)
    assert runner.model.bbox_head.cls_convs[-1].conv.__class__.__name__ == "ModulatedDeformConv2dPack"
    assert np.isfinite(losses).all() and len(losses) == 6
    compare(scores, tmp_path / "submission", frames)


def compare(theirs: dict[str, float], folder: Path, frames: list[Frame]) -> dict[str, Any]:
    """Their scores and ours of the same file, which also keeps the rules of a submission."""
    path = folder / "pred_instances_3d" / "results_nusc.json"
    assert any(json.loads(path.read_text())["results"].values())
    ours = evaluate_submission(path, frames)
    found = {key.rsplit("/", 1)[1]: value for key, value in theirs.items() if "NDS" in key or "mAP" in key}
    assert found["NDS"] == pytest.approx(ours["nds"], abs=1e-6) and found["mAP"] == pytest.approx(ours["map"], abs=1e-6)
    return ours


def near(boxes: Any, seed: int) -> Any:
    """Boxes a little beside the labels, so that scores are neither 0 nor 1."""
    values = boxes.tensor.clone()
    values[:, :2] += torch.randn(values[:, :2].shape, generator=torch.Generator().manual_seed(seed)) * 0.3
    return type(boxes)(values, box_dim=9)


@pytest.mark.parametrize("view", ["LiDAR", "Camera"])
def test_the_metric_on_the_cpu_scores_as_we_do(street: Path, frames: list[Frame], tmp_path: Path, view: str) -> None:
    from mmdet3d.registry import METRICS

    load_type = "mv_image_based" if view == "Camera" else "frame_based"
    dataset = build_dataset(street, load_type=load_type, box_type_3d=view, test_mode=True, use_valid_flag=True)
    metric = METRICS.build(
        dict(
            type="drivestack.NuScenesMetric",
            data_root=str(street),
            ann_file=str(street / "infos.pkl"),
            jsonfile_prefix=str(tmp_path / "out"),
        )
    )
    metric.dataset_meta = dataset.metainfo
    for i in range(len(dataset)):
        info = dataset.get_data_info(i)
        labels = info["eval_ann_info"]
        count = len(labels["gt_labels_3d"])
        found = dict(
            bboxes_3d=near(labels["gt_bboxes_3d"], i),
            scores_3d=torch.linspace(0.9, 0.3, count),
            labels_3d=torch.from_numpy(labels["gt_labels_3d"]),
        )
        if view == "Camera":
            found["attr_labels"] = torch.from_numpy(labels["attr_labels"])
        metric.process({}, [dict(pred_instances_3d=found, pred_instances={}, sample_idx=info["sample_idx"])])
    ours = compare(metric.evaluate(len(dataset)), tmp_path / "out", frames)
    assert 0.4 < ours["nds"] < 1 and 0.3 < ours["map"] < 1


def test_the_metric_of_nothing(street: Path, tmp_path: Path) -> None:
    """nuscenes-devkit fails without a box, which an untrained model may well find none of."""
    from mmdet3d.registry import METRICS
    from mmdet3d.structures import LiDARInstance3DBoxes

    dataset = build_dataset(street, test_mode=True)
    options = dict(data_root=str(street), ann_file=str(street / "infos.pkl"), jsonfile_prefix=str(tmp_path))
    metric = METRICS.build(dict(type="drivestack.NuScenesMetric", **options))
    metric.dataset_meta = dataset.metainfo
    none = dict(
        bboxes_3d=LiDARInstance3DBoxes(torch.zeros(0, 9), box_dim=9),
        scores_3d=torch.zeros(0),
        labels_3d=torch.zeros(0, dtype=torch.long),
    )
    metric.process({}, [dict(pred_instances_3d=none, pred_instances={}, sample_idx=i) for i in range(len(dataset))])
    assert set(metric.evaluate(len(dataset)).values()) == {0.0}
