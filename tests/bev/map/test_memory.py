"""The streaming memory's warp, gate, resets and states, on maps made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from drivestack.bev.map.memory import SceneState, StreamingMemory, old_from_new, rounds
from drivestack.bev.map.resample import sample_bev
from drivestack.core.batch import Batch, BevFeatures
from drivestack.core.errors import ConfigError
from drivestack.core.frames import Frame
from drivestack.geometry import BevGrid, pose, rotation_z

GRID = BevGrid(-24.0, -18.0, 24.0, 18.0, num_x=32, num_y=24)  # 1.5 m
CHANNELS = 4
EGO_FROM_BEV = pose(rotation_z(-np.pi / 2), [0.9, 0, 1.8])
STEP_US = 500_000


def batch_of(poses: list[np.ndarray], time_us: list[int], scenes: list[str], **more) -> Batch:
    """A batch of current frames without images; ``poses``: global_from_ego."""
    frames = [
        Frame(f"{scene}@{t}", scene, scene, t, (), p, EGO_FROM_BEV) for p, t, scene in zip(poses, time_us, scenes)
    ]
    n = len(frames)
    nothing = torch.zeros(n, 1, 0)
    return Batch(
        images=nothing,
        frame_offsets=(0,),
        frame_valid=torch.ones(n, 1, dtype=torch.bool),
        image_from_bev=nothing,
        image_size_px=nothing,
        image_flipped=torch.zeros(n, dtype=torch.bool),
        bda=torch.eye(3).repeat(n, 1, 1),
        intrinsics=nothing,
        bev_from_camera=nothing,
        ego_from_bev=torch.from_numpy(EGO_FROM_BEV).float().repeat(n, 1, 1),
        global_from_ego=torch.from_numpy(np.stack(poses))[:, None],
        frames=frames,
        **more,
    )


def at(x: float, y: float, yaw: float = 0.0) -> np.ndarray:
    return pose(rotation_z(yaw), [x, y, 0.0])


def maps(seed: int, count: int = 1) -> BevFeatures:
    generator = torch.Generator().manual_seed(seed)
    return BevFeatures(torch.randn(count, CHANNELS, GRID.num_y, GRID.num_x, generator=generator), GRID)


def working(**options) -> StreamingMemory:
    """A memory that has learned something."""
    torch.manual_seed(3)
    memory = StreamingMemory(CHANNELS, GRID, gate_channels=8, **options)
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
        memory.running_mean.normal_()
    return memory.eval()


def copying(**options) -> StreamingMemory:
    """A memory that gives the past where there is one: x + 1 * m * h for maps x of zeros."""
    memory = StreamingMemory(CHANNELS, GRID, max_size=1e9, **options)
    with torch.no_grad():
        memory.value.weight.copy_(torch.eye(CHANNELS)[..., None, None])
        memory.gate[-1].weight.zero_()
        memory.gate[-1].bias.fill_(30.0)
    return memory.eval()


def moved(memory: StreamingMemory, old: Tensor, before: np.ndarray, after: np.ndarray) -> Tensor:
    """A map seen again after the car has moved, by a memory that copies: [C, num_y, num_x]."""
    _, states = memory(BevFeatures(old[None], GRID), batch_of([before], [0], ["a"]))
    zeros = BevFeatures(torch.zeros_like(old)[None], GRID)
    return memory(zeros, batch_of([after], [STEP_US], ["a"]), states)[0].bev[0]


def ramp(global_from_bev: np.ndarray) -> Tensor:
    """Coordinates in the world of each cell, [4, num_y, num_x]: x, y, x + y and 1."""
    centres = torch.from_numpy(GRID.cell_centres()).double()
    flat = torch.cat([centres, torch.zeros_like(centres[..., :1]), torch.ones_like(centres[..., :1])], -1)
    flat[..., 2] = -EGO_FROM_BEV[2, 3]  # the road
    x, y = (flat @ torch.from_numpy(global_from_bev).T)[..., :2].unbind(-1)
    return torch.stack([x, y, x + y, torch.ones_like(x)])


def interior(found: Tensor) -> Tensor:
    """Where the ones of a ramp came from inside."""
    return found[3] > 1 - 1e-6


@pytest.mark.parametrize("seed", range(6))
def test_a_ramp_moved_by_a_random_motion_is_the_ramp(seed):
    rng = np.random.default_rng(seed)
    before = at(*rng.uniform(-5, 5, 2), rng.uniform(-np.pi, np.pi))
    tilt = pose(rotation_z(0.0), [0, 0, 0.02])
    after = before @ at(*rng.uniform(-4, 4, 2), rng.uniform(-0.8, 0.8)) @ tilt
    found = moved(copying(), ramp(before @ EGO_FROM_BEV).float(), before, after)
    inside = interior(found)
    assert inside.float().mean() > 0.4
    expected = ramp(after @ EGO_FROM_BEV).float()
    assert (found - expected)[:, inside].abs().max() < 1e-5 * 40


def test_half_a_turn_reads_the_map_upside_down():
    old = maps(0).bev[0]
    # about the middle of the BEV grid, which lies 0.9 m ahead of the car
    before = np.eye(4)
    turn = EGO_FROM_BEV @ pose(rotation_z(np.pi), [0, 0, 0]) @ np.linalg.inv(EGO_FROM_BEV)
    found = moved(copying(), old, before, before @ turn)
    torch.testing.assert_close(found, old.flip(1, 2), atol=1e-4, rtol=0)


def test_poses_far_from_the_origin_lose_nothing():
    old, far = maps(0).bev[0], np.array([4.5e6, 5.0e6, 0.0])
    before, after = at(1.0, 2.0, 0.3), at(3.3, 2.9, 0.35)
    near_by = moved(copying(), old, before, after)
    for p in (before, after):
        p[:3, 3] += far
    torch.testing.assert_close(moved(copying(), old, before, after), near_by, atol=1e-5, rtol=0)


def test_a_tilt_moves_ground_points_by_the_mounting_height():
    pitch = np.eye(4)
    pitch[:3, :3] = [[np.cos(0.1), 0, np.sin(0.1)], [0, 1, 0], [-np.sin(0.1), 0, np.cos(0.1)]]
    planar = old_from_new(torch.eye(4)[None].double(), torch.from_numpy(pitch)[None], torch.tensor([-1.8]).double())
    assert planar[0, 0, 2].item() == pytest.approx(-1.8 * np.sin(0.1))


def test_the_first_frame_and_an_untrained_memory_change_nothing():
    fresh = StreamingMemory(CHANNELS, GRID).eval()
    first, states = working()(maps(0), batch_of([at(0, 0)], [0], ["a"]))
    assert first.bev.equal(maps(0).bev) and states["a"].bev.equal(maps(0).bev[0])
    for mode in (fresh.train, fresh.eval):
        mode()
        second, _ = fresh(maps(1), batch_of([at(2, 0)], [STEP_US], ["a"]), states)
        assert second.bev.equal(maps(1).bev)


def test_what_the_state_holds_is_what_the_heads_read():
    memory = working()
    _, states = memory(maps(0), batch_of([at(0, 0)], [0], ["a"]))
    second, states = memory(maps(1), batch_of([at(2, 0)], [STEP_US], ["a"]), states)
    assert not second.bev.equal(maps(1).bev)
    assert states["a"].bev.equal(second.bev[0]) and states["a"].token == f"a@{STEP_US}"
    assert not states["a"].bev.requires_grad


def start(memory: StreamingMemory, scene: str = "a", **more) -> dict[str, SceneState]:
    return memory(maps(0), batch_of([at(0, 0)], [0], [scene], **more))[1]


RESETS = {
    "another scene under the same key": (batch_of([at(2, 0)], [STEP_US], ["b"], streams=["a"]), {}),
    "a gap of three seconds": (batch_of([at(2, 0)], [3_000_000], ["a"]), {}),
    "no time in between": (batch_of([at(2, 0)], [0], ["a"]), {}),
    "time runs backwards": (batch_of([at(2, 0)], [-STEP_US], ["a"]), {}),
    "the mirror world": (batch_of([at(2, 0)], [STEP_US], ["a"], mirrored=[True]), {}),
    "another stream": (batch_of([at(2, 0)], [STEP_US], ["a"], streams=["a 2"]), {}),
    "switched off": (batch_of([at(2, 0)], [STEP_US], ["a"]), dict(forget=True)),
}


@pytest.mark.parametrize("reason", RESETS)
def test_memory_starts_anew(reason):
    batch, options = RESETS[reason]
    states = start(working())
    found, _ = working(**options)(maps(1), batch, states)
    assert found.bev.equal(maps(1).bev)


def test_memory_goes_on_within_two_seconds_and_through_another_mounting():
    memory, states = working(), start(working())
    for time_us in (1, STEP_US, 2_000_000):
        found, _ = memory(maps(1), batch_of([at(2, 0)], [time_us], ["a"]), states)
        assert not found.bev.equal(maps(1).bev)
    # the BEV frame moves 3 m ahead on the car: its poses say where the old map lies
    old = ramp(EGO_FROM_BEV).float()
    memory = copying()
    _, states = memory(BevFeatures(old[None], GRID), batch_of([at(0, 0)], [0], ["a"]))
    batch = batch_of([at(0, 0)], [STEP_US], ["a"])
    batch.ego_from_bev[:, 0, 3] += 3.0
    found = memory(BevFeatures(torch.zeros_like(old)[None], GRID), batch, states)[0].bev[0]
    there = batch.ego_from_bev[0].double().numpy()
    assert (found - ramp(there).float())[:, interior(found)].abs().max() < 1e-3


@pytest.mark.parametrize("training", [False, True])
def test_nothing_of_another_scene_comes_through_not_even_nan(training):
    memory = working().train(training)
    states = {**start(working(), "a"), **start(working(), "b")}
    states["b"] = replace(states["b"], bev=torch.full_like(states["b"].bev, torch.nan))
    two = BevFeatures(torch.cat([maps(1).bev, maps(2).bev]), GRID)
    poses, times = [at(2, 0), at(0, 0)], [STEP_US, 9_000_000]
    found, kept = memory(two, batch_of(poses, times, ["a", "b"]), states)
    assert found.bev.isfinite().all() and found.bev[1].equal(two.bev[1]) and not found.bev[0].equal(two.bev[0])
    assert kept.keys() == {"a", "b"}
    found.bev.square().sum().backward() if training else None
    assert all(p.grad is None or p.grad.isfinite().all() for p in memory.parameters())


def test_a_batch_of_two_scenes_is_each_alone_whatever_their_order():
    memory = working()
    alone = {}
    for i, scene in enumerate("ab"):
        states = {}
        for step in range(3):
            batch = batch_of([at(2 * step, i, 0.1 * step)], [STEP_US * step], [scene])
            alone[scene, step], states = memory(maps(10 * i + step), batch, states)
    for order in ("ab", "ba"):
        states = {}
        for step in range(3):
            both = BevFeatures(torch.cat([maps(10 * "ab".index(s) + step).bev for s in order]), GRID)
            poses = [at(2 * step, "ab".index(s), 0.1 * step) for s in order]
            found, states = memory(both, batch_of(poses, [STEP_US * step] * 2, list(order)), states)
            for i, scene in enumerate(order):
                torch.testing.assert_close(found.bev[i], alone[scene, step].bev[0], atol=1e-5, rtol=1e-5)


def test_a_parked_world_driven_in_a_circle_comes_back():
    """Sixteen keyframes around a circle of 10 m; only the first map shows anything."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, CHANNELS, 8, 10, generator=generator)
    world = torch.nn.functional.interpolate(coarse, (GRID.num_y, GRID.num_x), mode="bilinear")
    memory, states, steps = copying(), {}, 16
    for step in range(steps + 1):
        angle = 2 * np.pi * step / steps
        here = at(1.6 * np.sin(angle), 1.6 * (1 - np.cos(angle)), angle)  # back at the start in the last step
        seen = world if step == 0 else torch.zeros_like(world)
        found, states = memory(BevFeatures(seen, GRID), batch_of([here], [STEP_US * step], ["a"]), states)
    middle = (slice(None), slice(8, 16), slice(10, 22))
    pair = torch.stack([found.bev[0][middle].flatten(), world[0][middle].flatten()])
    assert torch.corrcoef(pair)[0, 1] > 0.9


def test_a_gate_that_amplifies_stays_finite():
    memory, states = copying(), {}
    memory.max_size = 10.0
    with torch.no_grad():
        memory.value.weight.mul_(3.0)
    sizes = []
    for step in range(100):
        found, states = memory(maps(step), batch_of([at(0, 0)], [STEP_US * step], ["a"]), states)
        sizes.append(found.bev.abs().max().item())
    assert max(sizes[50:]) < 3 * 10 * CHANNELS**0.5 + 6
    # below the bound nothing is changed
    torch.testing.assert_close(memory._bounded(maps(0).bev), maps(0).bev, rtol=0, atol=0)


def test_the_mean_of_the_maps_does_not_move_with_the_world():
    """Maps that are all signature of the cell: what is carried over is nothing."""
    memory = copying().train()
    signature = maps(5)
    for step in range(200):
        memory(signature, batch_of([at(0, 0)], [0], [f"scene {step}"]))
    memory.eval()
    torch.testing.assert_close(memory.running_mean, signature.bev[0], atol=1e-4, rtol=0)
    _, states = memory(signature, batch_of([at(0, 0)], [0], ["a"]))
    found, _ = memory(signature, batch_of([at(2.2, 0.4, 0.2)], [STEP_US], ["a"]), states)
    torch.testing.assert_close(found.bev, signature.bev, atol=1e-3, rtol=0)


def test_the_mean_is_that_of_the_first_steps_then_moves_slowly_and_only_in_training():
    memory = StreamingMemory(CHANNELS, GRID).train()
    own = [maps(i) for i in range(4)]
    for i, each in enumerate(own):
        memory(each, batch_of([at(0, 0)], [0], [str(i)]))
    torch.testing.assert_close(memory.running_mean, torch.cat([m.bev for m in own]).mean(0))
    before = memory.running_mean.clone()
    memory.eval()(own[0], batch_of([at(0, 0)], [0], ["x"]))
    assert memory.running_mean.equal(before) and int(memory.num_updates) == 4


def test_the_mean_of_a_frozen_memory_stays():
    memory = StreamingMemory(CHANNELS, GRID).train().requires_grad_(False)
    memory(maps(0), batch_of([at(0, 0)], [0], ["a"]))
    assert not memory.running_mean.any() and int(memory.num_updates) == 0


def test_gradients_reach_the_gate_also_where_no_sample_has_a_past():
    memory = working().train()
    found, _ = memory(maps(7), batch_of([at(0, 0)], [0], ["a"]))
    found.bev.square().sum().backward()
    assert all(p.grad is not None and p.grad.count_nonzero() == 0 for p in memory.parameters())
    found, _ = memory(maps(1), batch_of([at(2, 0)], [STEP_US], ["a"]), start(working()))
    found.bev.square().sum().backward()
    assert all(p.grad.count_nonzero() > 0 for p in memory.parameters())


@pytest.mark.parametrize("unroll", [2, 3, 4])
def test_unrolled_gates_are_the_recurrence_with_gradient(unroll):
    """Against the same steps fused one after another in one graph; weights do not change in between."""
    memory, steps = working(unroll=unroll).train(), 6
    mean = memory.running_mean.clone()
    states, batches = {}, []
    for step in range(steps):
        memory.running_mean.copy_(mean)
        batches.append(batch_of([at(2.0 * step, 0.1 * step, 0.05 * step)], [STEP_US * step], ["a"]))
        found, states = memory(maps(step), batches[-1], states)
    memory.running_mean.copy_(mean)
    assert len(list(_chain(states["a"]))) == min(unroll, steps)
    found.bev.square().sum().backward()
    gradients = [p.grad.clone() for p in memory.parameters()]

    memory.zero_grad()
    plain = working().train()
    plain.load_state_dict(memory.state_dict())
    road = torch.tensor([-EGO_FROM_BEV[2, 3]]).double()
    carried, previous = None, None
    for step, batch in enumerate(batches):
        now = SceneState(
            "a",
            "",
            STEP_US * step,
            batch.global_from_ego[0, 0] @ batch.ego_from_bev[0].double(),
            False,
            maps(step).bev[0],
        )
        if previous is None:
            carried = now.bev
        else:
            own = carried if step > steps - unroll else carried.detach()
            carried = plain.fuse(maps(step).bev, [now], [previous], [own], road)[0]
        previous = now
    torch.testing.assert_close(carried[None], found.bev, atol=1e-5, rtol=1e-5)
    carried.square().sum().backward()
    for p, expected in zip(plain.parameters(), gradients):
        torch.testing.assert_close(p.grad, expected, atol=1e-3, rtol=1e-3)


def _chain(state: SceneState | None):
    while state is not None:
        yield state
        state = state.previous


def test_streams_of_different_lengths_unroll_in_one_batch():
    memory = working(unroll=3).train()
    mean = memory.running_mean.clone()

    def run(keys_by_step):
        states, outs = {}, {}
        for step, keys in enumerate(keys_by_step):
            memory.running_mean.copy_(mean)
            both = BevFeatures(torch.cat([maps(10 * ord(k) + step).bev for k in keys]), GRID)
            found, new = memory(both, batch_of([at(step, 0)] * len(keys), [STEP_US * step] * len(keys), keys), states)
            states = {**states, **new}
            outs |= {(k, step): found.bev[i].detach() for i, k in enumerate(keys)}
        return outs

    mixed = run([["a"], ["a"], ["a", "b"], ["b", "a"]])
    alone = run([["a"]] * 4) | run([["c"], ["c"], ["b"], ["b"]])
    for key in (("a", 3), ("b", 3)):
        torch.testing.assert_close(mixed[key], alone[key], atol=1e-5, rtol=1e-5)


def test_the_control_without_past_reads_the_current_map():
    memory = working(past=False)
    other = start(memory)
    other = {"a": replace(other["a"], bev=torch.randn_like(other["a"].bev))}
    found = [memory(maps(1), batch_of([at(2, 0)], [STEP_US], ["a"]), s)[0].bev for s in (start(memory), other)]
    assert found[0].equal(found[1]) and not found[0].equal(maps(1).bev)


def test_maps_of_bf16_are_moved_in_float32():
    memory, old = copying(), ramp(EGO_FROM_BEV).float()
    with torch.autocast("cpu", torch.bfloat16):
        _, states = memory(BevFeatures(old[None], GRID), batch_of([at(0, 0)], [0], ["a"]))
    assert states["a"].bev.dtype == torch.float32
    seen = []
    original = sample_bev

    def spy(values, *args):
        seen.append(values.dtype)
        return original(values, *args)

    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16):
        patch.setattr("drivestack.bev.map.memory.sample_bev", spy)
        found, _ = memory(maps(0), batch_of([at(1, 0)], [STEP_US], ["a"]), states)
    assert seen == [torch.float32] and found.bev.dtype == torch.float32


def test_states_go_through_a_file_of_plain_data(tmp_path):
    memory = working(unroll=3).train()
    states = {}
    for step in range(3):
        _, states = memory(maps(step), batch_of([at(step, 0)], [STEP_US * step], ["a"]), states)
    torch.save({k: s.as_plain() for k, s in states.items()}, tmp_path / "states.pt")
    read = {k: SceneState.of_plain(p) for k, p in torch.load(tmp_path / "states.pt", weights_only=True).items()}
    batch = batch_of([at(3, 0)], [STEP_US * 3], ["a"])
    mean = memory.running_mean.clone()
    one = memory(maps(3), batch, states)[0].bev
    memory.running_mean.copy_(mean)
    assert one.equal(memory(maps(3), batch, read)[0].bev)


def test_what_is_asked_wrongly_is_said():
    with pytest.raises(ConfigError, match="unroll from 1 on"):
        StreamingMemory(CHANNELS, GRID, unroll=0)
    with pytest.raises(ConfigError, match="two of one stream in a batch"):
        working()(maps(0, 2), batch_of([at(0, 0), at(1, 0)], [0, STEP_US], ["a", "a"]))


@pytest.mark.parametrize("training", [False, True])
def test_without_poses_nothing_is_recalled_or_kept(training):
    batch = replace(batch_of([at(2, 0)], [STEP_US], ["a"]), global_from_ego=None)
    memory = working().train(training)
    found, states = memory(maps(1), batch, start(working()))
    assert found.bev.equal(maps(1).bev) and states == {}
    if training:  # every parameter has a gradient, as several processes need it
        found.bev.sum().backward()
        assert all(p.grad is not None for p in memory.parameters())


def test_rounds_hold_one_frame_of_a_stream_in_order_of_time():
    batch = batch_of([at(0, 0)] * 5, [3, 1, 2, 0, 1], ["a", "a", "a", "b", "b"])
    assert rounds(batch) == [[1, 3], [2, 4], [0]]
