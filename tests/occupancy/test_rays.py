"""The ray loss against the same written out ray by ray, and its rays against RayIoU's."""

import math

import numpy as np
import pytest
import torch

from drivestack.core.errors import ConfigError
from drivestack.geometry import OCC3D_GRID as GRID
from drivestack.occupancy import rays
from drivestack.occupancy.evaluation.rayiou import cast_rays, ray_fan
from drivestack.occupancy.rays import RayLoss

FREE = 17
EGO_FROM_LIDAR = torch.tensor([[0.0, 1, 0, 0.94], [-1, 0, 0, 0], [0, 0, 1, 1.84], [0, 0, 0, 1]])


@pytest.fixture
def street():
    """Ground, a wall 10 m ahead and a box to the right."""
    semantics = torch.full(GRID.shape, FREE, dtype=torch.uint8)
    semantics[:, :, 0:2] = 11
    semantics[125:127, :, 2:12] = 15
    semantics[95:105, 80:90, 2:6] = 4
    return semantics


def log_table(seed=0, classes=18):
    """Log probabilities of every voxel, smooth enough that rays get through."""
    logits = torch.randn(math.prod(GRID.shape), classes, generator=torch.Generator().manual_seed(seed))
    logits[:, FREE] += 4
    return logits.log_softmax(-1)


def slow_loss(chosen, table, with_classes):
    """Mean over rays of -log sum of w_k, one voxel after the other."""
    total = 0.0
    for r in range(len(chosen.classes)):
        passed, hit = 1.0, 0.0
        for k in range(chosen.voxels.shape[1]):
            if not chosen.valid[r, k]:
                continue
            p = table[chosen.voxels[r, k]].exp().double()
            occupied = p[chosen.classes[r]] if with_classes else 1 - p[FREE]
            if chosen.window[r, k]:
                hit += passed * occupied
            passed *= p[FREE]
        total -= math.log(hit)
    return total / len(chosen.classes)


@pytest.mark.parametrize("with_classes", [True, False])
def test_the_loss_is_the_probability_of_the_labels_hit_ray_by_ray(street, with_classes):
    torch.manual_seed(0)
    settings = RayLoss(weight=0.5, num_rays=30, with_classes=with_classes)
    chosen, table = settings.draw(street, None, FREE, EGO_FROM_LIDAR), log_table()
    found = settings(chosen, lambda voxels: table[voxels], FREE)
    assert len(chosen.classes) > 10
    assert found.item() == pytest.approx(0.5 * slow_loss(chosen, table, with_classes), rel=1e-4)


def test_the_steps_are_the_voxels_on_the_way_to_the_hit(street):
    """Straight ahead at 2.2 m height: each voxel once, up to 1 m behind the wall's front."""
    origin, ahead = torch.tensor([[0.1, 0.1, 2.2]]), torch.tensor([[1.0, 0.0, 0.0]])
    hit_m, voxel = rays.first_hits(street, origin, ahead, FREE)
    assert hit_m.item() == pytest.approx(9.9, abs=0.11) and street.flatten()[voxel].item() == 15
    chosen = RayLoss().place_steps(origin, ahead, hit_m, torch.tensor([15]))
    on_the_way = chosen.voxels[chosen.valid] // (GRID.num_y * GRID.num_z)
    assert (
        on_the_way[-5:].tolist()
        == [123, 124, 125, 126, 127]
        == sorted((chosen.voxels[chosen.window] // (GRID.num_y * GRID.num_z)).tolist())
    )
    assert set(on_the_way.tolist()) >= set(range(101, 123)) and len(set(on_the_way.tolist())) == len(on_the_way)


def test_a_hit_nearer_than_the_tolerance_counts_from_the_start():
    semantics = torch.full(GRID.shape, FREE, dtype=torch.uint8)
    semantics[101] = 15  # 0.3 m ahead
    origin, ahead = torch.tensor([[0.1, 0.1, 2.2]]), torch.tensor([[1.0, 0.0, 0.0]])
    chosen = RayLoss().place_steps(
        origin, ahead, *[rays.first_hits(semantics, origin, ahead, FREE)[0]], torch.tensor([15])
    )
    cells = (chosen.voxels[chosen.valid] // (GRID.num_y * GRID.num_z)).tolist()
    assert cells == [100, 101, 102, 103][: len(cells)] and bool(chosen.window[chosen.valid].all())


def test_first_hits_are_those_of_rayiou(street):
    origin = EGO_FROM_LIDAR[:3, 3].numpy()
    ((kinds, _, voxels),) = cast_rays([street.numpy()], origin[None], FREE)
    directions = torch.from_numpy(ray_fan())
    hits_m, found = rays.first_hits(street, torch.from_numpy(origin).expand_as(directions), directions, FREE)
    hit = torch.isfinite(hits_m).numpy()
    assert (hit == (kinds != FREE)).mean() > 0.999
    # a corner that a ray cuts by less than 0.1 m may be missed: then it is the next voxel, mostly of the same surface
    cells = [np.stack(np.unravel_index(own[hit], GRID.shape), -1) for own in (found.numpy(), voxels)]
    gap = np.abs(cells[0] - cells[1]).max(1)
    assert (gap == 0).mean() > 0.8 and (gap <= 1).mean() > 0.999
    assert (street.flatten()[found].numpy()[hit] == kinds[hit]).mean() > 0.995
    away_m = np.linalg.norm(GRID.centres_of(cells[0]) - origin, axis=1)
    assert np.abs(away_m - hits_m.numpy()[hit]).max() < 0.4


def test_a_perfect_answer_costs_nothing_and_a_veil_in_front_costs_much(street):
    torch.manual_seed(1)
    settings = RayLoss(weight=1.0)
    chosen = settings.draw(street, None, FREE, EGO_FROM_LIDAR)
    costs = []
    veiled = street.clone()
    veiled[112, :, 2:12] = 15  # 5 m in front of the wall
    for semantics in (street, veiled):
        table = torch.nn.functional.one_hot(semantics.flatten().long(), 18).float().clamp(1e-4, 1 - 1e-4).log()
        costs.append(settings(chosen, lambda voxels, table=table: table[voxels], FREE).item())
    assert costs[0] < 0.01 and costs[1] > 1


def test_gradients_agree_with_finite_differences(street):
    torch.manual_seed(2)
    settings = RayLoss(num_rays=4)
    chosen = settings.draw(street, None, FREE, EGO_FROM_LIDAR)
    voxel, _ = rays.unique_by_height(chosen.voxels)
    logits = log_table()[voxel].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: settings(chosen, lambda _: x.log_softmax(-1), FREE), logits)


def test_only_observed_hits_count(street):
    torch.manual_seed(3)
    observed = torch.zeros(GRID.shape, dtype=torch.bool)
    assert not len(RayLoss().draw(street, observed, FREE, EGO_FROM_LIDAR).classes)
    observed[street == 15] = True
    assert set(RayLoss().draw(street, observed, FREE, EGO_FROM_LIDAR).classes.tolist()) == {15}


def test_origins_spread_along_the_drive_and_none_looks_out_of_a_wall(street):
    torch.manual_seed(4)
    wide = RayLoss(num_rays=400, spread_m=30.0).draw(street, None, FREE, EGO_FROM_LIDAR)
    begins = wide.voxels[:, 0] // (GRID.num_y * GRID.num_z)
    assert begins.min() < 60 and begins.max() > 140
    assert not ((begins == 125) | (begins == 126)).any()


def test_directions_have_the_pitches_of_the_fan():
    torch.manual_seed(5)
    drawn, fan = rays.draw_directions(20000, torch.device("cpu")), torch.from_numpy(ray_fan())
    torch.testing.assert_close(drawn.norm(dim=1), torch.ones(20000))
    quantiles = torch.linspace(0.15, 0.95, 7)
    torch.testing.assert_close(drawn[:, 2].quantile(quantiles), fan[:, 2].quantile(quantiles), atol=0.03, rtol=0)
    assert drawn[:, :2].mean(0).abs().max() < 0.02


@pytest.mark.parametrize("settings", [{"num_rays": 0}, {"steps": 5}, {"tolerance_m": 0.0}, {"spread_m": -1.0}])
def test_settings_that_make_no_rays_are_refused(settings):
    with pytest.raises(ConfigError, match="ray_loss"):
        RayLoss(**settings)
