"""Orders are complete, repeatable from any position, and keep scenes together where they promise it."""

from __future__ import annotations

from itertools import islice, pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from drivestack.data_tools.clips.sampler import ResumableSampler, SceneOrderSampler, scene_runs

SCENES = ["a"] * 7 + ["b"] * 3 + ["c"] * 12 + ["d"]


@pytest.fixture
def dataset() -> SimpleNamespace:
    return SimpleNamespace(scene_tokens=SCENES)


def take(sampler, count: int) -> list:
    return list(islice(iter(sampler), count))


@pytest.mark.parametrize("run_length", [1, 4])
def test_a_resumed_order_goes_on_where_it_stopped(dataset, run_length):
    whole = take(ResumableSampler(dataset, seed=5, run_length=run_length), 80)
    for stop in (0, 1, 23, 46, 61):
        first = ResumableSampler(dataset, seed=5, run_length=run_length)
        assert take(first, stop) == whole[:stop]
        resumed = ResumableSampler(dataset, seed=0, run_length=run_length)
        resumed.load_state_dict(first.state_dict())
        assert take(resumed, 80 - stop) == whole[stop:]
    ahead = ResumableSampler(dataset, seed=5, run_length=run_length)
    take(ahead, 30)  # prefetching workers
    resumed = ResumableSampler(dataset, seed=5, run_length=run_length)
    resumed.load_state_dict(ahead.state_dict(consumed=24))
    assert take(resumed, 10) == whole[24:34]


@pytest.mark.parametrize("run_length", [1, 3])
def test_every_epoch_has_every_clip_once_in_a_new_order(dataset, run_length):
    n = len(SCENES)
    items = take(ResumableSampler(dataset, seed=1, run_length=run_length), 3 * n)
    epochs = [[index for index, _ in items[i * n : (i + 1) * n]] for i in range(3)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [draw for _, draw in items] == list(range(3 * n))
    assert items != take(ResumableSampler(dataset, seed=2, run_length=run_length), 3 * n)


def test_ranks_deal_out_the_order_of_one_process(dataset):
    whole = take(ResumableSampler(dataset, seed=3), 60)
    ranks = [take(ResumableSampler(dataset, seed=3, rank=r, world_size=3), 20) for r in range(3)]
    assert [item for step in zip(*ranks) for item in step] == whole
    assert len(ResumableSampler(dataset, rank=0, world_size=3)) == 8


def test_runs_stay_within_a_scene_in_time_order(dataset):
    items = [index for index, _ in take(ResumableSampler(dataset, seed=0, run_length=4), len(SCENES))]
    follows = sum(b == a + 1 and SCENES[a] == SCENES[b] for a, b in pairwise(items))
    assert follows > len(SCENES) // 2
    with pytest.raises(ValueError, match="run_length"):
        ResumableSampler(dataset, run_length=0)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_evaluation_order_covers_all_clips_once_with_whole_scenes(dataset, world_size):
    ranks = [list(SceneOrderSampler(dataset, rank=r, world_size=world_size)) for r in range(world_size)]
    assert [i for rank in ranks for i in rank] == list(range(len(SCENES)))
    assert [len(SceneOrderSampler(dataset, rank=r, world_size=world_size)) for r in range(world_size)] == [
        len(rank) for rank in ranks
    ]
    for rank in ranks:
        others = set(range(len(SCENES))) - set(rank)
        assert not {SCENES[i] for i in rank} & {SCENES[i] for i in others}


def test_scene_runs_are_found_in_any_naming():
    runs = scene_runs(["z", "z", "a", "m", "m"])
    assert [run.tolist() for run in runs] == [[0, 1], [2], [3, 4]]
    assert np.concatenate(runs).tolist() == list(range(5))
