"""The lane head of the shared model: learns toy streets quickly, leaves unlabelled samples alone, answers in order."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from drivestack.core.errors import ConfigError, PredictionError
from drivestack.core.frames import CameraView
from drivestack.core.registries import MODELS
from drivestack.geometry import CameraModel
from drivestack.lane_topology.front_image import boxes_on_disk, front_index
from drivestack.lane_topology.head import LaneTopologyHead
from drivestack.lane_topology.lane_losses import repeated
from support import toy_streets as toy


@pytest.fixture
def head() -> LaneTopologyHead:
    torch.manual_seed(0)
    return MODELS.build(dict(type=LaneTopologyHead, **toy.SMALL))


def test_it_learns_toy_streets_with_their_edges_in_a_few_steps(head):
    features, levels, batch = toy.scenes(2)
    optimiser = torch.optim.AdamW(head.parameters(), lr=2e-3)
    # down to nothing: without it, which lane is worst in the last step is a matter of rounding
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.02, 160)
    for _ in range(160):
        total = sum(head.loss(head(features, levels, batch), batch).values())
        optimiser.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 10.0)
        optimiser.step()
        schedule.step()
    graphs = head.eval().predict(head(features, levels, batch), batch)
    for graph, truth in zip(graphs, batch.lanes):
        assert graph.centrelines.shape[1:] == (11, 3)
        ends = np.stack([line[[0, 10, 20]].numpy() for line in truth.centrelines])  # [n, 3, 3]
        gap = np.abs(graph.centrelines[:4, None, [0, 5, 10]] - ends).sum(-1).mean(-1)
        of = gap.argmin(1)
        assert sorted(of) == [0, 1, 2, 3] and gap.min(1).max() < 3.0
        edges = graph.lane_lane[:4, :4] > 0.5
        np.testing.assert_array_equal(edges, truth.lane_lane.numpy()[of[:, None], of])
        first = int(np.abs(graph.elements_xyxy_px[:2] - truth.elements_xyxy_px[0].numpy()).sum(1).argmin())
        order = [first, 1 - first]
        assert graph.element_scores[1] > 0.3 > graph.element_scores[2]
        assert np.abs(graph.elements_xyxy_px[order] - truth.elements_xyxy_px.numpy()).max() < 8
        np.testing.assert_array_equal(graph.attributes[order], truth.attributes.numpy())
        governed = graph.lane_element[:4][:, order] > 0.5
        np.testing.assert_array_equal(governed, truth.lane_element.numpy()[of])


def test_every_parameter_learns_and_unlabelled_samples_add_nothing(head):
    features, levels, batch = toy.scenes(2)
    whole = head.eval().loss(head(features, levels, batch), batch)  # eval: BatchNorm must not mix the samples
    sum(whole.values()).backward()
    assert not [n for n, p in head.named_parameters() if p.grad is None]
    _, _, half = toy.scenes(2, labelled=(0,))
    one = replace(half, **{k: getattr(half, k)[:1] for k in ("images", "frame_valid", "lanes", "frames")})
    one = replace(one, ego_from_bev=half.ego_from_bev[:1])
    alone = head.loss(head(replace(features, bev=features.bev[:1]), [levels[0][:1]], one), one)
    together = head.loss(head(features, levels, half), half)
    assert together.keys() == alone.keys() == whole.keys()
    for name, value in together.items():
        torch.testing.assert_close(value, alone[name], rtol=1e-4, atol=1e-5, msg=name)


def test_a_batch_without_labels_gives_zeros_that_reach_every_parameter(head):
    features, levels, batch = toy.scenes(2, labelled=())
    for lanes in (batch.lanes, []):
        head.zero_grad(set_to_none=True)
        losses = head.loss(head(features, levels, batch), replace(batch, lanes=lanes))
        assert all(name.startswith("loss_lane_") and value == 0 for name, value in losses.items())
        sum(losses.values()).backward()
        assert not [n for n, p in head.named_parameters() if p.grad is None or p.grad.any()]


def test_a_street_without_lanes_or_elements_is_learned_as_empty(head):
    features, levels, batch = toy.scenes(1)
    none = replace(
        batch.lanes[0],
        centrelines=[],
        elements_xyxy_px=torch.zeros(0, 4),
        attributes=torch.zeros(0, dtype=torch.long),
        lane_lane=torch.zeros(0, 0, dtype=torch.bool),
        lane_element=torch.zeros(0, 0, dtype=torch.bool),
    )
    losses = head.loss(head(features, levels, batch), replace(batch, lanes=[none]))
    assert losses["loss_lane_cls"] > 0 and losses["loss_lane_element_heat"] > 0
    assert losses["loss_lane_points"] == losses["loss_lane_topology"] == losses["loss_lane_element_relation"] == 0
    assert all(value.isfinite() for value in losses.values())


def test_bf16_autocast_keeps_coordinates_exact(head):
    features, levels, batch = toy.scenes(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = head(features, levels, batch)
        losses = head.loss(outputs, batch)
    assert outputs.controls.dtype == outputs.lane_lane.dtype == outputs.elements.ltrb_px.dtype == torch.float32
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())


def test_lanes_come_best_first_and_edges_follow_their_lanes(head):
    features, levels, batch = toy.scenes(1)
    head.eval().max_lanes = 5
    with torch.no_grad():
        outputs = head(features, levels, batch)
    (graph,) = head.predict(outputs, batch)
    order = outputs.logits[-1, 0].argsort(descending=True)[:5]
    assert graph.token == "sample0" and (np.diff(graph.lane_scores) <= 0).all()
    expected = outputs.lane_lane[0, order[:, None], order].sigmoid()
    np.testing.assert_allclose(graph.lane_lane, expected.numpy(), rtol=1e-6)
    assert graph.lane_element.shape == (5, 6) and graph.elements_xyxy_px.shape == (6, 4)


def test_wrong_front_camera_and_weights_are_refused(head):
    features, levels, batch = toy.scenes(1)
    with pytest.raises(ConfigError, match="camera 1, the head looks at camera 0"):
        head(features, levels, replace(batch, lanes=[replace(batch.lanes[0], front_camera=1)]))
    with pytest.raises(ConfigError, match="'edges' is no loss"):
        LaneTopologyHead(**toy.SMALL, weights={"edges": 1.0})


def test_the_front_camera_is_found_by_its_name_in_every_sample():
    _, _, batch = toy.scenes(2)
    named = lambda *orders: replace(batch, images=torch.zeros(2, 1, 2, 3, *toy.IMAGE), camera_names=list(orders))
    unlabelled = named(("a", "b"), ("a", "b")).without_labels()
    assert [front_index(front, unlabelled) for front in ("a", "b", 0, 1)] == [0, 1, 0, 1]
    with pytest.raises(ConfigError, match="the labels' elements lie in camera 0, the head looks at camera 1"):
        front_index("b", named(("a", "b"), ("a", "b")))
    with pytest.raises(ConfigError, match=r"'c' is not in one place among the batch's cameras a, b$"):
        front_index("c", unlabelled)
    with pytest.raises(ConfigError, match="'a' is not in one place among the batch's cameras a, b; b, a"):
        front_index("a", named(("a", "b"), ("b", "a")))
    with pytest.raises(ConfigError, match="front_camera 2, but the batch has 2 cameras"):
        front_index(2, unlabelled)


def test_boxes_return_to_the_image_on_disk():
    """That of the camera which the batch shows first, though it is the second of the frame."""
    _, _, batch = toy.scenes(1)
    camera = CameraModel(np.array([[1000.0, 0, 800], [0, 1000, 450], [0, 0, 1]]), 1600, 900)
    another = CameraModel(np.array([[700.0, 0, 500], [0, 700, 400], [0, 0, 1]]), 1000, 800)
    views = tuple(
        CameraView(name, own, np.diag([side, side, 1.0, 1.0]), np.eye(4), 0)
        for name, own, side in (("behind", another, -1.0), ("front", camera, 1.0))
    )
    seen = torch.tensor([[250.0, 0, 200], [0, 250, 450 / 4 - 30], [0, 0, 1]])  # a quarter, 30 px cut off above
    frames = [replace(batch.frames[0], cameras=views)]
    batch = replace(batch, frames=frames, camera_names=[("front",)], intrinsics=seen[None, None])
    boxes = boxes_on_disk(torch.tensor([[100.0, 10, 120, 50], [-8.0, 20, 30, 190]]), batch, 0, 0)
    expected = torch.tensor([[400.0, 160, 480, 320], [0, 200, 120, 880]])
    torch.testing.assert_close(boxes, expected)


def test_lanes_that_are_not_finite_are_no_answer(head):
    features, levels, batch = toy.scenes(2)
    head.eval()
    with torch.no_grad():
        outputs = head(features, levels, batch)
        outputs.logits[-1, 1, 3] = float("nan")
        with pytest.raises(PredictionError, match="the model's lanes are NaN or infinite"):
            head.predict(outputs, batch)


def test_further_parts_change_nothing_of_the_ordinary_lanes():
    """The same seed, with and without end map and one-to-many group; and what those add is left out at inference."""
    features, levels, batch = toy.scenes(1)
    heads = []
    for further in ({}, dict(end_map=dict(), one_to_many=dict(num_queries=10))):
        torch.manual_seed(0)
        heads.append(LaneTopologyHead(**toy.SMALL, **further).eval())
    plain, rich = heads
    rich.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        of_plain, of_rich = (head(features, levels, batch) for head in heads)
    assert torch.equal(of_plain.controls, of_rich.controls) and torch.equal(of_plain.lane_lane, of_rich.lane_lane)
    assert of_plain.ends is None and of_rich.ends is not None and of_rich.many is None
    for a, b in zip(plain.predict(of_plain, batch), rich.predict(of_rich, batch)):
        np.testing.assert_array_equal(a.centrelines, b.centrelines)
    losses = [head.train().loss(head(features, levels, batch), batch) for head in heads]
    assert {name: value.item() for name, value in losses[1].items() if name in losses[0]} == {
        name: value.item() for name, value in losses[0].items()
    }
    new = losses[1].keys() - losses[0].keys()
    assert {"loss_lane_end_heat", "loss_lane_many_cls", "loss_lane_many_d0_points"} <= new
    assert all(name.startswith(("loss_lane_end_", "loss_lane_many_")) for name in new)


def test_a_head_with_all_parts_is_built_without_memory():
    with torch.device("meta"):
        head = LaneTopologyHead(**toy.SMALL, end_map=dict(), one_to_many=dict(), street_map=dict())
    assert all(parameter.is_meta for parameter in head.parameters())


def test_the_one_to_many_group_never_reaches_the_ordinary_queries():
    features, levels, batch = toy.scenes(1)
    torch.manual_seed(0)
    head = LaneTopologyHead(**toy.SMALL, one_to_many=dict(num_queries=10, repeats=3))
    before = head(features, levels, batch)
    with torch.no_grad():
        head.many.query.weight.add_(5.0)
        head.many.first_curves.mul_(0.5)
    after = head(features, levels, batch)
    assert not torch.equal(before.many[1], after.many[1])
    for name in ("logits", "controls", "lanes", "lane_lane"):
        assert torch.equal(getattr(before, name), getattr(after, name))
    sum(head.loss(after, batch).values()).backward()
    assert not [n for n, p in head.named_parameters() if p.grad is None]


def test_labels_are_repeated_but_for_at_most_half_of_the_queries():
    labels = [torch.randn(3, 5, 3), torch.randn(12, 5, 3), torch.zeros(0, 5, 3), None]
    often = repeated(labels, 4, 50)
    assert [None if own is None else len(own) for own in often] == [12, 24, 0, None]
    assert torch.equal(often[0].view(4, 3, 5, 3)[2], labels[0])


def test_lanes_below_the_score_are_left_out_with_their_edges(head):
    features, levels, batch = toy.scenes(1)
    outputs = head.eval()(features, levels, batch)
    (whole,) = head.predict(outputs, batch)
    head.min_score = float(whole.lane_scores[7])
    (few,) = head.predict(outputs, batch)
    assert len(few.lane_scores) == 8
    np.testing.assert_array_equal(few.centrelines, whole.centrelines[:8])
    np.testing.assert_array_equal(few.lane_lane, whole.lane_lane[:8, :8])
    np.testing.assert_array_equal(few.lane_element, whole.lane_element[:8])
    head.min_score = 1.0
    (none,) = head.predict(outputs, batch)
    assert none.centrelines.shape == (0, 11, 3) and none.lane_lane.shape == (0, 0)


def test_lanes_that_meet_at_a_point_of_the_end_map_are_joined_by_it():
    features, levels, batch = toy.scenes(1)
    torch.manual_seed(0)
    head = LaneTopologyHead(**toy.SMALL, end_map=dict(), snap_radius_m=3.0).eval()
    with torch.no_grad():
        outputs = head(features, levels, batch)
    end, start = outputs.controls[-1, 0, 0, -1], outputs.controls[-1, 0, 1, 0]
    start[:] = end + torch.tensor([2.0, 0, 0])
    places, heat = outputs.ends.places.clone(), torch.full_like(outputs.ends.heat, -20.0)
    heat[0, :, 5, 5] = 20.0
    places[0, :, 5, 5] = (end + start) / 2
    with torch.no_grad():
        lane_lane = head.lane_relation(outputs.lanes, outputs.controls[-1])
    joined = replace(outputs, lane_lane=lane_lane, ends=replace(outputs.ends, heat=heat, places=places))
    order = outputs.logits[-1, 0].argsort(descending=True, stable=True).tolist()
    i, j = order.index(0), order.index(1)
    (snapped,) = head.predict(joined, batch)
    head.snap_radius_m = 0.0
    (as_was,) = head.predict(joined, batch)
    gap = lambda graph: np.linalg.norm(graph.centrelines[i, -1] - graph.centrelines[j, 0])
    assert gap(as_was) == pytest.approx(2.0, rel=1e-4) and gap(snapped) == pytest.approx(2 * (1 - np.exp(-1)), rel=1e-3)
    assert snapped.lane_lane[i, j] > as_was.lane_lane[i, j]
    with pytest.raises(ConfigError, match="give end_map"):
        LaneTopologyHead(**toy.SMALL, snap_radius_m=3.0)
