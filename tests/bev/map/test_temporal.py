"""Fusion, the BEV augmentation's warp, v1's ego motion and GridMask agree with upstream."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from drivestack.bev.map.gridmask import GridMask, grid_mask
from drivestack.bev.map.temporal import ResNetFusion, fill_missing, warp_bev
from drivestack.bev.published.ego_motion import ego_shift, rotate_bev
from drivestack.geometry import BevGrid
from support.maps import map_of, tokens_of


def close(actual: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("name", "weights", "inter", "training"),
    [
        ("resnet_fusion_same_eval", "resnet_fusion_same_eval", 48, False),
        ("resnet_fusion_same_train", "resnet_fusion_same_eval", 48, True),
        ("resnet_fusion_proj_eval", "resnet_fusion_proj_eval", 24, False),
    ],
)
def test_fusion_agrees_with_upstream(case, name, weights, inter, training):
    ref = case(name)
    fusion = ResNetFusion(48, 16, inter).train(training)
    fusion.load_state_dict(ref.weights(weights))
    maps = [ref[f"in.x.{i}"] for i in range(3)]
    maps[1].requires_grad_()
    output = tokens_of(fusion(torch.cat(maps, 1)))
    close(output, ref["out.output"])
    ref.check_gradients(output, {"x1": maps[1]}, fusion)
    for key, value in ref.arrays.items():
        if key.startswith("out.bn_after."):
            close(fusion.state_dict()[key.removeprefix("out.bn_after.")], value)


def test_missing_frames_are_filled_per_sample():
    """Past from the next newer frame, future from the one before; copies without gradient."""
    bevs = [torch.full((2, 1, 1, 1), float(i), requires_grad=True) for i in range(5)]
    valid = torch.tensor([[False, True, True, False, False], [False, False, True, True, True]])
    filled = fill_missing(bevs, valid, current=2)
    assert torch.cat(filled, 3)[:, 0, 0].tolist() == [[1, 1, 2, 2, 2], [2, 2, 2, 3, 4]]
    sum(f.sum() for f in filled).backward()
    assert bevs[1].grad.flatten().tolist() == [1, 0] and bevs[2].grad.flatten().tolist() == [1, 1]
    absent = fill_missing([None, bevs[1], bevs[2]], torch.ones(2, 3, dtype=torch.bool), current=2)
    assert torch.equal(absent[0], bevs[1])


@pytest.mark.parametrize("row", range(12))
def test_warp_agrees_with_upstream(case, row):
    ref = case("bda_warp")
    height, width = ref[f"out.rows.{row}.hw"].tolist()
    grid = BevGrid(-51.2, -51.2, 51.2, 51.2, num_x=width, num_y=height)
    bda = torch.linalg.inv(ref[f"out.rows.{row}.bda_inv"].double()).float()
    bev = map_of(ref[f"out.rows.{row}.bev"], height, width)
    close(tokens_of(warp_bev(bev, bda[None], grid)), ref[f"out.rows.{row}.warped"])


def bda(angle_deg: float, scale: float = 1.0, flip_x: bool = False) -> Tensor:
    c, s = math.cos(math.radians(angle_deg)) * scale, math.sin(math.radians(angle_deg)) * scale
    flip = torch.diag(torch.tensor([-1.0 if flip_x else 1.0, 1.0, 1.0]))
    return flip @ torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, scale]])


@pytest.mark.parametrize("grid", [BevGrid(-20, -20, 20, 20, 40, 40), BevGrid(-10, -30, 30, 10, 80, 20)])
def test_warp_moves_what_lies_there_to_where_bda_puts_it(grid):
    """Also on ranges that are rectangular or not centred, unlike docs/quirks.md#bev-augmentation-in-fractions."""
    matrix = bda(20, 1.05, flip_x=True)
    centres = torch.from_numpy(grid.cell_centres()).float()  # [num_y, num_x, 2]
    blob = torch.exp(-((centres - torch.tensor([-4.0, -8.0])) ** 2).sum(-1) / 8)[None, None]
    warped = warp_bev(blob, matrix[None], grid)[0, 0]
    mean = (warped[..., None] * centres).sum((0, 1)) / warped.sum()
    close(mean, (matrix[:2, :2] @ torch.tensor([-4.0, -8.0])), 0.05)


def test_warp_treats_samples_apart():
    grid = BevGrid(-20, -20, 20, 20, 10, 10)
    bev = torch.rand(2, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    matrices = torch.stack([bda(10), torch.eye(3)])
    both = warp_bev(bev, matrices, grid)
    close(both[:1], warp_bev(bev[:1], matrices[:1], grid), 1e-6)
    close(both[1], bev[1], 1e-5)


def test_v1_rotation_agrees_with_upstream(case):
    ref = case("v1_rotate_shift")
    bev = ref["in.x"][None].clone()  # [1, C, 10, 10]
    for name, degrees in [("0p0", 0.0), ("3p0", 3.0), ("m7p5", -7.5), ("90p0", 90.0)]:
        assert torch.equal(rotate_bev(bev, torch.tensor([degrees]), (5, 5))[0], ref[f"out.rotated.{name}"]), name
    assert torch.equal(bev[0], ref["in.x"])  # not rotated in place


def test_v1_rotates_about_cell_100_on_any_grid(case):
    ref = case("v1_rotate_shift")
    rotated = rotate_bev(ref["in.x"][None], torch.tensor([3.0]), (100, 100))
    assert torch.equal(rotated[0], ref["out.rotated_center100_3deg"])


def test_v1_shift_agrees_with_upstream(case):
    ref = case("v1_rotate_shift")
    grid = BevGrid(-51.2, -51.2, 51.2, 51.2, 10, 10)
    close(ego_shift(ref["in.can_bus"][None], grid)[0], ref["out.shift_xy"], 1e-9)


@pytest.mark.parametrize("row", range(6))
def test_gridmask_agrees_with_upstream(case, row):
    ref = case("gridmask")
    rng = np.random.RandomState(int(ref[f"out.rows.{row}.seed"]))
    if rng.rand() > 0.7:
        assert ref[f"out.rows.{row}.same"]
        return
    period = rng.randint(2, 32)
    start_y, start_x = rng.randint(period), rng.randint(period)
    mask = grid_mask(32, 48, period, start_y, start_x)
    assert torch.equal(mask.to(torch.uint8), ref[f"out.rows.{row}.mask"])


def test_gridmask_only_in_training_and_one_mask_for_all():
    torch.manual_seed(1)
    images = torch.ones(2, 3, 32, 48)
    module = GridMask(probability=1.0)
    masked = module(images)
    assert 0 < masked.mean() < 1 and torch.equal(masked, masked[:1, :1].expand_as(masked))
    assert torch.equal(module.eval()(images), images)
    assert torch.equal(GridMask(probability=0.0)(images), images)
