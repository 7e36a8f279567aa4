"""Orders are complete, repeatable from any position, and keep scenes together where they promise it."""

from __future__ import annotations

from itertools import islice, pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from drivestack.core.errors import ConfigError
from drivestack.data_tools.clips.sampler import (
    ResumableSampler,
    SceneOrderSampler,
    StreamingSampler,
    StreamStep,
    scene_runs,
)

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


def test_streams_walk_through_scenes_in_time_and_shuffle_only_scenes(dataset):
    sampler = StreamingSampler(dataset, seed=2, batch_size=3)
    items, scenes = take(sampler, 3 * 60), scene_runs(SCENES)
    for slot in range(3):
        own = items[slot::3]
        draws = list(dict.fromkeys(item.draw for item in own))
        passes = [[item.clip for item in own if item.draw == draw] for draw in draws]
        whole = {run[0]: run.tolist() for run in scenes}
        assert all(each == whole[each[0]] for each in passes[1:-1])
        first = next(run.tolist() for run in scenes if passes[0][0] in run)
        assert passes[0] == first[-len(passes[0]) :]  # begun in its middle
        assert passes[-1] == whole[passes[-1][0]][: len(passes[-1])]
    assert len({item.draw for item in items[:3]}) == 3
    passes = [sampler.sequence(number)[0] for number in range(8)]  # two epochs
    assert sorted(passes[:4]) == sorted(passes[4:]) == sorted(run[0] for run in scenes)
    order = lambda seed: [StreamingSampler(dataset, seed=seed).sequence(n)[0] for n in range(12)]
    assert len({tuple(order(seed)) for seed in range(6)}) > 3


def test_streams_resume_at_any_position(dataset):
    whole = take(StreamingSampler(dataset, seed=5, batch_size=2), 120)
    assert all(isinstance(item, StreamStep) for item in whole)
    for stop in (0, 1, 23, 64, 111):
        resumed = StreamingSampler(dataset, batch_size=2)
        resumed.load_state_dict({"position": stop, "seed": 5})
        assert take(resumed, 120 - stop) == whole[stop:]
    sampler = StreamingSampler(dataset, seed=5, batch_size=2)
    take(sampler, 90)  # prefetching workers
    assert [sampler.at(p) for p in (40, 90, 3)] == [whole[40], whole[90], whole[3]]


@pytest.mark.parametrize(("world_size", "batch_size"), [(2, 3), (3, 2), (6, 1)])
def test_ranks_share_the_slots_of_one_process(dataset, world_size, batch_size):
    one = take(StreamingSampler(dataset, seed=1, batch_size=6), 6 * 40)
    steps = [set(one[i : i + 6]) for i in range(0, len(one), 6)]
    ranks = [
        take(StreamingSampler(dataset, seed=1, batch_size=batch_size, rank=r, world_size=world_size), 40 * batch_size)
        for r in range(world_size)
    ]
    for i, step in enumerate(steps):
        assert {item for own in ranks for item in own[i * batch_size : (i + 1) * batch_size]} == step


def test_scenes_are_cut_into_sequences_of_about_equal_length(dataset):
    sampler = StreamingSampler(dataset, sequence_frames=4)
    assert [len(own) for own in sampler.sequences] == [4, 3, 3, 4, 4, 4, 1]
    assert np.concatenate(sampler.sequences).tolist() == list(range(len(SCENES)))
    assert len(StreamingSampler(dataset, rank=0, world_size=3)) == 8


def test_streams_show_every_frame_about_equally_often():
    sampler = StreamingSampler(SimpleNamespace(scene_tokens=[s for s in "abcdef" for _ in range(5)]), batch_size=3)
    counts = np.bincount([item.clip for item in take(sampler, 300)], minlength=30)
    assert counts.min() >= 9 and counts.max() <= 11


def test_places_of_the_batch_take_several_streams_by_turns(dataset):
    by_turns = take(StreamingSampler(dataset, seed=4, interleave=3), 120)
    assert by_turns == take(StreamingSampler(dataset, seed=4, batch_size=3), 120)
    both = StreamingSampler(dataset, seed=4, batch_size=2, interleave=3)
    assert both.slots == 6 and set(take(both, 6)) == set(take(StreamingSampler(dataset, seed=4, batch_size=6), 6))


@pytest.mark.parametrize(
    "wrong", [dict(batch_size=0), dict(sequence_frames=0), dict(seed=-1), dict(interleave=0), dict(batch_size="2")]
)
def test_wrong_settings_of_streams_are_named(dataset, wrong):
    with pytest.raises(ConfigError, match=rf"sampler\.{next(iter(wrong))}: must be a whole number"):
        StreamingSampler(dataset, **wrong)
