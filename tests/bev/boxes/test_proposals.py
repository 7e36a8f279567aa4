"""Proposals: perfect predictions find the labels, padding and augmentation, and the dense branch learns."""

import math

import pytest
import torch

from drivestack.bev.boxes.box_coder import decode_boxes, denormalise_points, encode_boxes
from drivestack.bev.boxes.proposals import (
    BevProposals,
    DenseOutputs,
    HybridQueries,
    PerspectiveProposals,
    Proposals,
    augment_boxes,
    gaussian_radius,
    sine_embedding,
)
from drivestack.geometry import bev_iou

RANGE = (-20.0, -40.0, -5.0, 60.0, 24.0, 3.0)
NUM_Y, NUM_X = 32, 40  # cells of 2 m


@pytest.fixture
def scene():
    """Cars on a grid, at least four cells apart, not at cell centres."""
    torch.manual_seed(0)
    x, y = torch.meshgrid(torch.arange(-15.0, 55, 14), torch.arange(-35.0, 20, 11), indexing="ij")
    n = x.numel()
    centre = torch.stack([x.flatten(), y.flatten(), torch.full((n,), -1.0)], 1) + torch.rand(n, 3)
    size = torch.tensor([4.5, 1.9, 1.6]) + torch.rand(n, 3)
    boxes = torch.cat([centre, size, torch.rand(n, 1) * 6 - 3, torch.randn(n, 2)], 1)
    return boxes, torch.randint(3, (n,))


@pytest.fixture
def dense():
    torch.manual_seed(0)
    return BevProposals(16, 3, RANGE, num_proposals=60, channels=16)


def perfect(dense, boxes, labels) -> DenseOutputs:
    heat, codes, _ = dense.targets(boxes, labels, NUM_Y, NUM_X)
    return DenseOutputs(torch.logit(heat, eps=1e-4)[None], codes[None])


def test_radius_keeps_the_overlap():
    length, width = torch.tensor([10.0, 3.0]), torch.tensor([4.0, 3.0])
    radius = gaussian_radius(length, width, 0.3)
    boxes = torch.zeros(2, 7)
    boxes[:, 3], boxes[:, 4] = length, width
    shifted = boxes.clone()
    shifted[:, :2] += radius[:, None]
    assert bev_iou(boxes, shifted).diagonal().tolist() == pytest.approx([0.3, 0.3], abs=1e-5)


def test_perfect_predictions_find_every_label(dense, scene):
    boxes, labels = scene
    outs = perfect(dense, boxes, labels)
    found = dense.proposals(outs)
    assert found.reference.shape == (1, 60, 3) and found.valid.all()
    best = found.codes[0, : len(boxes)]  # as many as there are objects come first
    distance = torch.cdist(boxes[:, :3], best[:, [0, 1, 4]])
    assert distance.min(1).values.max() < 1e-4
    match = distance.argmin(1)
    assert torch.equal(found.scores[0, match].argmax(1), labels)
    metres = denormalise_points(found.reference[0, match], torch.tensor(RANGE))
    torch.testing.assert_close(metres, boxes[:, :3], rtol=0, atol=1e-3)
    detections = dense.predict(outs, ["a"], max_num=len(boxes))[0]
    order = torch.cdist(torch.from_numpy(detections.boxes[:, :2]), boxes[:, :2]).argmin(0)
    torch.testing.assert_close(torch.from_numpy(detections.boxes)[order][:, :6], boxes[:, :6], rtol=0, atol=1e-3)
    assert detections.labels[order].tolist() == labels.tolist()


def test_perfect_predictions_cost_almost_nothing(dense, scene):
    boxes, labels = scene
    heat, codes, _ = dense.targets(boxes, labels, NUM_Y, NUM_X)
    sure = DenseOutputs(torch.where(heat >= 1, 12.0, -12.0)[None], codes[None])
    losses = dense.loss(sure, [boxes], [labels])
    assert set(losses) == {"loss_dense_cls", "loss_dense_bbox"}
    assert losses["loss_dense_cls"] < 1e-3 and losses["loss_dense_bbox"] < 1e-6


def test_labels_peak_at_their_cell_and_outsiders_are_left_out(dense):
    boxes = torch.tensor([[21.0, -11.0, 0, 4, 2, 1.5, 0, 0, 0], [99.0, 0, 0, 4, 2, 1.5, 0, 0, 0]])
    heat, codes, weight = dense.targets(boxes, torch.tensor([2, 0]), NUM_Y, NUM_X)
    assert (heat >= 1).nonzero().tolist() == [[2, 14, 20]]  # (x + 20) / 2, (y + 40) / 2
    assert heat[:2].sum() == 0 and weight.count_nonzero() == 9 and weight[14, 20] == 1
    torch.testing.assert_close(codes[14, 20], encode_boxes(boxes[:1])[0])


def test_no_labels_and_unknown_velocities_keep_the_loss_finite(dense, scene):
    boxes, labels = scene
    unknown = boxes.clone()
    unknown[::2, 7:] = math.nan
    bev = torch.randn(2, 16, NUM_Y, NUM_X)
    losses = dense.loss(dense(bev), [unknown, boxes[:0]], [labels, labels[:0]])
    sum(losses.values()).backward()
    assert all(v.isfinite() for v in losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in dense.parameters())
    nothing = dense.loss(dense(bev), [boxes[:0]] * 2, [labels[:0]] * 2)
    assert nothing["loss_dense_bbox"] == 0 and nothing["loss_dense_cls"].isfinite()


def test_more_proposals_than_cells(scene):
    small = BevProposals(4, 2, RANGE, num_proposals=50)
    found = small.proposals(small(torch.randn(2, 4, 3, 4)))
    assert found.reference.shape == (2, 12, 3)


def test_dense_branch_learns(scene):
    """From features that only mark cells with objects to boxes in the right place, in few steps."""
    torch.manual_seed(0)
    boxes, labels = scene
    dense = BevProposals(8, 3, RANGE, num_proposals=60, channels=16)
    heat, codes, weight = dense.targets(boxes, labels, NUM_Y, NUM_X)
    bev = torch.zeros(1, 8, NUM_Y, NUM_X)
    bev[0, :3] = heat
    bev[0, 3:7] = (codes[..., [2, 3, 6, 7]] * (weight > 0)[..., None]).permute(2, 0, 1)
    optimiser = torch.optim.Adam(dense.parameters(), 1e-2)
    for _ in range(60):
        losses = dense.loss(dense(bev), [boxes], [labels])
        optimiser.zero_grad()
        sum(losses.values()).backward()
        optimiser.step()
    found = dense.proposals(dense(bev))
    centres = decode_boxes(found.codes[0, : len(boxes)])[:, :2]
    assert (torch.cdist(boxes[:, :2], centres).min(1).values < 2).float().mean() > 0.9


# ---- from the cameras ------------------------------------------------------------------------------------------------


def test_views_are_suppressed_together_and_padded(scene):
    boxes, labels = scene
    source = PerspectiveProposals(3, RANGE, num_proposals=40)
    scores = torch.linspace(0.9, 0.3, len(boxes))
    twice = torch.cat([boxes + 0.1, boxes])  # two cameras see the same objects
    found = source.proposals(
        [twice, boxes[:0]], [torch.cat([scores - 0.2, scores]), scores[:0]], [labels.repeat(2), labels[:0]]
    )
    assert found.valid.sum(1).tolist() == [len(boxes), 0]
    assert (found.reference[~found.valid] == 0.5).all() and (found.scores[~found.valid] == 0).all()
    torch.testing.assert_close(
        denormalise_points(found.reference[0, : len(boxes)], torch.tensor(RANGE)), boxes[:, :3], rtol=0, atol=1e-3
    )
    assert torch.equal(found.scores[0, : len(boxes)].argmax(1), labels)
    torch.testing.assert_close(found.scores[0, : len(boxes)].amax(1), scores)


def test_only_the_best_in_range_remain(scene):
    boxes, labels = scene
    outside = boxes.clone()
    outside[:5, 0] += 500
    outside[5, 1] = math.nan
    source = PerspectiveProposals(3, RANGE, num_proposals=4)
    scores = torch.linspace(0.9, 0.3, len(boxes))
    found = source.proposals([outside], [scores], [labels])
    torch.testing.assert_close(found.scores[0].amax(1), scores[6:10])


def test_proposals_follow_the_bev_augmentation(scene):
    boxes, labels = scene
    c, s = math.cos(0.3), math.sin(0.3)
    rotate = torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    flip = torch.diag(torch.tensor([-1.0, 1, 1]))
    bda = 1.05 * flip @ rotate
    moved = augment_boxes(boxes, bda)
    torch.testing.assert_close(moved[:, :3], boxes[:, :3] @ bda.T)
    torch.testing.assert_close(moved[:, 3:6], boxes[:, 3:6] * 1.05)
    # a point one metre ahead along the heading, and the velocity, move with the box
    ahead = boxes[:, :2] + torch.stack([boxes[:, 6].cos(), boxes[:, 6].sin()], 1)
    direction = ahead @ bda[:2, :2].T - moved[:, :2]
    torch.testing.assert_close(direction / 1.05, torch.stack([moved[:, 6].cos(), moved[:, 6].sin()], 1))
    torch.testing.assert_close(moved[:, 7:], boxes[:, 7:] @ bda[:2, :2].T)
    source = PerspectiveProposals(3, (-90, -90, -5, 90, 90, 3), num_proposals=60)
    scores = torch.linspace(0.9, 0.3, len(boxes))
    plain = source.proposals([moved], [scores], [labels])
    warped = source.proposals([boxes], [scores], [labels], bda=bda[None])
    torch.testing.assert_close(plain.reference, warped.reference)


# ---- queries ---------------------------------------------------------------------------------------------------------


def test_queries_read_the_map_at_their_place():
    torch.manual_seed(0)
    queries = HybridQueries(8, 3)
    bev = torch.randn(2, 8, NUM_Y, NUM_X, requires_grad=True)
    reference = torch.rand(2, 5, 3)
    reference[0, 0, :2] = torch.tensor([(7 + 0.5) / NUM_X, (3 + 0.5) / NUM_Y])
    codes = torch.randn(2, 5, 10)
    proposals = Proposals(reference, torch.rand(2, 5, 3), torch.ones(2, 5, dtype=torch.bool), codes)
    extra = queries(bev, proposals)
    assert extra.query.shape == extra.query_pos.shape == (2, 5, 8)
    expected = queries.bev_proj(queries.bev_norm(bev[0, :, 3, 7])) + queries.score_proj(proposals.scores[0, 0])
    expected = expected + queries.box_proj(codes[0, 0, 2:])
    torch.testing.assert_close(extra.query[0, 0], expected)
    extra.query[0, 0].sum().backward()
    reached = bev.grad.abs().sum((0, 1)) > 1e-7
    assert reached.nonzero().tolist() == [[3, 7]]


def test_embedding_tells_places_apart():
    places = torch.rand(200, 3)
    distance = torch.cdist(sine_embedding(places, 16), sine_embedding(places, 16)) + torch.eye(200) * 9
    assert distance.min() > 0.01 and sine_embedding(places, 16).shape == (200, 48)
