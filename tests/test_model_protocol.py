"""Every model, ours and the published ones, answers the one protocol: loss(Batch), predict(Batch, memory)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from drivestack.backbone import FPN, ResNet
from drivestack.bev.boxes.head import BoxHead
from drivestack.bev.protocol import TASKS, PerceptionModel
from drivestack.bev.published.bevformer_v1 import BEVFormerV1
from drivestack.bev.published.recurrent_map import RecurrentBevMap
from drivestack.core.answers import Detections, LaneGraph, OccupancyGrid, SceneAnswer
from drivestack.core.batch import Batch
from drivestack.core.errors import ConfigError
from drivestack.core.labels import LaneTargets, OccupancyTargets
from drivestack.lane_topology.head import LaneTopologyHead
from drivestack.lane_topology.published.baseline_r18 import FinestFPN, RoadBaselineR18
from drivestack.lane_topology.published.bev_constructor import BevConstructor
from drivestack.lane_topology.published.centreline_head import CentrelineHead
from drivestack.lane_topology.published.detr_head import DetrHead
from drivestack.lane_topology.published.element_head import ElementHead
from drivestack.lane_topology.published.ipm import IpmViewTransformer
from drivestack.lane_topology.published.relationship import RelationshipHead, TopologyHead
from drivestack.lane_topology.published.road_bevformer import RoadBevFormer
from drivestack.occupancy.head import OccupancyHead
from drivestack.occupancy.published.bevformer_occ import BEVFormerOcc, OccupancyMap, VoxelHead
from support import toy_rig

CHANNELS = 16
LAYER = dict(embed_dims=CHANNELS, num_heads=2, ffn_dims=32)
RIG = dict(num_cams=3, num_levels=2)
ANSWERS = {"boxes": Detections, "occupancy": OccupancyGrid, "lanes": LaneGraph}


def encoder() -> dict:
    return dict(
        img_backbone=ResNet(depth=18, out_indices=(2, 3), base_channels=16),
        img_neck=FPN(in_channels=(64, 128), out_channels=CHANNELS, num_outs=2),
    )


def v1() -> BEVFormerV1:
    return BEVFormerV1(
        **encoder(),
        bev_map=RecurrentBevMap(pc_range=toy_rig.RANGE, bev_size=(8, 10), num_layers=1, **LAYER, **RIG),
        box_head=BoxHead(num_query=6, num_layers=2, pc_range=toy_rig.RANGE, **LAYER),
        frame_offsets=(-1, 0),
    )


def v2(offsets: tuple[int, ...] = (-1, 0)) -> PerceptionModel:
    lanes = LaneTopologyHead(
        in_channels=32,
        channels=32,
        lane_range=(-20.0, -20.0, -2.3, 20.0, 20.0, 1.7),
        bev_size=(10, 10),
        num_queries=6,
        num_proposals=6,
        num_layers=1,
        num_heads=4,
        ffn_dims=32,
        hidden=16,
        max_elements=5,
    )
    voxels = OccupancyHead(32, channels=16, coarse_cells=20, columns_per_sample=200)
    return toy_rig.build(offsets, occupancy_head=voxels, lane_head=lanes)


def voxels() -> BEVFormerOcc:
    return BEVFormerOcc(
        **encoder(),
        bev_map=OccupancyMap(bev_size=(20, 20), num_layers=1, **LAYER, **RIG),
        voxel_head=VoxelHead(embed_dims=CHANNELS, num_z=4, out_dim=8),
        frame_offsets=(-1, 0),
        history_frames=None,
    )


def lanes_large() -> RoadBevFormer:
    return RoadBevFormer(
        **encoder(),
        bev_constructor=BevConstructor(bev_size=(5, 10), num_layers=1, use_can_bus=True, **LAYER, **RIG),
        pts_bbox_head=CentrelineHead(num_query=6, num_layers=2, **LAYER),
        bbox_head=ElementHead(num_query=5, num_layers=(1, 2), num_levels=2, **LAYER),
        lclc_head=RelationshipHead(CHANNELS, 8, 16),
        lcte_head=RelationshipHead(CHANNELS, 8, 16),
        front_camera="C0",
    )


def lanes_small() -> RoadBaselineR18:
    return RoadBaselineR18(
        img_backbone=ResNet(depth=18, out_indices=(2, 3), base_channels=16),
        img_neck=FinestFPN((64, 128), CHANNELS),
        img_view_transformer=IpmViewTransformer(CHANNELS, bev_size=(5, 10), num_planes=3),
        lc_head=DetrHead(CHANNELS, CHANNELS, 6),
        te_head=DetrHead(CHANNELS, CHANNELS, 5, 13, 4),
        lclc_head=TopologyHead(CHANNELS, 16),
        lcte_head=TopologyHead(CHANNELS, 16),
    )


MODELS = {build.__name__: build for build in (v1, v2, voxels, lanes_large, lanes_small)}


def batch_of(index: int, offsets: tuple[int, ...], size: tuple[int, int, int] = (200, 200, 16)) -> Batch:
    """A clip of the toy drive with all labels; ``size``: of its voxels."""
    frames, images = toy_rig.scene(3)
    seen = torch.ones(size, dtype=torch.bool)
    semantics = torch.full(size, 17, dtype=torch.uint8)
    semantics[..., 2] = 11
    line = torch.stack([torch.linspace(-15, 0, 11), torch.full((11,), 2.0), torch.zeros(11)], 1)
    lanes = LaneTargets(
        centrelines=[line, line + torch.tensor([15.0, 0, 0])],
        elements_xyxy_px=torch.tensor([[20.0, 5, 28, 15]]),
        attributes=torch.tensor([1]),
        lane_lane=torch.tensor([[False, True], [False, False]]),
        lane_element=torch.tensor([[True], [False]]),
    )
    clip = toy_rig.clip(frames, images, index, offsets)
    return replace(clip, occupancy=[OccupancyTargets(semantics, seen, seen)], lanes=[lanes])


@pytest.fixture(params=list(MODELS))
def case(request) -> tuple[PerceptionModel, Callable[[int, tuple[int, ...]], Batch]]:
    """A model, and what makes its batches."""
    torch.manual_seed(0)
    model = MODELS[request.param]()
    size = (20, 20, 4) if request.param == "voxels" else (200, 200, 16)
    return model, lambda index, offsets: batch_of(index, offsets, size)


def answers_of(model: PerceptionModel, answer: SceneAnswer, token: str, tasks: tuple[str, ...]) -> None:
    assert type(answer) is SceneAnswer and answer.token == token
    for task in TASKS:
        own = getattr(answer, task)
        assert (own is not None) == (task in tasks)
        assert own is None or (type(own) is ANSWERS[task] and own.token == token)


def test_a_step_of_learning(case):
    model, batch_at = case
    batch = batch_at(1, model.frame_offsets)
    assert isinstance(model, PerceptionModel) and 0 in model.frame_offsets
    assert model.tasks and set(model.tasks) <= set(TASKS)
    losses = model.train()(batch)
    assert losses.keys() == model.loss(batch).keys()
    assert all("loss" in name and value.isfinite() for name, value in losses.items())
    sum(losses.values()).backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_answers_frame_by_frame(case):
    model, batch_at = case
    model.eval()
    memory = None
    for t in range(3):
        batch = batch_at(t, (0,)).without_labels()
        answers, memory = model.predict(batch, memory)
        assert len(answers) == 1
        answers_of(model, answers[0], f"f{t}", model.tasks)
    only, _ = model.predict(batch_at(2, (0,)), memory, tasks=model.tasks[:1])
    answers_of(model, only[0], "f2", model.tasks[:1])
    two, _ = model.predict(toy_rig.join(batch_at(0, (0,)), batch_at(1, (0,))))
    assert [answer.token for answer in two] == ["f0", "f1"]
    whole = model(batch_at(2, model.frame_offsets), mode="predict")
    answers_of(model, whole[0], "f2", model.tasks)


def test_what_is_asked_wrongly_is_said(case):
    model, batch_at = case
    batch = batch_at(1, model.frame_offsets)
    missing = [task for task in TASKS if task not in model.tasks] or ["depth"]
    with pytest.raises(ConfigError, match=f"the model answers {', '.join(model.tasks)}, not {missing[0]}"):
        model.eval().predict(batch, tasks=(missing[0],))
    with pytest.raises(ConfigError, match=r"f1.* (no|not all have) "):
        model.loss(batch.without_labels())
    with pytest.raises(ValueError, match="mode is 'loss' or 'predict'"):
        model(batch, mode="tensor")


def test_weights_go_into_a_copy_and_give_its_answers(case):
    model, batch_at = case
    model.eval()
    batch = batch_at(1, (0,))
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.01)
    other.load_state_dict(model.state_dict(), strict=True)
    memory = model.predict(batch_at(0, (0,)))[1]
    a, b = (m.predict(batch, memory)[0][0] for m in (model, other))
    for task in model.tasks:
        for name, value in vars(getattr(a, task)).items():
            same = getattr(getattr(b, task), name)
            assert np.array_equal(value, same), name
