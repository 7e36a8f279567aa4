"""The head's 10-number code: round trips, agreement with upstream's (de)normalisation and NMS-free decoding."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drivestack.bev.boxes.box_coder import (
    NmsFreeCoder,
    decode_boxes,
    denormalise_points,
    encode_boxes,
    normalise_points,
)
from drivestack.geometry import boxes_from_legacy, wrap_angle

RANGE = torch.tensor([-51.2, -40.0, -5.0, 51.2, 60.0, 3.0])


def from_legacy_gravity(boxes: torch.Tensor) -> torch.Tensor:
    """Internal boxes of upstream's (x, y, z, w, l, h, yaw_cw, vx, vy) with z at the gravity centre."""
    boxes = boxes.clone()
    boxes[:, 2] -= boxes[:, 5] / 2
    return boxes_from_legacy(boxes)


number = st.floats(-50, 50)
size = st.floats(0.1, 20)
angle = st.floats(-3.14, 3.14)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(number, number, number, size, size, size, angle, number, number), max_size=5))
def test_boxes_survive_the_code(rows):
    boxes = torch.tensor(rows, dtype=torch.float64).reshape(-1, 9)
    back = decode_boxes(encode_boxes(boxes))
    back[:, 6] = boxes[:, 6] + wrap_angle(back[:, 6] - boxes[:, 6])
    torch.testing.assert_close(back, boxes, rtol=0, atol=1e-9)


def test_slots_are_those_of_the_published_weights():
    box = torch.tensor([[1.0, 2.0, 3.0, 4.0, 2.0, 1.5, math.pi / 6, 5.0, 6.0]])
    clockwise = -math.pi / 6 - math.pi / 2
    expected = [1, 2, math.log(2), math.log(4), 3, math.log(1.5), math.sin(clockwise), math.cos(clockwise), 5, 6]
    torch.testing.assert_close(encode_boxes(box), torch.tensor([expected]))


def test_unknown_velocity_stays_unknown():
    box = torch.tensor([[1.0, 2.0, 3.0, 4.0, 2.0, 1.5, 0.0, math.nan, math.nan]])
    assert encode_boxes(box)[0, 8:].isnan().all()
    assert encode_boxes(box)[0, :8].isfinite().all()


def test_code_agrees_with_upstream(case):
    ref = case("assigner_l1")
    codes = encode_boxes(from_legacy_gravity(ref["in.gt_bboxes_gravity"]))
    torch.testing.assert_close(codes, ref["out.normalized_gt"], rtol=0, atol=1e-5)
    boxes = decode_boxes(ref["in.bbox_pred"])
    expected = from_legacy_gravity(ref["out.denorm_pred"])
    torch.testing.assert_close(boxes, expected, rtol=1e-6, atol=1e-5)


def test_points_survive_normalisation():
    points = torch.rand(7, 3) * 80 - 40
    fractions = normalise_points(points, RANGE)
    torch.testing.assert_close(fractions[:, 1], (points[:, 1] + 40) / 100)
    torch.testing.assert_close(denormalise_points(fractions, RANGE), points, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("name", "threshold"), [("nms_free_coder_nothr", None), ("nms_free_coder_thr", 0.55)])
def test_decoding_agrees_with_upstream(case, name, threshold):
    ref = case(name)
    coder = NmsFreeCoder(12, (-30, -30, -10, 30, 30, 10), threshold)
    for b in range(2):
        boxes, scores, labels = coder.decode(ref["in.all_cls_scores"][-1, b], ref["in.all_bbox_preds"][-1, b])
        expected = from_legacy_gravity(ref[f"out.dets.{b}.bboxes"])
        torch.testing.assert_close(boxes, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(scores, ref[f"out.dets.{b}.scores"], rtol=0, atol=1e-6)
        assert torch.equal(labels, ref[f"out.dets.{b}.labels"])


def test_a_threshold_that_nothing_passes_is_lowered():
    logits, codes = torch.full((4, 2), -3.0), torch.zeros(4, 10)
    logits[2, 1] = -2.0  # 0.119
    scores = NmsFreeCoder(8, score_threshold=0.5).decode(logits, codes)[1]
    assert len(scores) == 1
    silent = NmsFreeCoder(8, score_threshold=0.5).decode(logits - 20, codes)[1]
    assert len(silent) == 8, "below 0.01 everything is kept"


def test_fewer_pairs_than_asked_for():
    boxes, scores, labels = NmsFreeCoder(300).decode(torch.randn(3, 2), torch.zeros(3, 10))
    assert boxes.shape == (6, 9) and scores.shape == labels.shape == (6,)
    assert torch.equal(scores, scores.sort(descending=True).values)
