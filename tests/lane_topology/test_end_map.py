"""Points where lanes start and end: drawn where they are, found again, and lanes moved to them."""

import numpy as np
import pytest
import torch

from drivestack.geometry import BevGrid
from drivestack.lane_topology.curves import sample_curves
from drivestack.lane_topology.end_map import EndMap, EndMapOutputs, EndPoints, merge, snap

GRID = BevGrid(-51.0, -25.5, 51.0, 25.5, 68, 34)


@pytest.fixture
def end_map() -> EndMap:
    torch.manual_seed(0)
    return EndMap(8, GRID)


def lanes(*ends: tuple[tuple[float, float, float], tuple[float, float, float]]) -> torch.Tensor:
    """[n, 5, 3]: straight lanes."""
    t = torch.linspace(0, 1, 5)[:, None]
    return torch.stack([(1 - t) * torch.tensor(a) + t * torch.tensor(b) for a, b in ends])


TWO = lanes(((1.3, 2.2, 0.1), (30.4, 3.9, 0.4)), ((30.4, 3.9, 0.4), (49.9, -9.1, -0.2)))


def test_the_finer_grid_covers_the_lanes_own(end_map):
    outs = end_map(torch.randn(2, 8, 34, 68))
    assert (end_map.grid.num_y, end_map.grid.num_x, end_map.grid.cell_x_m) == (68, 136, 0.75)
    assert outs.heat.shape == (2, 2, 68, 136) and outs.places.shape == (2, 2, 68, 136, 3)


def test_a_map_that_says_its_targets_gives_the_points_back_exactly(end_map):
    heat, places, _ = end_map.targets(TWO)
    found = end_map.points(EndMapOutputs(torch.logit(heat[None], eps=1e-4), places[None]))
    for kind, at in enumerate((0, -1)):
        order = found.places[0, kind, :2, 0].argsort()
        torch.testing.assert_close(found.places[0, kind, :2][order], TWO[:, at])
        assert found.scores[0, kind, 1] > 0.99 and found.scores[0, kind, 2] < 0.01


def test_ends_outside_the_range_are_no_targets(end_map):
    heat, _, weight = end_map.targets(lanes(((60.0, 0.0, 0.0), (10.0, 26.0, 0.0)), ((0.0, 0.0, 0.0), (0.0, 60.0, 0.0))))
    assert [int((h >= 1).sum()) for h in heat] == [1, 0]
    assert weight[1].sum() == 0 and heat[1].sum() == 0
    empty = end_map.targets(torch.zeros(0, 5, 3))
    assert all(part.sum() == 0 for part in empty)


def test_lanes_that_part_share_their_point():
    fork = torch.tensor([[5.0, 0.0, 0.0], [5.0, 0.05, 0.0], [5.0, 3.5, 0.0]])
    torch.testing.assert_close(merge(fork), fork[[0, 2]])
    assert len(merge(torch.zeros(0, 3))) == 0


def test_heat_and_places_learn_to_point_between_cells(end_map):
    labels = TWO
    features = torch.zeros(1, 8, 34, 68)
    for line in sample_curves(labels, 200):
        cells, _ = GRID.cells_of(line.numpy())
        features[0, 0, cells[:, 1], cells[:, 0]] = 1
    features[0, 1:] = torch.randn(7, 34, 68, generator=torch.Generator().manual_seed(0))
    optimiser = torch.optim.Adam(end_map.parameters(), lr=3e-3)
    for _ in range(150):
        loss = sum(end_map.loss(end_map(features), [labels]).values())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    found = end_map.points(end_map(features))
    for kind, at in enumerate((0, -1)):
        gap = torch.cdist(labels[:, at], found.places[0, kind, :2]).min(1).values
        assert gap.max() < 0.2 and found.scores[0, kind, 1] > 0.3


def test_unlabelled_samples_add_nothing(end_map):
    features = torch.randn(2, 8, 34, 68)
    end_map.eval()
    alone, both = (end_map.loss(end_map(features[:n]), [TWO, None][:n]) for n in (1, 2))
    for name in alone:
        torch.testing.assert_close(both[name], alone[name])
    assert all(value == 0 for value in end_map.loss(end_map(features), [None, None]).values())


def points(start: list, end: list, score: float) -> EndPoints:
    return EndPoints(torch.tensor([[[start], [end]]]).float(), torch.full((1, 2, 1), score))


def test_snap_moves_an_end_by_its_weight_and_the_curve_with_it():
    (lane,) = lanes(((0.0, 0.0, 0.0), (8.0, 0.0, 0.0)))
    moved = snap(lane[None, None], points([0.0, 1.0, 0.5], [20.0, 0.0, 0.0], 0.8), 3.0, 1.0)[0, 0]
    weight = 0.8 * np.exp(-1)
    np.testing.assert_allclose(moved[0], [0, weight, weight / 2], rtol=1e-5)
    torch.testing.assert_close(moved[-1], lane[-1])  # its point is too far away
    np.testing.assert_allclose((moved - lane)[:, 1], weight * np.array([1, 0.75, 0.5, 0.25, 0]), rtol=1e-5)


def test_starts_move_to_starts_only_and_without_points_nothing_moves():
    (lane,) = lanes(((0.0, 0.0, 0.0), (8.0, 0.0, 0.0)))
    crossed = points([8.0, 0.5, 0.0], [0.0, 0.5, 0.0], 1.0)  # a start near the lane's end, an end near its start
    torch.testing.assert_close(snap(lane[None, None], crossed, 3.0, 1.0)[0, 0], lane)
    torch.testing.assert_close(snap(lane[None, None], points([0.0, 0.1, 0], [8.0, 0.1, 0], 0.0), 3.0, 1.0)[0, 0], lane)
