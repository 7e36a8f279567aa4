"""The published lane models: their keys, one step at toy size, and what the released code gives where it is odd."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from drivestack.backbone import FPN, ResNet
from drivestack.core.errors import ConfigError
from drivestack.data_tools.clips.can_bus import can_bus_of_pose
from drivestack.engine.config import build_model, load_config
from drivestack.geometry import pose, rotation_z
from drivestack.lane_topology.matching import UNMATCHED
from drivestack.lane_topology.published import losses
from drivestack.lane_topology.published.baseline_r18 import FinestFPN, RoadBaselineR18
from drivestack.lane_topology.published.bev_constructor import BevConstructor
from drivestack.lane_topology.published.centreline_head import CentrelineHead
from drivestack.lane_topology.published.detr_head import DetrHead
from drivestack.lane_topology.published.element_head import ElementHead
from drivestack.lane_topology.published.ipm import IpmViewTransformer
from drivestack.lane_topology.published.relationship import RelationshipHead, TopologyHead
from drivestack.lane_topology.published.road_bevformer import RoadBevFormer, lane_graph
from support import toy_streets as toy


@pytest.mark.parametrize(
    ("name", "count"),
    [("openlanev2_internimage_s", 1396), ("openlanev2_baseline_large_r50", 969), ("openlanev2_baseline_r18", 227)],
)
def test_a_published_model_has_its_keys(name, count, reference_dir):
    with torch.device("meta"):
        model = build_model(load_config(name))
    text = gzip.decompress((reference_dir / "lane_topology" / "keys" / f"{name}.txt.gz").read_bytes()).decode()
    published = dict(line.split() for line in text.splitlines())
    actual = {key: "x".join(map(str, value.shape)) or "-" for key, value in model.state_dict().items()}
    assert len(actual) == count and actual == published


def large(**constructor) -> RoadBevFormer:
    size = dict(embed_dims=16, num_heads=2, ffn_dims=32)
    return RoadBevFormer(
        img_backbone=ResNet(depth=18, out_indices=(2, 3), base_channels=16),
        img_neck=FPN(in_channels=(64, 128), out_channels=16, num_outs=2),
        bev_constructor=BevConstructor(bev_size=(5, 10), num_cams=2, num_levels=2, num_layers=1, **size, **constructor),
        pts_bbox_head=CentrelineHead(num_query=6, num_layers=2, **size),
        bbox_head=ElementHead(num_query=5, num_layers=(1, 2), num_levels=2, **size),
        lclc_head=RelationshipHead(16, 8, 16),
        lcte_head=RelationshipHead(16, 8, 16),
    )


def small() -> RoadBaselineR18:
    return RoadBaselineR18(
        img_backbone=ResNet(depth=18, out_indices=(2, 3), base_channels=16),
        img_neck=FinestFPN((64, 128), 16),
        img_view_transformer=IpmViewTransformer(16, bev_size=(5, 10), num_planes=3),
        lc_head=DetrHead(16, 16, 6),
        te_head=DetrHead(16, 16, 5, 13, 4),
        lclc_head=TopologyHead(16, 16),
        lcte_head=TopologyHead(16, 16, double_sigmoid=True),
    )


def batch_of(count: int = 2):
    """Toy streets before two noisy cameras, one ahead and one behind."""
    _, _, batch = toy.scenes(count)
    ahead = torch.tensor([[128.0, -128, 0, 0], [64, 0, -128, 64], [1, 0, 0, 0], [0, 0, 0, 1]])
    views = torch.stack([ahead, ahead @ torch.diag(torch.tensor([-1.0, -1, 1, 1]))])
    return replace(
        batch,
        images=torch.randn(count, 1, 2, 3, *toy.IMAGE, generator=torch.Generator().manual_seed(0)),
        image_from_bev=views.expand(count, 1, 2, 4, 4),
        image_size_px=torch.tensor(toy.IMAGE).expand(count, 1, 2, 2),
        intrinsics=torch.eye(3).expand(count, 2, 3, 3),
        bev_from_camera=torch.eye(4).expand(count, 2, 4, 4),
    )


@pytest.mark.parametrize("build", [large, lambda: large(use_can_bus=True), small], ids=["large", "can_bus", "small"])
def test_a_step_reaches_every_parameter_and_a_graph_follows(build):
    torch.manual_seed(0)
    model, batch = build(), batch_of()
    losses_ = model(batch, mode="loss")
    assert all(value.isfinite() for value in losses_.values()) and all("loss" in name for name in losses_)
    sum(losses_.values()).backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    answers, memory = model.eval().predict(batch)
    graph = answers[1].lanes
    assert memory is None and [a.token for a in answers] == batch.tokens and answers[0].boxes is None
    assert graph.centrelines.shape == (6, 11, 3) and graph.elements_xyxy_px.shape == (5, 4)
    assert graph.lane_lane.shape == (6, 6) and graph.lane_element.shape == (6, 5)
    assert graph.lane_lane.min() >= 0 and graph.lane_lane.max() <= 1
    with pytest.raises(ConfigError, match="not all have lane labels"):
        model(replace(batch, lanes=[batch.lanes[0], None]), mode="loss")
    with pytest.raises(ConfigError, match="the model answers lanes, not boxes"):
        model.predict(batch, tasks=("boxes",))


@pytest.mark.parametrize("build", [large, small], ids=["large", "small"])
def test_elements_are_learnt_from_the_samples_that_have_the_front_camera(build):
    torch.manual_seed(0)
    model = build().eval()  # BatchNorm couples samples in training

    def loss(batch) -> dict[str, float]:
        return {name: value.item() for name, value in model(batch, mode="loss").items()}

    both = replace(batch_of(), camera_valid=[(True, True), (False, True)])
    model.front_camera = 0
    first = replace(batch_of(), camera_valid=[(True, True), (True, True)])
    other = replace(first, lanes=[first.lanes[0], first.lanes[0]], images=first.images[:1].repeat(2, 1, 1, 1, 1, 1))
    half, whole = loss(both), loss(other)
    of_elements = [name for name in half if name.startswith(("bbox_head", "te_head", "lcte_head"))]
    assert of_elements
    for name in of_elements:
        assert half[name] == pytest.approx(whole[name], rel=1e-4), name
    none = loss(replace(both, camera_valid=[(False, True)] * 2))
    assert not any(none[name] for name in of_elements) and all(np.isfinite(value) for value in none.values())


def test_the_map_lies_in_the_ego_frame():
    """A rig described in another BEV frame gives the same lanes."""
    torch.manual_seed(0)
    model, batch = large().eval(), batch_of(1)
    ego_from_bev = torch.from_numpy(pose(rotation_z(-np.pi / 2), [0.9, 0.0, 1.8])).float()
    turned = replace(
        batch,
        image_from_bev=batch.image_from_bev @ ego_from_bev,
        ego_from_bev=ego_from_bev[None],
    )
    found, same = (model.predict(b)[0][0].lanes.centrelines for b in (batch, turned))
    np.testing.assert_allclose(found, same, atol=1e-4)


def test_can_bus_is_absolute_and_off_unless_asked_for():
    signal = can_bus_of_pose(pose(rotation_z(-np.pi / 2), [300.0, 900.0, 0.0]))
    np.testing.assert_allclose(signal[:3], [300, 900, 0])
    np.testing.assert_allclose(np.abs(signal[3:7]), [0.5**0.5, 0, 0, 0.5**0.5], atol=1e-12)
    np.testing.assert_allclose(signal[-2:], [1.5 * np.pi, 270])
    assert not [k for k in large().state_dict() if "can_bus" in k]
    with pytest.raises(ValueError, match="needs the CAN-bus numbers"):
        constructor = large(use_can_bus=True).bev_constructor
        constructor([torch.zeros(1, 2, 16, 2, 4)] * 2, torch.eye(4).expand(1, 2, 4, 4), torch.ones(1, 2, 2), (8, 16))


@pytest.fixture(scope="module")
def reference(reference_dir):
    folder = reference_dir / "lane_topology"
    numbers = json.loads((folder / "lane_topology_heads.json").read_text())
    return load_file(folder / "lane_topology_heads.safetensors"), numbers


def test_the_forks_order_of_lanes_only_where_it_is_asked_for(reference):
    """Lanes by rising score, edges left behind: recorded from the fork's format_preds."""
    arrays, numbers = reference
    expected = numbers["format_preds_forkbug"]
    controls = torch.stack([arrays[f"bezier/control{i}"].view(5, 3) for i in range(4)])
    fork = np.stack([arrays[f"bezier/decoded11_sorted{i}"].numpy() for i in range(4)])
    edges = torch.tensor(expected["topology_lclc"])
    nothing = (torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long))
    rest = nothing, edges, torch.zeros(4, 0)
    plain = lane_graph("t", controls, torch.zeros(4), *rest)
    rank = [int(np.abs(fork - line).sum((1, 2)).argmin()) for line in plain.centrelines]
    scores = torch.tensor(expected["confidences"])[rank]
    bugged = lane_graph("t", controls, scores, *rest, scramble_edges=True)
    np.testing.assert_allclose(bugged.centrelines, fork, atol=1e-4)
    np.testing.assert_allclose(bugged.lane_scores, expected["confidences"])
    np.testing.assert_array_equal(bugged.lane_lane, edges.numpy())
    right = lane_graph("t", controls, scores, *rest)
    np.testing.assert_array_equal(right.lane_scores, scores.numpy())


def group(arrays, prefix):
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


@torch.no_grad()
def test_small_baseline_heads(reference):
    arrays, numbers = reference
    r18, close = group(arrays, "r18/"), dict(rtol=1e-5, atol=1e-5)
    head = DetrHead(16, 16, 7, ffn_dims=32).eval()
    head.load_state_dict(group(r18, "lc_head/weights/"))
    out = head(r18["bev_in"])
    torch.testing.assert_close(out.logits, r18["lc_cls"][0], **close)
    torch.testing.assert_close(out.states, r18["lc_states"][0], **close)
    model = small()
    codes = out.codes * model.size + model.low
    for b in (0, 1):
        torch.testing.assert_close(codes[b], r18[f"lanes{b}"], rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(out.logits[b].sigmoid(), r18[f"scores{b}"], **close)

    labels = [arrays[f"inputs/gt_lc{b}"] for b in (0, 1)]
    model.unnormalised_matching = True
    terms, lane_of = model.lane_terms(out.logits, out.codes, labels)
    for name, value in terms.items():
        torch.testing.assert_close(value, torch.tensor(numbers["r18_lc_losses"][name]), **close)
    for to, rows, columns in zip(lane_of, *numbers["r18_lc_assign_unnormalised_quirk"]):
        positive = (to != UNMATCHED).nonzero().flatten()
        assert positive.tolist() == rows and to[positive].tolist() == columns

    topology = TopologyHead(16, 16, double_sigmoid=True)
    topology.load_state_dict(group(r18, "topology_head/weights/"))
    logits = topology(out.states, out.states)
    torch.testing.assert_close(logits.sigmoid(), r18["topology_prob"][..., 0], **close)
    edges = [arrays[f"inputs/gt_lclc{b}"] for b in (0, 1)]
    target = losses.edge_targets(edges, lane_of, lane_of, logits.shape[1:])
    # recorded with weight 2
    loss = 2 * losses.edge_loss(topology.loss_logits(logits), target)
    torch.testing.assert_close(loss, torch.tensor(numbers["r18_topology_loss_double_sigmoid"]), **close)
    corrected = TopologyHead(16, 16)
    assert corrected.loss_logits(logits) is logits
