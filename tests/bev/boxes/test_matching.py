"""Hungarian matching: agreement with upstream's assigner, groups, padding, and what it says about NaN."""

import itertools

import pytest
import torch

from drivestack.bev.boxes.box_coder import encode_boxes
from drivestack.bev.boxes.matching import HungarianMatcher, focal_cost
from drivestack.geometry import boxes_from_legacy


@pytest.fixture
def gt_codes(case):
    gt = case("assigner_l1")["in.gt_bboxes_gravity"].clone()
    gt[:, 2] -= gt[:, 5] / 2
    return encode_boxes(boxes_from_legacy(gt))


def test_costs_and_assignment_agree_with_upstream(case, gt_codes):
    ref = case("assigner_l1")
    matcher = HungarianMatcher(cls_weight=2.0, bbox_weight=0.25, beta=0.0)
    logits, codes, labels = ref["in.cls_pred"], ref["in.bbox_pred"], ref["in.gt_labels"]
    torch.testing.assert_close(focal_cost(logits, labels) * matcher.cls_weight, ref["out.cls_cost"], rtol=0, atol=1e-5)
    torch.testing.assert_close(matcher.bbox_cost(codes, gt_codes), ref["out.reg_cost"], rtol=1e-6, atol=1e-5)
    assigned = matcher.match(logits[None], codes[None], gt_codes, labels, "layer 0")[0]
    assert torch.equal(assigned + 1, ref["out.gt_inds"])
    none = matcher.match(logits[None], codes[None], gt_codes[:0], labels[:0], "layer 0")[0]
    assert torch.equal(none + 1, ref["out.gt_inds_empty"])


def test_smooth_cost_is_quadratic_near_zero():
    codes, target = torch.zeros(1, 10), torch.zeros(1, 10)
    codes[0, 0], codes[0, 1], codes[0, 9] = 0.5, 3.0, 100.0  # the last is a velocity: not counted
    cost = HungarianMatcher(bbox_weight=2.0, beta=1.0).bbox_cost(codes, target)
    assert cost.item() == pytest.approx(2 * (0.5 * 0.25 + 2.5))


def test_assignment_is_the_cheapest():
    torch.manual_seed(0)
    matcher = HungarianMatcher()
    logits, codes = torch.randn(2, 5, 4), torch.randn(2, 5, 10)
    gt_codes, labels = torch.randn(3, 10), torch.randint(4, (3,))
    cost = focal_cost(logits, labels) * matcher.cls_weight + matcher.bbox_cost(codes, gt_codes)  # [2, 5, 3]
    assigned = matcher.match(logits, codes, gt_codes, labels, "layer 0")
    for group in range(2):
        best = min(sum(cost[group, q, i] for i, q in enumerate(qs)) for qs in itertools.permutations(range(5), 3))
        queries = [(assigned[group] == i).nonzero().item() for i in range(3)]
        assert sum(cost[group, q, i] for i, q in enumerate(queries)) == pytest.approx(best.item())


def test_groups_are_matched_for_themselves():
    torch.manual_seed(0)
    matcher = HungarianMatcher()
    logits, codes = torch.randn(3, 6, 4), torch.randn(3, 6, 10)
    gt = torch.randn(2, 10), torch.randint(4, (2,))
    together = matcher.match(logits, codes, *gt, "layer 0")
    alone = [matcher.match(logits[g : g + 1], codes[g : g + 1], *gt, "layer 0")[0] for g in range(3)]
    assert torch.equal(together, torch.stack(alone))


def test_more_labels_than_queries_leaves_labels_over():
    assigned = HungarianMatcher().match(
        torch.randn(1, 2, 4), torch.randn(1, 2, 10), torch.randn(5, 10), torch.zeros(5, dtype=torch.long), "layer 0"
    )
    assert (assigned >= 0).all() and assigned.unique().numel() == 2


def test_padding_is_never_matched():
    torch.manual_seed(0)
    gt_codes, labels = torch.randn(3, 10), torch.zeros(3, dtype=torch.long)
    codes = torch.cat([gt_codes + 5, gt_codes])[None]  # the padding would be the better match
    valid = torch.tensor([True] * 3 + [False] * 3)
    assigned = HungarianMatcher().match(torch.zeros(1, 6, 2), codes, gt_codes, labels, "layer 0", valid)[0]
    assert (assigned[:3] >= 0).all() and (assigned[3:] == -1).all()


@pytest.mark.parametrize(("term", "which"), [("classification", 0), ("box", 1)])
def test_nan_is_named(term, which):
    inputs = [torch.zeros(1, 3, 2), torch.zeros(1, 3, 10)]
    inputs[which][0, 1, 0] = float("nan")
    with pytest.raises(FloatingPointError, match=rf"decoder layer 4, sample 1.*{term}"):
        HungarianMatcher().match(
            *inputs, torch.zeros(1, 10), torch.zeros(1, dtype=torch.long), "decoder layer 4, sample 1"
        )


def test_unknown_velocity_does_not_disturb():
    gt = torch.zeros(1, 10)
    gt[0, 8:] = float("nan")
    codes = torch.zeros(1, 2, 10)
    codes[0, 0, 0] = 9
    assigned = HungarianMatcher().match(torch.zeros(1, 2, 2), codes, gt, torch.zeros(1, dtype=torch.long), "layer 0")
    assert assigned.tolist() == [[-1, 0]]
