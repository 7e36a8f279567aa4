"""Every shipped config: its model has the released keys, and takes one training step at toy size."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from drivestack.core.batch import Batch
from drivestack.core.frames import Frame
from drivestack.core.labels import MonoTargets, OccupancyTargets
from drivestack.core.registries import OPTIM_WRAPPER_CONSTRUCTORS
from drivestack.engine.config import build_model, load_config, shipped_configs

NAMES = [name for name, path in shipped_configs().items() if path.parent.name != "images"]  # those: test_image_configs
# (parameters, trainable parameters) of the released models
RELEASED = {
    "bevformerv2_r50_t1_base": (56_198_170, 56_198_160),
    "bevformerv2_r50_t1": (60_806_170, 60_806_160),
    "bevformerv2_r50_t2": (75_099_930, 75_099_920),
    "bevformerv2_r50_t8": (91_616_026, 91_616_016),
}
# A step needs memory for gradients and time; the 48-epoch configs differ from their base in iterations only.
# Lane and occupancy baselines have heads of their own: tests/{lane_topology/test_models,occupancy/test_model}.py.
APART = ("openlanev2", "bevformer_")
STEPPED = [name for name in NAMES if not name.endswith("48ep") and "_xl_" not in name and not name.startswith(APART)]
HEIGHT_PX, WIDTH_PX = 64, 160


@pytest.mark.parametrize("name", NAMES)
def test_model_is_built_and_a_release_has_its_published_keys(name: str, reference_dir: Path) -> None:
    config = load_config(name)
    with torch.device("meta"):
        model = build_model(config)
    constructor = OPTIM_WRAPPER_CONSTRUCTORS.get("LayerDecayOptimizerConstructor")
    if "constructor" in config.optim_wrapper:
        assert constructor(dict(config.optim_wrapper), config.optim_wrapper.paramwise_cfg).policies(model)
    release = name.rsplit("_", 1)[0]
    if release not in RELEASED:
        return
    text = gzip.decompress((reference_dir / "bev" / "keys" / f"{release}.txt.gz").read_bytes()).decode()
    published = dict(line.split() for line in text.splitlines())
    actual = {key: "x".join(map(str, value.shape)) or "-" for key, value in model.state_dict().items()}
    assert actual == published
    parameters = list(model.parameters())
    assert sum(p.numel() for p in parameters) == RELEASED[release][0]
    assert sum(p.numel() for p in parameters if p.requires_grad) == RELEASED[release][1]


@pytest.mark.parametrize("name", STEPPED)
def test_one_training_step_reaches_every_parameter(name: str) -> None:
    """DDP relies on it: find_unused_parameters is False. One prediction follows."""
    torch.manual_seed(0)
    config = load_config(name)
    if "bev_map" in config.model:
        config.model.bev_map.bev_size = (12, 12)
    if "boxes" in config.model:
        config.model.boxes.head.num_query = 20
    config.model.img_backbone.pop("activation_checkpointing", None)
    if "occupancy_head" in config.model:
        config.model.occupancy_head.update(coarse_cells=20, columns_per_sample=200)
    model = build_model(config).train()
    label = min(3, model.boxes.head.num_classes - 1) if model.boxes is not None else 3
    batch = toy_batch(model.frame_offsets, num_cameras=2, label=label)
    losses = model(batch, mode="loss")
    assert all(torch.isfinite(value) for value in losses.values()), losses
    sum(value for name, value in losses.items() if "loss" in name).backward()
    untouched = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not untouched or config.find_unused_parameters, untouched
    answers, _ = model.eval().predict(batch)
    assert [found.token for found in answers] == ["sample"]
    assert (answers[0].boxes is not None) == ("boxes" in model.tasks)


def toy_batch(frame_offsets: tuple[int, ...], num_cameras: int, label: int = 3) -> Batch:
    """One clip of noise; cameras at the origin look forward (LIDAR y), then round the clock; an object before each."""
    times = len(frame_offsets)
    intrinsics = torch.tensor([[WIDTH_PX / 2, 0, WIDTH_PX / 2], [0, WIDTH_PX / 2, HEIGHT_PX / 2], [0, 0, 1]])
    bev_from_camera = torch.zeros(num_cameras, 4, 4)
    for i in range(num_cameras):
        yaw = 2 * math.pi * i / num_cameras
        forward = torch.tensor([math.sin(yaw), math.cos(yaw), 0.0])
        right = torch.tensor([math.cos(yaw), -math.sin(yaw), 0.0])
        bev_from_camera[i, :3, :3] = torch.stack([right, torch.tensor([0.0, 0.0, -1.0]), forward], 1)
        bev_from_camera[i, 3, 3] = 1
    viewpad = torch.eye(4)
    viewpad[:3, :3] = intrinsics
    image_from_bev = viewpad @ torch.linalg.inv(bev_from_camera)  # [N, 4, 4]
    centres = bev_from_camera[:, :3, 2] * 10
    boxes = torch.cat([centres, torch.tensor([4.0, 2.0, 1.5, 0.3, 1.0, 0.0]).expand(num_cameras, 6)], 1)
    mono = MonoTargets(
        boxes_xyxy_px=torch.tensor([[60.0, 20.0, 100.0, 44.0]]),
        labels=torch.tensor([label]),
        boxes3d_camera=torch.tensor([[1.0, 0, 0, 0, 0, 0, 10, 2, 4, 1.5]]),
        attributes=torch.tensor([0]),
        speed=torch.tensor([1.0]),
    )
    voxels = torch.full((200, 200, 16), 17, dtype=torch.uint8)
    voxels[:, :, 2] = 11  # a road
    seen = torch.ones_like(voxels, dtype=torch.bool)
    identity = np.eye(4)
    frame = Frame("sample", "scene", "scene", 0, (), ego_from_bev=identity, global_from_ego=identity)
    return Batch(
        images=torch.randn(1, times, num_cameras, 3, HEIGHT_PX, WIDTH_PX),
        frame_offsets=frame_offsets,
        frame_valid=torch.ones(1, times, dtype=torch.bool),
        image_from_bev=image_from_bev.expand(1, times, num_cameras, 4, 4),
        image_size_px=torch.tensor([HEIGHT_PX, WIDTH_PX]).expand(1, times, num_cameras, 2),
        image_flipped=torch.zeros(1, dtype=torch.bool),
        bda=torch.eye(3)[None],
        intrinsics=intrinsics.expand(1, num_cameras, 3, 3),
        bev_from_camera=bev_from_camera[None],
        ego_from_bev=torch.eye(4)[None],
        gt_boxes=[boxes],
        gt_labels=[torch.full((num_cameras,), label)],
        mono=[[mono] * num_cameras],
        occupancy=[OccupancyTargets(voxels, seen, seen)],
        frames=[frame],
    )
