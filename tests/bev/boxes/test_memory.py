"""Objects that are remembered: where they come back, which stay, and how ids are given."""

from __future__ import annotations

import math

import pytest
import torch

from drivestack.bev.boxes.box_coder import decode_boxes, encode_boxes
from drivestack.bev.boxes.head import QueryOutputs
from drivestack.bev.boxes.memory import ObjectMemory, Objects, Past, Recalled, aligned_boxes
from drivestack.bev.boxes.proposals import Proposals, augment_boxes
from drivestack.core.errors import ConfigError
from drivestack.geometry import invert_pose, pose, rotation_z, transform_boxes

RANGE = (-40.0, -40.0, -5.0, 40.0, 40.0, 3.0)
CHANNELS, CLASSES = 8, 3
NO_BDA = torch.eye(3)[None]


def memory(**options) -> ObjectMemory:
    return ObjectMemory(CHANNELS, CLASSES, RANGE, **options).eval()


def boxes(*rows: tuple[float, ...]) -> torch.Tensor:
    """Rows of x, y, yaw, vx, vy."""
    found = torch.zeros(len(rows), 9)
    found[:, 2], found[:, 3:6] = -1.0, torch.tensor([4.0, 2.0, 1.5])
    values = torch.tensor(rows).reshape(-1, 5)
    found[:, :2], found[:, 6:] = values[:, :2], values[:, 2:]
    return found


def outputs(own: torch.Tensor, scores: list[float], labels: list[int] | None = None) -> QueryOutputs:
    """The decoder's last word: a query for each box."""
    n = len(own)
    probability = torch.full((n, CLASSES), 0.01)
    probability[torch.arange(n), torch.tensor(labels or [0] * n, dtype=torch.long)] = torch.tensor(scores)
    content = torch.arange(n * CHANNELS, dtype=torch.float32).reshape(1, n, CHANNELS)
    return QueryOutputs(torch.logit(probability)[None, None], encode_boxes(own)[None, None], 1, hidden=content)


def past(objects: Objects, motion: torch.Tensor | None = None, dt_s: float = 0.5) -> Past:
    return Past(objects, torch.eye(4, dtype=torch.float64) if motion is None else motion, dt_s)


# ------------------------------------------------------------------------------------------------------- alignment


def test_a_parked_car_stays_where_it_is_while_the_ego_turns() -> None:
    """Analytic: the ego drives 3 m ahead and turns left by 30 degrees; the car was 10 m ahead, heading along x."""
    turn = math.radians(30)
    new_from_old = torch.from_numpy(invert_pose(pose(rotation_z(turn), [3.0, 0.0, 0.0])))
    (found,) = aligned_boxes(boxes((10.0, 0.0, 0.0, 0.0, 0.0)).double(), new_from_old, 0.5)
    expected = [7 * math.cos(turn), -7 * math.sin(turn), -1.0, 4.0, 2.0, 1.5, -turn, 0.0, 0.0]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_a_moving_car_goes_on_and_its_velocity_turns_with_the_frame() -> None:
    turn = math.pi / 2
    new_from_old = torch.from_numpy(invert_pose(pose(rotation_z(turn), [0.0, 0.0, 0.0])))
    (found,) = aligned_boxes(boxes((10.0, 4.0, 0.0, 6.0, 0.0)).double(), new_from_old, 0.5)
    assert found[:2].tolist() == pytest.approx([4.0, -13.0]) and found[7:].tolist() == pytest.approx([0.0, -6.0])
    assert found[6] == pytest.approx(-turn)


def test_objects_come_back_where_they_should_be() -> None:
    kept = memory()
    own = boxes((10.0, 2.0, 0.4, 4.0, 0.0), (-5.0, 1.0, 0.0, 0.0, 0.0))
    (left,) = kept.remember(outputs(own, [0.9, 0.6], [1, 2]), None, [None], NO_BDA)
    motion = torch.from_numpy(invert_pose(pose(rotation_z(0.3), [2.0, 0.5, 0.0])))
    again = kept.recall([past(left.objects, motion)], NO_BDA)
    assert again is not None
    expected = aligned_boxes(own.double(), motion, 0.5).float()
    torch.testing.assert_close(decode_boxes(again.proposals.codes[0]), expected, atol=1e-4, rtol=0)
    low, high = torch.tensor(RANGE[:3]), torch.tensor(RANGE[3:])
    torch.testing.assert_close(again.proposals.reference[0], (expected[:, :3] - low) / (high - low), atol=1e-5, rtol=0)
    assert again.proposals.scores[0].argmax(1).tolist() == [1, 2] and again.ids.tolist() == [[0, 1]]


def test_bev_augmentation_is_undone_before_and_done_after() -> None:
    """What is kept lies in the frame of the car, whatever the maps of the two frames look like."""
    kept, own = memory(), boxes((10.0, 2.0, 0.4, 4.0, 0.0))
    turn = torch.from_numpy(rotation_z(0.7)).float()[None]
    flip = torch.diag(torch.tensor([1.0, -1.0, 1.0]))[None]
    (left,) = kept.remember(outputs(augment_boxes(own, turn[0]), [0.9]), None, [None], turn)
    torch.testing.assert_close(decode_boxes(left.objects.codes), own, atol=1e-5, rtol=0)
    again = kept.recall([past(left.objects, dt_s=0.0)], flip)
    assert again is not None
    torch.testing.assert_close(decode_boxes(again.proposals.codes[0]), augment_boxes(own, flip[0]), atol=1e-5, rtol=0)


def test_what_leaves_the_range_or_is_hardly_sure_is_padding() -> None:
    kept = memory(num_objects=5)
    own = boxes((39.0, 0.0, 0.0, 8.0, 0.0), (5.0, 0.0, 0.0, 0.0, 0.0))
    (left,) = kept.remember(outputs(own, [0.9, 0.5]), None, [None], NO_BDA)
    again = kept.recall([past(left.objects), None], NO_BDA.expand(2, -1, -1))
    assert again is not None and again.proposals.valid.tolist() == [[False, True], [False, False]]
    assert again.proposals.reference.isfinite().all() and again.proposals.codes.isfinite().all()
    faint = Objects(**{**left.objects.as_plain(), "confidence": torch.tensor([0.04, 0.05])})
    assert kept.recall([past(faint)], NO_BDA) is None and kept.recall([None], NO_BDA) is None


# -------------------------------------------------------------------------------------------- what stays, and ids


def test_ids_begin_at_their_score_and_stay() -> None:
    kept = memory(same_m=0.0)
    own = boxes((10.0, 0.0, 0.0, 0.0, 0.0), (0.0, 9.0, 0.0, 0.0, 0.0))
    (first,) = kept.remember(outputs(own, [0.15, 0.5]), None, [None], NO_BDA)
    assert first.query_ids.tolist() == [-1, 0] and first.objects.next_id == 1
    assert first.objects.ids.tolist() == [0, -1]  # best first
    again = kept.recall([past(first.objects)], NO_BDA)
    assert again is not None
    new = boxes((-20.0, 0.0, 0.0, 0.0, 0.0))
    both = torch.cat([new, decode_boxes(again.proposals.codes[0])])
    (second,) = kept.remember(outputs(both, [0.9, 0.4, 0.3]), again, [past(first.objects)], NO_BDA)
    assert second.query_ids.tolist() == [1, 0, 2]


def test_ids_are_not_given_again_after_all_objects_were_forgotten() -> None:
    kept = memory()
    (left,) = kept.remember(outputs(boxes((39.0, 0.0, 0.0, 8.0, 0.0)), [0.9]), None, [None], NO_BDA)
    assert kept.recall([past(left.objects)], NO_BDA) is None  # out of the range
    (next_left,) = kept.remember(outputs(boxes((1.0, 0.0, 0.0, 0.0, 0.0)), [0.9]), None, [past(left.objects)], NO_BDA)
    assert next_left.query_ids.tolist() == [1]


def test_confidence_fades_and_the_object_is_forgotten() -> None:
    kept = memory()
    (left,) = kept.remember(outputs(boxes((10.0, 0.0, 0.0, 0.0, 0.0)), [0.9]), None, [None], NO_BDA)
    sure = []
    for _ in range(8):
        again = kept.recall([past(left.objects)], NO_BDA)
        if again is None:
            break
        (left,) = kept.remember(
            outputs(decode_boxes(again.proposals.codes[0]), [0.02]), again, [past(left.objects)], NO_BDA
        )
        assert left.query_ids.tolist() == [-1]  # not seen: no box of the track
        sure += left.objects.confidence.tolist()
    assert sure == pytest.approx([0.9 * 0.6**k for k in range(1, len(sure) + 1)]) and len(sure) == 5
    forgetful = memory(decay=0.0)
    (left,) = forgetful.remember(outputs(boxes((10.0, 0.0, 0.0, 0.0, 0.0)), [0.9]), None, [None], NO_BDA)
    again = forgetful.recall([past(left.objects)], NO_BDA)
    (left,) = forgetful.remember(
        outputs(boxes((10.0, 0.0, 0.0, 0.0, 0.0)), [0.02]), again, [past(left.objects)], NO_BDA
    )
    assert not len(left.objects.ids)


def test_an_object_found_twice_is_kept_once_with_the_older_id() -> None:
    kept = memory()
    (left,) = kept.remember(outputs(boxes((10.0, 0.0, 0.0, 0.0, 0.0)), [0.9]), None, [None], NO_BDA)
    again = kept.recall([past(left.objects)], NO_BDA)
    twice = boxes((10.4, 0.0, 0.0, 0.0, 0.0), (12.5, 0.0, 0.0, 0.0, 0.0), (10.0, 0.0, 0.0, 0.0, 0.0))
    # half a car's length is 2 m
    (both,) = kept.remember(outputs(twice, [0.8, 0.7, 0.6]), again, [past(left.objects)], NO_BDA)
    assert both.query_ids.tolist() == [0, 1, -1] and len(both.objects.ids) == 2
    assert both.twice.tolist() == [False, False, True]
    (alone,) = kept.remember(outputs(twice, [0.8, 0.7, 0.6]), None, [None], NO_BDA)
    assert len(alone.objects.ids) == 2 and not alone.twice.any()  # a first frame answers as a model without memory
    (other,) = kept.remember(outputs(twice, [0.8, 0.7, 0.6], [1, 1, 0]), again, [past(left.objects)], NO_BDA)
    assert other.query_ids.tolist() == [1, 2, 0]  # of another class


@pytest.mark.parametrize("noise", [0, 1])
def test_an_object_out_of_sight_stays_where_and_what_it_was_and_gives_its_id_back(noise: int) -> None:
    """Its query looks elsewhere, and may say another class there; a new one that is plainly seen at the expected place
    is the object."""
    kept = memory()
    (left,) = kept.remember(outputs(boxes((10.0, 0.0, 0.0, 4.0, 0.0)), [0.9]), None, [None], NO_BDA)
    again = kept.recall([past(left.objects)], NO_BDA)
    astray = boxes((25.0, 9.0, 0.0, 0.0, 0.0))
    (hidden,) = kept.remember(outputs(astray, [0.03], [noise]), again, [past(left.objects)], NO_BDA)
    assert decode_boxes(hidden.objects.codes)[0, :2].tolist() == pytest.approx([12.0, 0.0], abs=1e-4)
    assert hidden.objects.scores.argmax(-1).tolist() == [0]
    again = kept.recall([past(hidden.objects)], NO_BDA)
    found = torch.cat([boxes((14.2, 0.0, 0.0, 4.0, 0.0)), astray])
    # its faded confidence, 0.324, is above the new one's score
    (seen,) = kept.remember(outputs(found, [0.3, 0.03], [0, noise]), again, [past(hidden.objects)], NO_BDA)
    assert seen.query_ids.tolist() == [0, -1] and seen.twice.tolist() == [False, True]
    assert decode_boxes(seen.objects.codes)[:, :2].tolist() == [pytest.approx([14.2, 0.0], abs=1e-4)]


def test_the_best_stay() -> None:
    kept = memory(num_objects=2, same_m=0.0)
    own = boxes(*((float(i), 0.0, 0.0, 0.0, 0.0) for i in range(4)))
    (left,) = kept.remember(outputs(own, [0.1, 0.8, 0.3, 0.6]), None, [None], NO_BDA)
    torch.testing.assert_close(left.objects.confidence, torch.tensor([0.8, 0.6]))
    assert left.objects.content[0].tolist() == list(range(8, 16))
    assert left.query_ids.tolist() == [-1, 0, -1, 1]


def test_peaks_beside_a_surer_object_of_the_past_make_no_query() -> None:
    kept = memory()
    (left,) = kept.remember(outputs(boxes((10.0, 0.0, 0.0, 0.0, 0.0)), [0.5]), None, [None], NO_BDA)
    again = kept.recall([past(left.objects)], NO_BDA)
    assert isinstance(again, Recalled)
    low, high = torch.tensor(RANGE[:3]), torch.tensor(RANGE[3:])
    centre = torch.tensor([[10.9, 0.0, 0.0], [11.1, 0.0, 0.0], [10.0, 0.5, 0.0], [10.0, 0.5, 0.0]])
    scores = torch.zeros(1, 4, CLASSES)
    scores[0, torch.arange(4), torch.tensor([0, 0, 1, 0])] = torch.tensor([0.4, 0.4, 0.4, 0.6])
    peaks = Proposals(((centre - low) / (high - low))[None], scores, torch.ones(1, 4, dtype=torch.bool), scores)
    assert kept.suppressed(peaks, again).tolist() == [[True, False, False, False]]


def test_it_starts_at_no_content_and_learns() -> None:
    kept = memory(forget_share=0.0).train()
    (left,) = kept.remember(outputs(boxes((10.0, 0.0, 0.0, 2.0, 0.0)), [0.5]), None, [None], NO_BDA)
    again = kept.recall([past(left.objects)], NO_BDA)
    assert again is not None and (kept.content_of(again) == 0).all()
    kept.content_of(again).sum().backward()
    assert kept.out.weight.grad is not None and kept.out.weight.grad.abs().sum() > 0
    torch.nn.init.eye_(kept.out.weight)
    content = kept.content_of(again)
    torch.testing.assert_close(content, torch.nn.functional.layer_norm(again.content, (CHANNELS,)))  # g = 1, b = 0


def test_a_share_of_training_goes_without() -> None:
    kept = memory(forget_share=1 / 3).train()
    (left,) = kept.remember(outputs(boxes((10.0, 0.0, 0.0, 0.0, 0.0)), [0.5]), None, [None], NO_BDA)
    torch.manual_seed(0)
    there = [kept.recall([past(left.objects)], NO_BDA) is not None for _ in range(300)]
    assert 170 < sum(there) < 230
    assert all(kept.eval().recall([past(left.objects)], NO_BDA) is not None for _ in range(20))


def test_a_memory_made_of_labels() -> None:
    own = boxes((10.0, 0.0, 0.0, 2.0, 0.0))
    made = memory().objects_of_boxes(own, torch.tensor([2]), torch.tensor([7]), 8)
    again = memory().recall([past(made, dt_s=1.0)], NO_BDA)
    assert again is not None and again.ids.tolist() == [[7]]
    expected = transform_boxes(torch.eye(4), own + torch.tensor([2.0, 0, 0, 0, 0, 0, 0, 0, 0]))
    torch.testing.assert_close(decode_boxes(again.proposals.codes[0]), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [{"decay": 1.0}, {"id_score": -0.1}, {"num_objects": 0}, {"num_objects": 1.5}])
def test_settings_out_of_range(options) -> None:
    with pytest.raises(ConfigError, match="object memory"):
        memory(**options)
