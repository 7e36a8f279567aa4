"""A small detector and a small rig that drives and turns, for tests of whole models."""

from dataclasses import replace

import numpy as np
import torch

from drivestack.backbone.fpn import FPN
from drivestack.backbone.internimage.model import InternImage
from drivestack.bev.bevformer_v2 import BEVFormerV2
from drivestack.bev.boxes.head import BoxHead
from drivestack.bev.boxes.proposals import BevProposals, HybridQueries
from drivestack.bev.boxes.task import BoxTask
from drivestack.bev.map.bev_map import BevMap
from drivestack.core.batch import LABELS, Batch
from drivestack.core.frames import CameraView, Frame, past_bev_from_current
from drivestack.data_tools.clips.can_bus import can_bus_of_pose
from drivestack.geometry import CameraModel, invert_pose, pose, rotation_z

RANGE = (-20.0, -20.0, -5.0, 20.0, 20.0, 3.0)
WIDTH, HEIGHT = 64, 32
CAMERA_FROM_BODY = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # BEV axes: y forward, z up


def build(offsets=(0,), num_cameras=3, proposals=True, seed=0, dropout=0.1, objects=None, **more):
    torch.manual_seed(seed)
    channels = 32
    return BEVFormerV2(
        img_backbone=InternImage(channels=16, depths=(1, 1, 1, 1), groups=(1, 2, 4, 8), out_indices=(1, 2, 3)),
        img_neck=FPN(in_channels=(32, 64, 128), out_channels=channels, num_outs=3),
        bev_map=BevMap(
            pc_range=RANGE,
            bev_size=(8, 10),
            embed_dims=channels,
            num_heads=4,
            num_cams=num_cameras,
            num_levels=3,
            num_layers=1,
            ffn_dims=64,
            dropout=dropout,
            frames=offsets,
            fusion_channels=channels,
        ),
        boxes=BoxTask(
            head=BoxHead(
                num_query=6,
                num_groups=2,
                embed_dims=channels,
                num_layers=2,
                num_heads=4,
                ffn_dims=64,
                dropout=dropout,
                pc_range=RANGE,
            ),
            bev_proposals=BevProposals(channels, 10, RANGE, num_proposals=5) if proposals else None,
            hybrid_queries=HybridQueries(channels, 10) if proposals else None,
            memory=objects,
            embed_dims=channels,
            pc_range=RANGE,
        ),
        **more,
    )


def scene(num_frames, num_cameras=3):
    """Frames of a car that drives and turns, with images."""
    rng = np.random.default_rng(0)
    frames, images = [], []
    camera = CameraModel(np.array([[40.0, 0, 32], [0, 40, 16], [0, 0, 1]]), WIDTH, HEIGHT)
    for i in range(num_frames):
        global_from_ego = pose(rotation_z(0.1 * i), [2.0 * i, 0.3 * i, 0])
        ego_from_bev = pose(rotation_z(-np.pi / 2), [0.9, 0, 1.8])
        views = []
        for n in range(num_cameras):
            camera_from_bev = np.eye(4)
            camera_from_bev[:3, :3] = CAMERA_FROM_BODY @ rotation_z(2 * np.pi * n / num_cameras)
            views.append(CameraView(f"C{n}", camera, ego_from_bev @ invert_pose(camera_from_bev), global_from_ego, i))
        frames.append(
            Frame(f"f{i}", "s", "scene", i, tuple(views), global_from_ego, ego_from_bev,
                  prev_token=f"f{i - 1}" if i else "", next_token=f"f{i + 1}")
        )  # fmt: skip
        images.append(torch.from_numpy(rng.normal(size=(num_cameras, 3, HEIGHT, WIDTH)).astype(np.float32)))
    return frames, images


def clip(frames, images, index, offsets):
    """The batch of one clip, as the data pipeline makes it."""
    current = frames[index]
    num_cameras = len(current.cameras)
    pictures, matrices, valid, poses, signals = [], [], [], [], []
    for offset in offsets:
        there = index + offset >= 0
        valid.append(there)
        frame = frames[index + offset] if there else current
        motion = past_bev_from_current(current, frame)
        pictures.append(images[index + offset] if there else torch.zeros_like(images[index]))
        matrices.append(np.stack([frame.image_from_bev(v) @ motion for v in frame.cameras]))
        poses.append(frame.global_from_ego if there else np.eye(4))
        signals.append(can_bus_of_pose(frame.global_from_ego) if there else np.zeros(18))
    sizes = torch.tensor([HEIGHT, WIDTH]).expand(1, len(offsets), num_cameras, 2)
    return Batch(
        images=torch.stack(pictures)[None],
        frame_offsets=tuple(offsets),
        frame_valid=torch.tensor([valid]),
        image_from_bev=torch.from_numpy(np.stack(matrices)).float()[None],
        image_size_px=sizes,
        image_flipped=torch.zeros(1, dtype=torch.bool),
        bda=torch.eye(3)[None],
        intrinsics=torch.from_numpy(np.stack([v.camera.intrinsics for v in current.cameras])).float()[None],
        bev_from_camera=torch.from_numpy(np.stack([current.bev_from_camera(v) for v in current.cameras])).float()[None],
        ego_from_bev=torch.from_numpy(current.ego_from_bev).float()[None],
        global_from_ego=torch.from_numpy(np.stack(poses))[None],
        can_bus=torch.from_numpy(np.stack(signals))[None],
        gt_boxes=[torch.tensor([[5.0, 6, -1, 4, 2, 1.5, 0.3, 1, 0], [-8, 2, -1, 1, 1, 1.7, 0, 0, 0]])],
        gt_labels=[torch.tensor([3, 6])],
        frames=[current],
    )


def join(a, b):
    """Two batches of one as a batch of two."""
    tensors = ("images", "frame_valid", "image_from_bev", "image_size_px", "image_flipped", "bda", "intrinsics",
               "bev_from_camera", "ego_from_bev", "global_from_ego", "can_bus")  # fmt: skip
    cat = {name: torch.cat([getattr(a, name), getattr(b, name)]) for name in tensors}
    lists = {name: getattr(a, name) + getattr(b, name) for name in (*LABELS, "frames", "camera_names")}
    return replace(a, **cat, **lists)
