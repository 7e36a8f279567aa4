"""A whole model with streaming memory: scenes in any order and batch, mirrored worlds, training in time order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from drivestack.backbone import prepare_inference
from drivestack.bev.bevformer_v2 import BEVFormerV2
from drivestack.bev.map.memory import StreamingMemory
from drivestack.core.batch import BevFeatures
from drivestack.core.errors import ConfigError
from drivestack.core.once import forget_warnings
from drivestack.data_tools.clips.clip_dataset import ClipDataset
from drivestack.data_tools.clips.collate import collate_clips
from drivestack.data_tools.clips.sampler import SceneOrderSampler, StreamStep, scene_runs
from drivestack.data_tools.clips.transforms import PhotometricSettings
from drivestack.engine.predict import predict
from drivestack.geometry import BevGrid
from support import toy_rig
from support.toy_drive import toy_drive


def model_with_memory(seed: int = 0, num_cameras: int = 3, **options: Any) -> BEVFormerV2:
    """With a memory that has learned something."""
    model = toy_rig.build(num_cameras=num_cameras, seed=seed, dropout=0.0, memory=dict(type=StreamingMemory, **options))
    torch.manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.memory.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def scenes(count: int = 2, length: int = 3) -> dict[str, list]:
    """Batches of one frame by scene, half a second apart."""
    frames, images = toy_rig.scene(count * length)
    found = {}
    for s in range(count):
        found[f"s{s}"] = []
        for i in range(length):
            k = s * length + i
            frames[k] = replace(
                frames[k], scene_token=f"s{s}", timestamp_us=500_000 * i, prev_token=f"f{k - 1}" if i else ""
            )
            found[f"s{s}"].append(toy_rig.clip(frames, images, k, (0,)))
    return found


def answers(model: BEVFormerV2, batches: list) -> dict[str, np.ndarray]:
    """Scores and boxes by sample token of batches in turn."""
    memory, found = None, {}
    for batch in batches:
        own, memory = model.predict(batch, memory)
        assert len(memory) <= len(set(batch.stream_keys))
        found |= {a.token: np.concatenate([a.boxes.boxes.reshape(-1), a.boxes.scores]) for a in own}
    return found


def same(a: dict, b: dict, atol: float = 2e-4) -> None:
    assert a.keys() == b.keys()
    for token in a:
        np.testing.assert_allclose(a[token], b[token], atol=atol, err_msg=token)


def test_the_first_frame_is_that_of_the_model_without_memory_to_the_bit():
    model, plain = model_with_memory(), toy_rig.build(dropout=0.0).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("memory.")})
    first, second, _ = scenes(1)["s0"]
    found, expected = answers(model, [first, second]), answers(plain, [first]) | answers(plain, [second])
    np.testing.assert_array_equal(found["f0"], expected["f0"])
    assert np.abs(found["f1"] - expected["f1"]).max() > 1e-3


def test_keys_of_the_other_parts_are_those_of_the_model_without():
    own, plain = model_with_memory().state_dict(), toy_rig.build().state_dict()
    assert {k for k in own if not k.startswith("memory.")} == set(plain)
    assert any(k.startswith("memory.") for k in own) and not any("memory" in k for k in plain)


def test_scenes_in_any_order_and_in_any_batch_get_the_same_answers():
    model, drives = model_with_memory(), scenes(2)
    a, b = drives["s0"], drives["s1"]
    expected = answers(model, [*a, *b])
    same(answers(model, [*b, *a]), expected)
    same(answers(model, [toy_rig.join(x, y) for x, y in zip(a, b)]), expected)
    same(answers(model, [toy_rig.join(y, x) for x, y in zip(a, b)]), expected)
    # neighbours in one batch: as SceneOrderSampler deals them out
    in_order = [*a, *b]
    same(answers(model, [toy_rig.join(x, y) for x, y in zip(in_order[::2], in_order[1::2])]), expected)
    same(answers(model, [toy_rig.join(toy_rig.join(*a[:2]), a[2]), *b]), expected)


def test_the_prepared_copy_remembers_as_the_model_does():
    model, drive = model_with_memory(), scenes(1)["s0"]
    same(answers(prepare_inference(model), drive), answers(model, drive))


def test_memory_and_frames_that_are_encoded_again_exclude_each_other():
    with pytest.raises(ConfigError, match=r"leave memory out, or set bev_map.frames=\(0,\)"):
        toy_rig.build((-1, 0), memory=dict(type=StreamingMemory))
    frames, images = toy_rig.scene(2)
    with pytest.raises(ValueError, match=r"the current frame \(0,\), the batch has \(-1, 0\)"):
        model_with_memory().predict(toy_rig.clip(frames, images, 1, (-1, 0)))


def test_training_goes_on_from_the_state_and_gives_the_next():
    model, (first, second, third) = model_with_memory(unroll=3), scenes(1)["s0"]
    model.train()
    model.grid_mask = None
    assert model.streams and model.remembers
    losses, memory = model(first, mode="stream")
    assert memory.keys() == {"s0"} and memory["s0"].token == "f0"
    fresh, _ = model.stream_loss(second)
    seen, memory = model.stream_loss(second, memory)
    assert fresh.keys() == seen.keys() == losses.keys()
    assert any(not fresh[name].equal(seen[name]) for name in fresh)
    torch.testing.assert_close(model.loss(second)["loss_cls"], fresh["loss_cls"], atol=1e-2, rtol=1e-2)
    losses, memory = model.stream_loss(third, model.unpack_memory(model.pack_memory(memory)))
    sum(losses.values()).backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert all(p.grad.count_nonzero() for p in model.memory.parameters())
    assert not memory["s0"].bev.requires_grad


def test_bev_augmentation_is_of_the_heads_alone():
    """The state lies in the frame of the car, so two steps may be augmented differently."""
    model, (first, second, _) = model_with_memory(), scenes(1)["s0"]
    model.train()
    turned = replace(first, bda=torch.diag(torch.tensor([-1.0, 1.0, 1.0]))[None])
    states = [model.stream_loss(batch)[1] for batch in (first, turned)]
    assert states[0]["s0"].bev.equal(states[1]["s0"].bev)
    _, features = model.encode_frame_map(second)
    assert model.augmented(features, second).bev.shape == features.bev.shape


CLASSES = ("car", "person")
SMALL = dict(train_heights_px=(32,), test_height_px=32)


def drive_dataset(**options: Any) -> ClipDataset:
    return ClipDataset(frames=toy_drive(4), classes=CLASSES, image=SMALL, training=True, mirror=True, seed=4, **options)


def test_a_sequence_is_seen_through_one_draw():
    dataset = drive_dataset(photometric=PhotometricSettings())
    seen = set()
    for draw in range(8):
        steps = [dataset[StreamStep(i, draw)] for i in range(4)]
        assert len({(s.mirrored, s.stream) for s in steps}) == 1
        assert [s.frame.token for s in steps] == [f"toy-{i}" for i in range(4)]
        seen.add(steps[0].mirrored)
        again = dataset[StreamStep(3, draw)]
        np.testing.assert_array_equal(again.images[0][0], steps[3].images[0][0])
    assert seen == {False, True}
    assert len({dataset[StreamStep(0, draw)].stream for draw in range(3)}) == 3
    # clips for themselves belong to no sequence
    assert dataset[2, 7].stream != dataset[3, 7].stream
    test = ClipDataset(frames=toy_drive(3), classes=CLASSES)
    assert collate_clips([test[0], test[1]]).streams == ["toy", "toy"]


def test_state_and_motion_of_a_mirrored_drive_are_those_of_the_mirror():
    """A mirrored map moved by the mirrored poses is the mirror image of the map moved by the poses."""
    dataset = drive_dataset(ego_from_bev=None)
    straight = next(d for d in range(20) if not dataset[StreamStep(0, d)].mirrored)
    mirrored = next(d for d in range(20) if dataset[StreamStep(0, d)].mirrored)
    grid = BevGrid(-24.0, -24.0, 24.0, 24.0, num_x=32, num_y=32)
    memory = StreamingMemory(4, grid).eval()
    with torch.no_grad():
        memory.value.weight.copy_(torch.eye(4)[..., None, None])
        memory.gate[-1].weight.zero_()
    maps = torch.randn(4, 1, 4, 32, 32)
    found = {}
    for draw, flip in ((straight, False), (mirrored, True)):
        states = None
        for i in range(4):
            batch = collate_clips([dataset[StreamStep(i, draw)]])
            assert batch.mirrored == [flip]
            bev = maps[i].flip(2) if flip else maps[i]  # y points to the left in the EGO frame
            out, states = memory(BevFeatures(bev, grid), batch, states)
        found[flip] = out.bev.flip(2) if flip else out.bev
    memory_alone = maps[3]
    assert (found[False] - memory_alone).abs().max() > 0.01
    torch.testing.assert_close(found[True], found[False], atol=1e-3, rtol=1e-3)


def long_drives(count: int = 3, length: int = 4) -> list:
    frames = []
    for s in range(count):
        for i, frame in enumerate(toy_drive(length + s)):
            token = f"{s}-{i}"
            before, after = (f"{s}-{i - 1}" if i else ""), (f"{s}-{i + 1}" if i + 1 < length + s else "")
            frames.append(replace(frame, token=token, scene_token=f"scene{s}", prev_token=before, next_token=after))
    return frames


def test_evaluation_gives_the_same_answers_on_any_number_of_ranks_and_in_any_batches():
    frames, model = long_drives(), model_with_memory(num_cameras=4)

    def dataset(indices: Any = None) -> ClipDataset:
        chosen = frames if indices is None else [frames[i] for i in indices]
        return ClipDataset(frames=chosen, classes=CLASSES, pc_range=toy_rig.RANGE, image=SMALL)

    expected = predict(model, dataset(), progress=False).answers
    for ranks in (1, 2, 3):
        for batch_size in (1, 2):
            found = {}
            for rank in range(ranks):
                part = dataset(SceneOrderSampler(dataset(), rank=rank, world_size=ranks))
                found |= predict(model, part, batch_size=batch_size, progress=False).answers
            assert found.keys() == expected.keys() and len(found) == len(frames)
            for token, answer in found.items():
                np.testing.assert_allclose(answer.boxes.scores, expected[token].boxes.scores, atol=1e-4)
    model.memory.forget = True
    alone = predict(model, dataset(), progress=False).answers
    changed = {t for t in expected if (alone[t].boxes.scores != expected[t].boxes.scores).any()}
    assert changed == {t for t in expected if not t.endswith("-0")}  # all but the first frames


def test_two_hundred_frames_hold_one_state():
    model, memory = model_with_memory(), None
    frames, images = toy_rig.scene(2)
    for i in range(200):
        angle = 0.02 * i
        frame = replace(
            frames[0],
            token=f"t{i}",
            timestamp_us=500_000 * i,
            global_from_ego=toy_rig.pose(toy_rig.rotation_z(angle), [50 * np.sin(angle), 50 - 50 * np.cos(angle), 0]),
        )
        batch = toy_rig.clip([frame], images, 0, (0,))
        found, memory = model.predict(batch, memory)
        (state,) = memory.values()
        assert state.token == f"t{i}" and state.previous is None and state.frame_bev is None
        assert np.isfinite(found[0].boxes.scores).all() and state.bev.abs().max() < 1000


def test_training_goes_through_frames_that_nobody_labelled(caplog):
    model, (first, second, third) = model_with_memory(), scenes(1)["s0"]
    forget_warnings()
    model.train()
    model.grid_mask = None
    _, memory = model.stream_loss(first)
    bare = replace(second, gt_boxes=[None], gt_labels=[None])
    losses, memory = model.stream_loss(bare, memory)
    sum(losses.values()).backward()
    assert all(not parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)
    assert memory["s0"].token == "f1" and "the memory goes through them" in caplog.text
    assert model.stream_loss(third, memory)[0]["loss_cls"] > 0


def test_frames_in_any_order_are_seen_in_the_order_of_time():
    frames = long_drives()
    mixed = sorted(frames, key=lambda frame: frame.timestamp_us)  # of several cars, merged by time
    assert [frame.token for frame in mixed] != [frame.token for frame in frames]
    dataset = ClipDataset(frames=mixed[::-1], classes=CLASSES)
    for own in scene_runs(dataset.scene_tokens):
        times = [dataset.frames[i].timestamp_us for i in own]
        assert times == sorted(times)
    assert len(scene_runs(dataset.scene_tokens)) == len({frame.scene_token for frame in frames})
