"""A rig, a range and a class list that are not nuScenes': images on disk to losses, streamed boxes and a results file.

Five cameras of two image sizes, listed in another order in every frame; an off-centre, rectangular BEV range; three
classes of a works yard; one past frame.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from drivestack.backbone.fpn import FPN
from drivestack.backbone.internimage.model import InternImage
from drivestack.bev.bevformer_v2 import BEVFormerV2
from drivestack.bev.boxes.head import BoxHead
from drivestack.bev.boxes.proposals import BevProposals, HybridQueries, PerspectiveProposals
from drivestack.bev.boxes.task import BoxTask
from drivestack.bev.evaluation.nuscenes_rules import check_submission
from drivestack.bev.evaluation.nuscenes_submission import NuScenesSubmission, read_detections
from drivestack.bev.map.bev_map import BevMap
from drivestack.bev.perspective.head import NuscenesDD3D
from drivestack.core.frames import Annotations, CameraView, Frame
from drivestack.data_tools.clips.clip_dataset import ClipDataset
from drivestack.data_tools.clips.collate import collate_clips
from drivestack.engine.predict import predict
from drivestack.geometry import CameraModel, invert_pose, pose, rotation_z

CLASSES = ("forklift", "worker", "pallet")
CLASS_RANGE_M = {"forklift": 30.0, "worker": 20.0, "pallet": 20.0}
PC_RANGE = (-12.0, -20.0, -3.0, 20.0, 28.0, 3.0)
BEV_SIZE = (12, 8)  # cells of 4 m along y and x
OFFSETS = (-1, 0)
SIZES_PX = {"left": (64, 48), "front": (96, 54), "rear": (64, 48), "right": (64, 48), "roof": (96, 54)}
ORDER = ("rear", "roof", "left", "front", "right")  # the model's
EGO_FROM_LIDAR = pose(rotation_z(-np.pi / 2), [0.4, 0.0, 2.1])
LIDAR_FROM_FORWARD_CAMERA = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # looks along +y of the BEV frame
IMAGE = dict(crop=(0.0, 0.0, 1.0, 1.0), train_heights_px=(32,), test_height_px=32)
NUM_FRAMES = 3


def camera_views(folder, index, global_from_ego, order):
    views = {}
    for n, (name, (width, height)) in enumerate(SIZES_PX.items()):
        turn = rotation_z(2 * np.pi * n / len(SIZES_PX)) @ LIDAR_FROM_FORWARD_CAMERA
        bev_from_camera = pose(turn, [0.1 * n, 0.2, -0.3])
        intrinsics = np.array([[0.7 * width, 0, width / 2], [0, 0.7 * width, height / 2], [0, 0, 1]])
        views[name] = CameraView(
            name=name,
            camera=CameraModel(intrinsics, width, height),
            ego_from_camera=EGO_FROM_LIDAR @ bev_from_camera,
            global_from_ego=global_from_ego,
            timestamp_us=500_000 * index,
            image_path=str(folder / f"{index}_{name}.png"),
        )
    return tuple(views[name] for name in order)


def annotations():
    """A forklift that drives, a worker of unknown speed, a pallet; and a class that nobody asked for."""
    n = 4
    return Annotations(
        names=["forklift", "worker", "pallet", "crane"],
        centre_global_m=np.array([[9.0, 3, 1], [4, -5, 0.9], [-3, 6, 0.2], [5, 5, 4]]),
        rotation_global=rotation_z(np.array([0.3, 0.0, -1.2, 0.0])),
        size_lwh_m=np.array([[3.0, 1.4, 2.2], [0.5, 0.6, 1.8], [1.2, 0.8, 0.2], [3, 3, 8]]),
        velocity_global_mps=np.array([[1.0, 0.2], [np.nan, np.nan], [0, 0], [0, 0]]),
        attributes=["loaded", "", "", ""],
        num_lidar_points=np.full(n, 20),
        num_radar_points=np.zeros(n, np.int64),
        tokens=[""] * n,
        instance_tokens=[""] * n,
    )


@pytest.fixture
def frames(tmp_path):
    rng = np.random.default_rng(0)
    out = []
    for i in range(NUM_FRAMES):
        global_from_ego = pose(rotation_z(0.1 * i), [1.5 * i, 0.2 * i, 0.0])
        views = camera_views(tmp_path, i, global_from_ego, rng.permutation(list(SIZES_PX)))
        for view in views:
            size = (view.camera.height_px, view.camera.width_px, 3)
            Image.fromarray(rng.integers(0, 255, size, dtype=np.uint8)).save(view.image_path)
        out.append(
            Frame(
                token=f"yard-{i}",
                scene_token="yard",
                scene_name="yard",
                timestamp_us=500_000 * i,
                cameras=views,
                ego_from_bev=EGO_FROM_LIDAR,
                global_from_ego=global_from_ego,
                annotations=annotations(),
                prev_token=f"yard-{i - 1}" if i else "",
                next_token=f"yard-{i + 1}" if i + 1 < NUM_FRAMES else "",
            )
        )
    return out


def dataset(frames, **settings):
    arguments = dict(classes=CLASSES, frame_offsets=OFFSETS, camera_names=ORDER, image=IMAGE, pc_range=PC_RANGE)
    return ClipDataset(frames=frames, **{**arguments, **settings})


def training_set(frames):
    """With every augmentation, so that each meets the rectangular range and the mixed sizes."""
    image = {**IMAGE, "flip": True}
    labels = dict(mono=True, keep_unknown_velocity=True)
    return dataset(frames, image=image, photometric={}, bda={}, training=True, seed=3, **labels)


def build():
    torch.manual_seed(0)
    channels, classes = 32, len(CLASSES)
    return BEVFormerV2(
        img_backbone=InternImage(channels=16, depths=(1, 1, 1, 1), groups=(1, 2, 4, 8), out_indices=(1, 2, 3)),
        img_neck=FPN(in_channels=(32, 64, 128), out_channels=channels, num_outs=3),
        bev_map=BevMap(
            pc_range=PC_RANGE,
            bev_size=BEV_SIZE,
            embed_dims=channels,
            num_heads=4,
            num_cams=len(ORDER),
            num_levels=3,
            num_layers=1,
            ffn_dims=64,
            frames=OFFSETS,
            fusion_channels=channels,
        ),
        boxes=dict(
            type=BoxTask,
            head=dict(
                type=BoxHead, num_classes=classes, num_query=10, num_groups=2, num_layers=2, num_heads=4, ffn_dims=64
            ),
            perspective=dict(
                type=NuscenesDD3D,
                num_classes=classes,
                num_convs=1,
                strides=(8, 16, 32),
                canonical_sizes_wlh=((1.4, 3.0, 2.2), (0.6, 0.5, 1.8), (0.8, 1.2, 0.2)),
                score_threshold=0.0,
                max_per_image=5,
            ),
            perspective_proposals=dict(type=PerspectiveProposals, num_proposals=6),
            bev_proposals=dict(type=BevProposals, num_proposals=6),
            hybrid_queries=dict(type=HybridQueries),
            num_perspective_levels=3,
        ),
    )


def train_once(frames):
    """Losses and gradient norm of one step on a batch of two clips; the first has no past."""
    model, data = build().train(), training_set(frames)
    batch = collate_clips([data[0], data[2]])
    losses = model.loss(batch)
    sum(losses.values()).backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    return batch, {name: value.item() for name, value in losses.items()}, norm.item(), model


def test_a_training_step(frames):
    batch, losses, norm, model = train_once(frames)
    assert batch.images.shape == (2, 2, 5, 3, 32, 64)
    assert batch.frame_valid.tolist() == [[False, True], [True, True]]
    widths = [SIZES_PX[name][0] * 32 // SIZES_PX[name][1] for name in ORDER]
    assert batch.image_size_px[1].tolist() == [[[32, width] for width in widths]] * 2
    assert [boxes.shape[1] for boxes in batch.gt_boxes] == [9, 9]
    assert {int(label) for labels in batch.gt_labels for label in labels} <= {0, 1, 2}
    assert any(boxes.isnan().any() for boxes in batch.gt_boxes)  # the worker's speed
    assert {"loss_cls", "loss_bbox", "loss_dense_cls", "loss_box3d_depth_mono"} <= losses.keys()
    assert np.isfinite([*losses.values(), norm]).all() and norm > 0
    still = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert still == []

    again = train_once(frames)
    assert torch.equal(again[0].images, batch.images) and again[1] == losses and again[2] == norm


def test_objects_project_into_the_same_camera_whatever_the_order(frames):
    """The forklift's centre lands in each image where its own camera has it, in this frame and in the one before."""
    batch = collate_clips([dataset(frames)[1]])
    seen = 0
    for t, frame in enumerate(frames[:2]):
        for n, name in enumerate(ORDER):
            (view,) = (v for v in frame.cameras if v.name == name)
            height, width = batch.image_size_px[0, t, n].tolist()
            centre_camera = (invert_pose(view.global_from_camera) @ [*annotations().centre_global_m[0], 1])[:3]
            uv, depth_m = view.camera.resized(width, height).project(centre_camera)
            box = batch.gt_boxes[0][batch.gt_labels[0] == 0][0]
            projected = batch.image_from_bev[0, t, n] @ torch.cat([box[:3], torch.ones(1)])
            assert projected[2].item() == pytest.approx(depth_m, abs=1e-3)
            if depth_m > 0:
                np.testing.assert_allclose((projected[:2] / projected[2]).numpy(), uv, atol=0.05)
                seen += 0 < uv[0] < width and 0 < uv[1] < height
    assert seen >= 2


def test_frames_that_nothing_links_are_warned_of(frames, caplog):
    dataset(frames)
    assert caplog.text == ""
    dataset([replace(frame, prev_token="", next_token="") for frame in frames])
    assert "all history will be missing" in caplog.text


def boxes_of(model, data, **settings):
    """Detections by sample token."""
    return {token: answer.boxes for token, answer in predict(model, data, progress=False, **settings).answers.items()}


def test_streaming_prediction_to_a_results_file(frames, tmp_path):
    model = build().eval()
    streamed = boxes_of(model, dataset(frames, frame_offsets=(0,)))
    whole = boxes_of(model, dataset(frames), batch_size=2)
    unlabelled = [replace(frame, annotations=None) for frame in frames]  # as in v1.0-test
    blind = boxes_of(model, dataset(unlabelled, mono=True))
    assert list(streamed) == [frame.token for frame in frames]
    for token, found in streamed.items():
        assert len(found.scores) > 0 and np.isfinite(found.boxes).all() and set(found.labels) <= {0, 1, 2}
        np.testing.assert_allclose(found.scores, whole[token].scores, atol=2e-5)
        # boxes of nearly equal scores may change places
        like = np.isclose(found.scores[:, None], whole[token].scores, rtol=0, atol=2e-5)
        like &= np.isclose(found.boxes[:, None], whole[token].boxes, rtol=0, atol=2e-3).all(-1)
        assert like.any(0).all() and like.any(1).all()
        np.testing.assert_allclose(found.boxes, blind[token].boxes, atol=2e-3)

    path = tmp_path / "results.json"
    NuScenesSubmission.from_detections(streamed.values(), frames, CLASSES, CLASS_RANGE_M).write(path)
    assert check_submission(path, list(streamed), own_classes=CLASSES) == []
    assert "detection_name" in str(check_submission(path)[0])  # the benchmark does not know forklifts
    results = json.loads(path.read_text())["results"]
    read = read_detections(path, frames, CLASSES)
    for token, found in streamed.items():
        assert all(box["detection_name"] in CLASSES and box["attribute_name"] == "" for box in results[token])
        # what was written is what was found, within the classes' ranges
        kept = {round(float(score), 5) for score in read[token].scores}
        assert 0 < len(results[token]) <= len(found.scores)
        assert kept <= {round(float(score), 5) for score in found.scores}
