"""Matching all at once gives what one prediction after another does."""

from __future__ import annotations

import numpy as np
import pytest

from drivestack.bev.evaluation import matching
from drivestack.bev.evaluation.matching import match, nearest_truth, pairs_within


def one_by_one(groups, places, truth_groups, truth_places, rank, threshold):
    taken = np.full(len(groups), -1)
    free = set(range(len(truth_groups)))
    for p in np.argsort(rank):
        near = [(np.hypot(*(places[p] - truth_places[g])), g) for g in free if truth_groups[g] == groups[p]]
        near = [pair for pair in near if pair[0] < threshold]
        if near:
            taken[p] = min(near)[1]
            free.remove(taken[p])
    return taken


@pytest.mark.parametrize("seed", range(20))
def test_the_outcome_is_the_greedy_one(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "_PAIRS_AT_ONCE", [7, 50, 10_000][seed % 3])
    rng = np.random.default_rng(seed)
    groups, truth_groups = rng.integers(0, 4, rng.integers(0, 80)), rng.integers(0, 4, rng.integers(0, 40))
    places, truths = rng.uniform(0, 8, (len(groups), 2)), rng.uniform(0, 8, (len(truth_groups), 2))
    if seed % 2:  # many equal distances
        places, truths = np.round(places), np.round(truths)
    rank = rng.permutation(len(groups))
    pairs = pairs_within(groups, places, truth_groups, truths, 4.0)
    for threshold in (0.5, 2.0, 4.0):
        expected = one_by_one(groups, places, truth_groups, truths, rank, threshold)
        assert match(pairs, rank, len(truths), threshold).tolist() == expected.tolist()


@pytest.mark.parametrize("seed", range(6))
def test_the_nearest_of_the_group_is_found(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "_PAIRS_AT_ONCE", [1, 7, 10_000][seed % 3])
    rng = np.random.default_rng(seed)
    groups, truth_groups = rng.integers(0, 5, 60), rng.integers(0, 4, 25)  # group 4 has no object
    places, truths = rng.integers(0, 4, (60, 3)).astype(float), rng.integers(0, 4, (25, 3)).astype(float)
    nearest, distance = nearest_truth(groups, places, truth_groups, truths)
    for p in range(60):
        own = np.flatnonzero(truth_groups == groups[p])
        apart = np.linalg.norm(truths[own] - places[p], axis=1)
        wanted = (own[apart.argmin()], apart.min()) if len(own) else (-1, np.inf)
        assert (nearest[p], distance[p]) == pytest.approx(wanted)
