"""Street maps in the lane head: nothing at the start, no NaN without a map, and each sample sees its own."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from drivestack.core.street_maps import StreetLines
from drivestack.geometry import BevGrid
from drivestack.lane_topology.head import LaneTopologyHead
from drivestack.lane_topology.street_attention import StreetAttention
from support import toy_streets as toy

GRID = BevGrid(-50.0, -25.0, 50.0, 25.0, 20, 10)


def lines(count: int, seed: int = 0) -> StreetLines:
    generator = torch.Generator().manual_seed(seed)
    return StreetLines(torch.randn(count, 11, 2, generator=generator) * 10, torch.arange(count) % 3)


@pytest.fixture
def attention() -> StreetAttention:
    torch.manual_seed(0)
    return StreetAttention(16, GRID)


def opened(attention: StreetAttention) -> StreetAttention:
    torch.nn.init.normal_(attention.attention.out_proj.weight)
    return attention


def test_it_adds_exactly_nothing_at_the_start_and_learns_all_the_same(attention):
    features = torch.randn(2, 16, 10, 20)
    out = attention(features, [lines(3), None])
    assert torch.equal(out, features)
    out.square().sum().backward()
    assert attention.attention.out_proj.weight.grad.abs().max() > 0


def test_samples_without_a_map_are_finite_and_not_moved_by_the_others(attention):
    features = torch.randn(3, 16, 10, 20)
    opened(attention)
    together = attention(features, [lines(4), None, lines(1, seed=1)])
    assert together.isfinite().all()
    for b, own in enumerate((lines(4), None, lines(1, seed=1))):
        alone = attention(features[b : b + 1], [own])
        torch.testing.assert_close(alone[0], together[b], rtol=1e-4, atol=1e-5)
    nobody = attention(features, [])
    torch.testing.assert_close(nobody[1], together[1], rtol=1e-4, atol=1e-5)
    together.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in attention.parameters())


def test_a_map_without_streets_is_as_no_map(attention):
    features = torch.randn(1, 16, 10, 20)
    empty = StreetLines(torch.zeros(0, 11, 2), torch.zeros(0, dtype=torch.long))
    torch.testing.assert_close(opened(attention)(features, [empty]), attention(features, [None]))
    with pytest.raises(ValueError, match="street maps of 5 points a line, the head takes 11"):
        attention(features, [StreetLines(torch.zeros(1, 5, 2), torch.zeros(1, dtype=torch.long))])


def test_the_head_answers_with_and_without_maps_and_starts_as_without():
    features, levels, batch = toy.scenes(2)
    heads = []
    for further in ({}, dict(street_map=dict())):
        torch.manual_seed(0)
        heads.append(LaneTopologyHead(**toy.SMALL, **further).eval())
    maps = [lines(2), None]
    with torch.no_grad():
        plain = heads[0](features, levels, replace(batch, street_maps=maps))
        for own in (maps, []):
            mapped = heads[1](features, levels, replace(batch, street_maps=own))
            assert torch.equal(mapped.controls, plain.controls) and torch.equal(mapped.logits, plain.logits)
        opened(heads[1].streets)
        mapped = heads[1](features, levels, replace(batch, street_maps=maps))
        other = heads[1](features, levels, replace(batch, street_maps=[lines(2, seed=1), None]))
    assert not torch.equal(mapped.controls[:, 0], other.controls[:, 0])
    assert torch.equal(mapped.controls[:, 1], other.controls[:, 1])
    graphs = heads[1].predict(mapped, batch)
    assert all(np.isfinite(graph.centrelines).all() for graph in graphs)


def test_without_any_map_every_parameter_has_a_gradient(attention):
    """Under DDP a process whose sample has no map must not leave the others waiting."""
    opened(attention)(torch.randn(1, 16, 10, 20), [None]).sum().backward()
    assert all(p.grad is not None for p in attention.parameters())
    assert not attention.line.weight.grad.any() and attention.none.grad.any()
