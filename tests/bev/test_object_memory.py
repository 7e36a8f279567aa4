"""A whole model that remembers objects: first frames, scenes, gaps, mirrored worlds, ids over a drive, training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from drivestack.bev.bevformer_v2 import BEVFormerV2
from drivestack.bev.boxes.memory import ObjectMemory, Objects
from drivestack.bev.map.memory import StreamingMemory
from drivestack.core.batch import Batch
from drivestack.core.errors import ConfigError
from drivestack.tasks.registry import chosen_of_model
from support import toy_rig
from support.three_tasks import VoxelHead

OBJECTS = dict(type=ObjectMemory, num_objects=8, min_score=0.001, id_score=0.005, track_score=0.001)
"""Scores of random weights are about 0.01."""


def build(objects: dict | None = OBJECTS, **options: Any) -> BEVFormerV2:
    return toy_rig.build(dropout=0.0, memory=dict(type=StreamingMemory), objects=objects, **options).eval()


def scene(name: str, length: int = 3, step_us: int = 500_000, first: int = 0) -> list[Batch]:
    """Batches of one frame of one scene."""
    frames, images = toy_rig.scene(first + length)
    frames = [
        replace(f, scene_token=name, token=f"{name}{f.token}", timestamp_us=step_us * i) for i, f in enumerate(frames)
    ]
    return [toy_rig.clip(frames, images, i, (0,)) for i in range(first, first + length)]


def drive(model: BEVFormerV2, batches: list[Batch], memory: Any = None) -> tuple[list, Any]:
    found = []
    for batch in batches:
        own, memory = model.predict(batch, memory)
        found += own
    return found, memory


def equal(a: Any, b: Any, ids: bool = True) -> bool:
    same = all(np.array_equal(getattr(a.boxes, k), getattr(b.boxes, k)) for k in ("boxes", "scores", "labels"))
    return same and (not ids or np.array_equal(a.boxes.track_ids, b.boxes.track_ids))


def test_old_weights_load_and_the_first_frame_is_the_old_models_to_the_bit() -> None:
    old, new = build(None), build()
    missing, unexpected = new.load_state_dict(old.state_dict(), strict=False)
    assert not unexpected and missing and all(key.startswith("boxes.memory.") for key in missing)
    batches = scene("a")
    before, after = drive(old, batches)[0], drive(new, batches)[0]
    assert equal(before[0], after[0], ids=False) and before[0].boxes.track_ids is None
    assert not equal(before[1], after[1], ids=False)
    assert new.gives_tracks and not old.gives_tracks


def test_the_scene_of_another_car_changes_nothing() -> None:
    model = build()
    alone = drive(model, scene("a"))[0]
    a, b, memory, found = scene("a"), scene("b", first=1), None, []
    for one, other in zip(a, b):
        _, own = model.predict(other, memory)
        memory = {**(memory or {}), **own}
        answers, own = model.predict(one, memory)
        memory = {**memory, **own}
        found += answers
    assert all(equal(x, y) for x, y in zip(alone, found))


def test_a_batch_of_two_scenes_is_each_alone() -> None:
    model = build()
    a, b = scene("a"), scene("b", first=2)
    together, _ = drive(model, [toy_rig.join(x, y) for x, y in zip(a, b)])
    for x, y in zip(drive(model, a)[0] + drive(model, b)[0], together[::2] + together[1::2]):
        np.testing.assert_allclose(x.boxes.scores, y.boxes.scores, atol=1e-5)
        assert len(set(x.boxes.track_ids.tolist()) - {-1}) == len(set(y.boxes.track_ids.tolist()) - {-1})


@pytest.mark.parametrize(
    "change",
    [
        lambda b: replace(b, frames=[replace(b.frames[0], timestamp_us=b.frames[0].timestamp_us + 5_000_000)]),
        lambda b: replace(b, frames=[replace(b.frames[0], scene_token="other")], streams=["a"]),
        lambda b: replace(b, mirrored=[True]),
        lambda b: replace(b, frames=[replace(b.frames[0], timestamp_us=0)]),
    ],
    ids=["gap", "scene", "mirror", "time stands still"],
)
def test_objects_are_forgotten_where_the_map_is(change: Any) -> None:
    model = build()
    first, second = scene("a", 2)
    _, memory = drive(model, [first])
    again = drive(model, [change(second)], memory)[0]
    alone = drive(model, [change(second)])[0]
    assert equal(again[0], alone[0], ids=False)
    used = set(memory["a"].objects["ids"].tolist()) - {-1}
    new = set(again[0].boxes.track_ids.tolist()) - {-1}
    assert used and new
    if change(second).frames[0].scene_token == "a":  # no id twice in a scene
        assert not used & new
    assert not equal(drive(model, [second], memory)[0][0], alone[0])


def test_without_poses_nothing_is_remembered() -> None:
    model = build()
    bare = [replace(batch, global_from_ego=None) for batch in scene("a")]
    found, memory = drive(model, bare)
    assert memory == {} and all(answer.boxes.track_ids is None for answer in found)


def test_ids_are_stable_unique_and_the_same_in_every_run() -> None:
    """Two cars that the weights do not see, put into the memory of the first frame: they keep their ids."""
    model = build(dict(OBJECTS, id_score=0.9, suppress_m=0.0))
    batches = scene("a", 6)
    _, memory = drive(model, batches[:1])
    (key,) = memory
    boxes = torch.tensor([[5.0, 6, -1, 4, 2, 1.5, 0.3, 0, 0], [-8, 2, -1, 4, 2, 1.5, 0, 0, 0]])
    made = model.boxes.memory.objects_of_boxes(boxes, torch.tensor([3, 6]), torch.tensor([4, 9]), 10)
    memory = {key: replace(memory[key], objects=made.as_plain())}
    seen = []
    for batch in batches[1:4]:
        _, memory = model.predict(batch, memory)
        seen.append(sorted(memory[key].objects["ids"][memory[key].objects["ids"] >= 0].tolist()))
    assert seen == [[4, 9]] * 3 and memory[key].objects["next_id"] == 10
    one, two = (drive(build(), batches)[0] for _ in range(2))
    assert all(equal(a, b) for a, b in zip(one, two))
    for answer in one:
        ids = answer.boxes.track_ids[answer.boxes.track_ids >= 0]
        assert len(ids) and len(set(ids.tolist())) == len(ids)
    assert len({i for a in one for i in a.boxes.track_ids.tolist()}) < sum((a.boxes.track_ids >= 0).sum() for a in one)


def test_training_carries_objects_and_teaches_what_is_recalled() -> None:
    model = build(dict(OBJECTS, forget_share=0.0)).train()
    first, second = scene("a", 2)
    losses, states = model.stream_loss(first)
    sum(value for name, value in losses.items() if "loss" in name).backward()
    assert all(p.grad is not None for p in model.boxes.memory.parameters())  # in the graph, so that DDP does not wait
    assert all((p.grad == 0).all() for p in model.boxes.memory.parameters())
    objects = Objects.of_plain(next(iter(states.values())).objects)
    assert not objects.content.requires_grad and not objects.codes.requires_grad and len(objects.ids) == 8
    losses, states = model.stream_loss(second, states)
    sum(value for name, value in losses.items() if "loss" in name).backward()
    assert model.boxes.memory.out.weight.grad.abs().sum() > 0
    packed = model.pack_memory(states)
    again = model.unpack_memory(packed)
    assert next(iter(again.values())).objects["next_id"] == next(iter(states.values())).objects["next_id"]


def test_configurations_that_cannot_work() -> None:
    with pytest.raises(ConfigError, match="configure memory too"):
        toy_rig.build(objects=OBJECTS)
    with pytest.raises(ConfigError, match="hybrid_queries"):
        toy_rig.build(objects=OBJECTS, proposals=False, memory=dict(type=StreamingMemory))


def test_objects_and_ids_outlast_a_frame_that_is_asked_for_other_tasks_alone() -> None:
    model = build(occupancy_head=VoxelHead())
    first, second, third, fourth = scene("a", 4)
    whole, _ = drive(model, [first, second, third, fourth])
    _, memory = drive(model, [first, second])
    (answer,), memory = model.predict(third, memory, ["occupancy"])
    assert answer.boxes is None and answer.occupancy is not None
    assert equal(drive(model, [fourth], memory)[0][0], whole[3])
    # where no box was asked for yet, none is computed
    called = []
    model.boxes.register_forward_hook(lambda *_: called.append(1))
    memory = None
    for batch in (first, second):
        _, memory = model.predict(batch, memory, ["occupancy"])
    assert not called and memory["a"].objects is None


def test_a_model_that_answers_no_boxes_gives_no_tracks() -> None:
    model = build(occupancy_head=VoxelHead(), tasks=("occupancy",))
    assert not model.gives_tracks and chosen_of_model(model, None, ["car"]) == ("occupancy",)
