"""Velocities and headings from the places where an object was."""

from __future__ import annotations

import math

import pytest
import torch

from drivestack.bev.boxes.box_coder import decode_boxes, encode_boxes
from drivestack.bev.boxes.head import QueryOutputs
from drivestack.bev.boxes.memory import ObjectMemory, Past
from drivestack.bev.boxes.trails import TrailVelocity
from drivestack.geometry import invert_pose, pose, rotation_z

CHANNELS, RANGE = 8, (-40.0, -40.0, -5.0, 40.0, 40.0, 3.0)


def trusting(line: int, heading: float = 0.0, places: tuple[int, ...] = (1, 2, 4)) -> TrailVelocity:
    """Trusts one line alone (0: the network), and the direction of motion by a share."""
    made = TrailVelocity(CHANNELS, places)
    with torch.no_grad():
        made.choice[-1].bias[:-1] = -100.0
        made.choice[-1].bias[line] = 100.0
        made.choice[-1].bias[-1] = 100.0 if heading else -100.0
    return made


def codes(*boxes: tuple[float, ...]) -> torch.Tensor:
    """[1, n, 10] of x, y, yaw, vx, vy."""
    found = torch.zeros(len(boxes), 9)
    found[:, 3:6] = torch.tensor([4.0, 2.0, 1.5])
    found[:, [0, 1, 6, 7, 8]] = torch.tensor(boxes)
    return encode_boxes(found)[None]


def trail(velocity: tuple[float, float], ages: list[float], at: tuple[float, float] = (5.0, 3.0)) -> torch.Tensor:
    """[1, 1, T, 3] of an object of constant velocity that is at ``at`` now."""
    age = torch.tensor(ages)
    xy = torch.tensor(at) - age[:, None] * torch.tensor(velocity)
    return torch.cat([torch.where(age[:, None] > 0, xy, 0.0), age[:, None]], 1)[None, None]


def smoothing(line: int, share: float) -> TrailVelocity:
    """Draws places by a share towards one line (from 1 on)."""
    made = TrailVelocity(CHANNELS, (1, 2, 4), smooth=True)
    with torch.no_grad():
        made.place[-1].bias[line - 1] = 100.0
        made.place[-1].bias[-1] = math.atanh(share)
    return made


@pytest.mark.parametrize("ages", [[0.5, 1.0, 1.5, 2.0], [0.5, 0.0, 1.5, 2.1], [0.0, 0.7, 0.0, 0.0]])
def test_all_lines_through_places_on_a_line_have_its_velocity(ages) -> None:
    made = TrailVelocity(CHANNELS, (1, 2, 4))
    found = made.lines(torch.tensor([[[5.0, 3.0]]]), trail((4.0, -1.0), ages))
    counts = [sum(age > 0 for age in ages[:n]) for n in (1, 2, 4)]
    for i, count in enumerate(counts):
        expected = [4.0, -1.0] if count else [0.0, 0.0]
        assert found.velocities[0, 0, i].tolist() == pytest.approx(expected, abs=1e-5)
    assert found.apart.max() < 1e-3
    now = found.middle - found.velocities * found.middle_s[..., None]
    torch.testing.assert_close(now, torch.tensor([5.0, 3.0]).expand(1, 1, 3, 2), rtol=0, atol=1e-4)
    assert found.new[0, 0].tolist() == [count > before for count, before in zip(counts, [0, *counts])]


def test_the_longest_line_is_the_least_squares_one() -> None:
    torch.manual_seed(0)
    noisy = trail((4.0, -1.0), [0.5, 1.0, 1.5, 2.0])
    noisy[..., :2] += torch.randn(1, 1, 4, 2)
    found = trusting(3)(torch.zeros(1, 1, CHANNELS), codes((5.0, 3.0, 0.0, 9.0, 9.0)), noisy)
    times = torch.cat([torch.zeros(1), -noisy[0, 0, :, 2]]).double()
    points = torch.cat([torch.tensor([[5.0, 3.0]]), noisy[0, 0, :, :2]]).double()
    expected = torch.linalg.lstsq(torch.stack([times, torch.ones(5)], 1), points).solution[0]
    assert found[0, 0, 8:].tolist() == pytest.approx(expected.tolist(), abs=1e-4)
    rest = (
        points
        - torch.stack([times, torch.ones(5)], 1)
        @ torch.linalg.lstsq(torch.stack([times, torch.ones(5)], 1), points).solution
    )
    apart = trusting(3).lines(torch.tensor([[[5.0, 3.0]]]), noisy).apart[0, 0, 2]
    assert float(apart) == pytest.approx(float(rest.square().sum(-1).mean().sqrt()), abs=1e-4)


def test_an_object_without_earlier_places_keeps_the_networks_word_to_the_bit() -> None:
    own = codes((5.0, 3.0, 0.4, 2.0, 1.0), (1.0, 1.0, -2.0, 0.0, 0.3))
    made = trusting(2, heading=1.0)
    nothing = torch.zeros(1, 2, 4, 3)
    assert torch.equal(made(torch.randn(1, 2, CHANNELS), own, nothing), own)
    one = torch.cat([trail((4.0, -1.0), [0.5, 0.0, 0.0, 0.0]), nothing[:, :1]], 1)
    found = made(torch.randn(1, 2, CHANNELS), own, one)
    assert torch.equal(found[:, 1], own[:, 1]) and not torch.equal(found[:, 0], own[:, 0])
    assert torch.equal(found[..., :6], own[..., :6])


def test_a_place_is_drawn_to_the_mean_of_places_moved_on() -> None:
    own = codes((5.0, 4.0, 0.0, 4.0, -1.0))  # a metre to the left of where it should be; the velocity is right
    seen, made = trail((4.0, -1.0), [0.5, 1.0, 1.5, 2.0], at=(5.0, 3.0)), smoothing(3, 0.5)
    with torch.no_grad():
        made.choice[-1].bias[0] = 100.0
    found = made(torch.zeros(1, 1, CHANNELS), own, seen)
    assert found[0, 0, :2].tolist() == pytest.approx([5.0, 4.0 - 0.5 * 0.8], abs=1e-4)  # four of five places at 3
    assert torch.equal(found[..., 2:6], own[..., 2:6])
    assert torch.equal(made(torch.zeros(1, 1, CHANNELS), own, torch.zeros(1, 1, 4, 3)), own)


def test_places_stay_to_the_bit_before_anything_was_learned() -> None:
    own, content = codes((5.0, 3.0, 0.4, 2.0, 1.0)), torch.randn(1, 1, CHANNELS)
    seen = trail((4.0, -1.0), [0.5, 1.0, 0.0, 0.0], at=(9.0, 9.0))
    assert torch.equal(TrailVelocity(CHANNELS, smooth=True)(content, own, seen)[..., :6], own[..., :6])


def test_a_walker_seen_from_behind_heads_where_it_walks() -> None:
    own = codes((5.0, 3.0, math.pi, 0.0, 0.0))
    found = trusting(3, heading=1.0)(torch.zeros(1, 1, CHANNELS), own, trail((1.5, 1.5), [0.5, 1.0, 1.5, 2.0]))
    assert decode_boxes(found)[0, 0, 6:].tolist() == pytest.approx([math.pi / 4, 1.5, 1.5], abs=1e-4)


def test_a_scene_seen_from_another_side_has_the_same_answer() -> None:
    torch.manual_seed(0)
    made = TrailVelocity(CHANNELS, (1, 2, 4), smooth=True)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    boxes = torch.zeros(1, 3, 9)
    boxes[..., :2], boxes[..., 6:] = torch.randn(1, 3, 2), torch.randn(1, 3, 3)
    boxes[..., 3:6] = 1.0
    content, places = torch.randn(1, 3, CHANNELS), torch.rand(1, 3, 4, 3) + 0.1
    turn = torch.from_numpy(rotation_z(2.0)[:2, :2]).float()
    turned = boxes.clone()
    turned[..., :2], turned[..., 7:] = boxes[..., :2] @ turn.T, boxes[..., 7:] @ turn.T
    turned[..., 6] += 2.0
    moved = torch.cat([places[..., :2] @ turn.T, places[..., 2:]], -1)
    here = decode_boxes(made(content, encode_boxes(boxes), places))
    there = decode_boxes(made(content, encode_boxes(turned), moved))
    torch.testing.assert_close(there[..., 7:], here[..., 7:] @ turn.T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(there[..., :2], here[..., :2] @ turn.T, rtol=1e-4, atol=1e-4)
    assert (here[..., :2] - boxes[..., :2]).norm(dim=-1).max() > 0.01
    assert ((there[..., 6] - here[..., 6] - 2.0).cos() > 1 - 1e-5).all()


def test_gradients_reach_the_choice_and_the_networks_velocity() -> None:
    made = TrailVelocity(CHANNELS, (1, 2), smooth=True)
    own = codes((5.0, 3.0, 0.4, 2.0, 1.0)).requires_grad_()
    made(torch.randn(1, 1, CHANNELS), own, trail((1.0, 0.0), [0.5, 1.0], at=(6.0, 3.0))).square().sum().backward()
    assert own.grad[0, 0, 8:].abs().min() > 0
    assert all(parameter.grad is not None for parameter in made.parameters())
    assert made.choice[-1].weight.grad.abs().sum() > 0 and made.place[-1].weight.grad[-1].abs().sum() > 0


def test_it_refuses_lines_through_no_places() -> None:
    for places in ((), (2, 1), (0, 1), (1, 1)):
        with pytest.raises(ValueError, match="places"):
            TrailVelocity(CHANNELS, places)


# ------------------------------------------------------------------------------------------ in the object memory


def drive(made: ObjectMemory, recalls: bool, bda: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The measured and the true velocity of a car after six frames of a drive that turns; ``recalls``: whether its own
    query comes back, or a new one finds it near the remembered place."""
    own, velocity, remembered, last = None, torch.tensor([3.0, 1.0, 0.0]), None, pose(rotation_z(0.0), [0.0] * 3)
    for k in range(6):
        ego = pose(rotation_z(0.1 * k), [2.0 * k, 0.3 * k, 0.0])
        ego_from_world = torch.from_numpy(invert_pose(ego))
        world = torch.tensor([10.0, 2.0, 0.0]) + 0.5 * k * velocity
        place = (ego_from_world[:3, :3].float() @ world + ego_from_world[:3, 3].float()) @ bda[0].T
        past = None
        if remembered is not None:
            motion = ego_from_world @ torch.from_numpy(last)
            past = Past(remembered.objects, motion, 0.5)
        recalled = made.recall([past], bda)
        count = 0 if recalled is None else recalled.ids.shape[1]
        code = codes((float(place[0]), float(place[1]), 0.0, 0.0, 0.0))
        logits = torch.tensor([[[[4.0, -5.0]]]])
        empty = codes((-30.0, -30.0, 0.0, 0.0, 0.0))
        rows = [code] + [empty] * count if not recalls or not count else [empty, code]
        score = [logits] + [logits - 20] * count if not recalls or not count else [logits - 20, logits]
        own = QueryOutputs(torch.cat(score, 2), torch.cat(rows, 1)[None], 1, hidden=torch.zeros(1, 1 + count, CHANNELS))
        own = made.measured(own, recalled)
        (remembered,) = made.remember(own, recalled, [past], bda)
        last = ego
    now = ego_from_world[:3, :3].float() @ velocity @ bda[0].T
    best = int(own.cls_logits[-1, 0, :, 0].argmax())
    return own.box_codes[-1, 0, best, 8:], now[:2]


@pytest.mark.parametrize("recalls", [True, False])
@pytest.mark.parametrize("turned", [False, True])
def test_the_memory_measures_a_car_from_a_car_that_turns(recalls, turned) -> None:
    bda = torch.eye(3)[None]
    if turned:
        bda = torch.from_numpy(rotation_z(0.7)).float()[None] @ torch.diag(torch.tensor([1.0, -1.0, 1.0]))
    made = ObjectMemory(CHANNELS, 2, RANGE, velocity=dict(type=TrailVelocity, places=(1, 2, 4)), same_m=2.0).eval()
    with torch.no_grad():
        made.velocity.choice[-1].bias[:-1] = torch.tensor([-100.0, -100.0, -100.0, 100.0])
    found, expected = drive(made, recalls, bda)
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-3)


def test_what_is_remembered_are_places_as_they_were_seen() -> None:
    made = ObjectMemory(CHANNELS, 2, RANGE, velocity=smoothing(1, 0.9), same_m=2.0).eval()
    left, still = None, torch.eye(4, dtype=torch.float64)
    for k, x in enumerate((10.0, 11.0, 10.0)):
        past = None if left is None else Past(left.objects, still, 0.5)
        recalled = made.recall([past], torch.eye(3)[None])
        count = 0 if recalled is None else recalled.ids.shape[1]
        rows = torch.cat([codes((x, 0.0, 0.0, 0.0, 0.0)), *[codes((-30.0, 0.0, 0.0, 0.0, 0.0))] * count], 1)
        logits = torch.tensor([[4.0, -5.0]] + [[-16.0, -16.0]] * count)[None, None]
        seen = QueryOutputs(logits, rows[None], 1, hidden=torch.zeros(1, 1 + count, CHANNELS))
        measured = made.measured(seen, recalled)
        (left,) = made.remember(measured, recalled, [past], torch.eye(3)[None], seen=seen)
        assert not k or abs(measured.box_codes[-1, 0, 0, 0].item() - x) > 0.05
    assert left.objects.codes[0, 0] == pytest.approx(10.0)
    assert left.objects.trail[0, :2, 0].tolist() == pytest.approx([11.0, 10.0])
