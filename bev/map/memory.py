"""One memory for all heads: the last BEV map of each scene, moved with the car, and a gate that mixes it in.

In the manner of the recurrent maps of SOLOFusion (arXiv 2210.02443), GDFusion (arXiv 2504.12959) and their relatives,
with three differences: the state passes through a gate that starts at no effect, cells that come from outside the old
map are said to be so, and the part of a map that belongs to its cells (learned queries and positions), not to the
place in the world, is taken off before a map is moved.

    h = warp(state - mean), m = warp(ones)          mean: a running mean of the maps
    z = sigmoid(gate([x - mean, h, m, dt / 0.5 s]))
    fused = x + z m value(h)                        what the heads read, and the next state

The state is explicit: the caller passes it in and gets it back, by stream (Batch.streams), and it is made of maps
before BEV augmentation. It starts anew for another scene, after a gap in time, where time does not advance, and where
one of two frames is of the mirror world. It does not start anew when cameras go dark or the BEV frame is mounted
elsewhere: the map of what was seen stays true, and the poses say where it lies.

Shapes: B batch, C channels, num_y x num_x BEV cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from mmengine.dist import all_reduce
from torch import Tensor, nn

from ...core.batch import Batch, BevFeatures
from ...core.errors import ConfigError
from ...core.registries import MODELS
from ...geometry import BevGrid
from .resample import sample_bev

KEYFRAME_S = 0.5
"""Of nuScenes, Occ3D and OpenLane-V2: the unit in which the gate sees time."""
MEAN_SHARE = 0.01
"""Of a training step in the running mean."""


@dataclass(frozen=True)
class SceneState:
    """What a model carries from one frame of a scene to the next."""

    scene_token: str
    token: str
    """Of the frame that it was made at, as all below."""
    timestamp_us: int
    global_from_bev: Tensor
    """[4, 4] float64, in the mirrored world where ``mirrored``."""
    mirrored: bool
    bev: Tensor
    """[C, num_y, num_x] float32, fused, without gradient."""
    frame_bev: Tensor | None = None
    """[C, num_y, num_x], before fusion; kept in training with ``unroll`` > 1."""
    previous: SceneState | None = None
    """The state that ``bev`` was fused from; kept as ``frame_bev``."""
    objects: Any = None
    """For memories beside the map, such as object queries: whoever keeps them puts them here after the heads have run
    (``replace(state, objects=...)``) and finds them here at the next frame. Tensors, dicts and plain values only."""

    def as_plain(self) -> dict[str, Any]:
        """As dicts, tensors and plain values, for a checkpoint."""
        plain = dict(vars(self))
        plain["previous"] = None if self.previous is None else self.previous.as_plain()
        return plain

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any]) -> SceneState:
        """The inverse of ``as_plain``. Raises TypeError for other entries."""
        previous = plain.get("previous")
        return cls(**{**plain, "previous": None if previous is None else cls.of_plain(previous)})


States = Mapping[str, SceneState]
"""By stream (Batch.streams)."""


def rounds(batch: Batch) -> list[list[int]]:
    """The samples of a batch in rounds, each with at most one of a stream, in order of time.

    So a batch may hold frames that follow each other: the second is answered with what the first leaves behind.
    """
    found: list[list[int]] = []
    taken: dict[str, int] = {}
    keys = batch.stream_keys
    for b in sorted(range(len(keys)), key=lambda b: batch.frames[b].timestamp_us):
        number = taken.get(keys[b], 0)
        taken[keys[b]] = number + 1
        found += [[]] * (number == len(found))
        found[number] = [*found[number], b]
    return [sorted(own) for own in found]


def old_from_new(old: Tensor, new: Tensor, road_z_m: Tensor) -> Tensor:
    """[B, 2, 3] float64: where ground points of the new BEV frames lie in the old ones.

    old, new: [B, 4, 4] float64, global_from_bev; road_z_m [B]: height of the ground in the new BEV frames.
    """
    motion = torch.linalg.inv(old) @ new
    shift = motion[:, :2, 3] + motion[:, :2, 2] * road_z_m[:, None]
    return torch.cat([motion[:, :2, :2], shift[..., None]], 2)


@MODELS.register_module()
class StreamingMemory(nn.Module):
    """Mixes the last map of each stream into the current one.

    channels, grid: of the BEV map; the model gives both.
    gate_channels: inside the gate.
    max_gap_s: a state that is older is dropped.
    max_size: root mean square of a cell's past over its channels, above which it is scaled down (maps leave a
        LayerNorm, so theirs is about 1).
    unroll: training goes back through the gates of so many frames (1: of the current one alone, whose past is a
        constant); maps of single frames are constants in all of them but the current one.
    past: False puts the current map in the place of the past one: the same parameters without memory, as a control.
    forget: every frame is the first of its scene, in evaluation only: what the weights can do without memory, as a
        control.
    """

    running_mean: Tensor
    num_updates: Tensor

    def __init__(
        self,
        channels: int,
        grid: BevGrid,
        gate_channels: int = 32,
        max_gap_s: float = 2.0,
        max_size: float = 10.0,
        unroll: int = 1,
        past: bool = True,
        forget: bool = False,
    ) -> None:
        super().__init__()
        if type(unroll) is not int or unroll < 1 or not max_gap_s > 0:
            raise ConfigError(f"memory: unroll from 1 on and max_gap_s above 0, got {unroll!r} and {max_gap_s!r}")
        self.grid, self.max_gap_s, self.max_size, self.unroll = grid, max_gap_s, max_size, unroll
        self.past, self.forget = past, forget
        self.gate = nn.Sequential(
            nn.Conv2d(2 * channels + 2, gate_channels, 1),
            nn.ReLU(),
            nn.Conv2d(gate_channels, channels, 3, padding=1),
        )
        self.value = nn.Conv2d(channels, channels, 1)
        self.register_buffer("running_mean", torch.zeros(channels, grid.num_y, grid.num_x))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.long))
        self.init_weights()

    def init_weights(self) -> None:
        """No effect at first; the gate is nearly closed."""
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)
        nn.init.constant_(self.gate[-1].bias, -2.0)

    def forward(
        self, features: BevFeatures, batch: Batch, states: States | None = None
    ) -> tuple[BevFeatures, dict[str, SceneState]]:
        """The fused maps, and the states of the batch's streams after this frame.

        features: maps of single frames, before BEV augmentation; states: of the frames before. A batch has at most one
        sample of a stream (``rounds``), else ConfigError. Without poses (global_from_ego) nothing is recalled or kept.
        """
        keys = batch.stream_keys
        if len(set(keys)) < len(keys):
            raise ConfigError(f"samples {', '.join(batch.tokens)}: two of one stream in a batch; use StreamingSampler")
        poses = _poses(batch)
        if not self.training and (self.forget or poses is None):
            return features, {}
        nowhere = torch.eye(4, dtype=torch.float64, device=features.bev.device).expand(len(keys), 4, 4)
        global_from_bev, ego_from_bev = poses or (nowhere, nowhere)
        current = [
            SceneState(frame.scene_token, frame.token, frame.timestamp_us, pose, mirrored, bev)
            for frame, pose, mirrored, bev in zip(batch.frames, global_from_bev, batch.are_mirrored, features.bev)
        ]
        known = {} if states is None or poses is None else states
        past = [self.usable(known.get(key), now) for key, now in zip(keys, current)]
        road_z_m = torch.linalg.inv(ego_from_bev)[:, 2, 3]  # of the EGO frame's origin, which lies on the road
        fused = features.bev
        if self.training or any(state is not None for state in past):
            fused = self.fuse(features.bev, current, past, self._past_maps(past, road_z_m), road_z_m)
        if self.training and any(parameter.requires_grad for parameter in self.parameters()):  # not where it is frozen
            self._follow_mean(fused)
        kept = {
            key: self._kept(now, old, bev, own)
            for key, now, old, bev, own in zip(keys, current, past, fused, features.bev)
        }
        return replace(features, bev=fused), {} if poses is None else kept

    def usable(self, state: SceneState | None, now: SceneState) -> SceneState | None:
        """The state if it may be carried over to a frame, else None."""
        if state is None or state.scene_token != now.scene_token or state.mirrored != now.mirrored:
            return None
        gap_s = (now.timestamp_us - state.timestamp_us) * 1e-6
        return state if 0 < gap_s <= self.max_gap_s and state.bev.shape == now.bev.shape else None

    def fuse(
        self,
        bev: Tensor,
        current: Sequence[SceneState],
        past: Sequence[SceneState | None],
        maps: Sequence[Tensor | None],
        road_z_m: Tensor,
    ) -> Tensor:
        """Maps [B, C, num_y, num_x] of single frames mixed with what their pasts hold; to the bit as they are where
        there is none. ``maps``: those of ``past``, moved nowhere yet.
        """
        stack = lambda values: torch.stack(list(values))
        missing = torch.zeros_like(self.running_mean)
        there = torch.tensor([state is not None for state in past], device=bev.device)[:, None, None, None]
        new = stack(now.global_from_bev.to(bev.device) for now in current)
        old = stack(
            (now if state is None else state).global_from_bev.to(bev.device) for now, state in zip(current, past)
        )
        old_maps = stack(missing if own is None else own.to(bev.device).float() - self.running_mean for own in maps)
        gaps_s = [0.0 if s is None else (now.timestamp_us - s.timestamp_us) * 1e-6 for now, s in zip(current, past)]
        ones = bev.new_ones((len(bev), 1, *bev.shape[2:]), dtype=torch.float32)
        moved = sample_bev(torch.cat([old_maps, ones], 1), self.grid, self.grid, old_from_new(old, new, road_z_m))
        centred = bev.float() - self.running_mean
        past_map, inside = self._bounded(moved[:, :-1]), moved[:, -1:]
        if not self.past:
            past_map, inside = centred, ones
        time = ones * (torch.tensor(gaps_s, device=bev.device) / KEYFRAME_S)[:, None, None, None]
        share = self.gate(torch.cat([centred, past_map, inside, time], 1)).sigmoid() * inside
        change = torch.where(there, share * self.value(past_map), 0.0)
        return bev + change.to(bev.dtype)  # in this order, so that the sum is laid out as ``bev`` is

    def _bounded(self, past: Tensor) -> Tensor:
        """Cells scaled down where their numbers are larger than any map's: a gate that has learned from short drives
        may amplify, and without bound a long drive would end in infinity."""
        size = past.square().mean(1, keepdim=True).sqrt()
        return past * (self.max_size / size.clamp(min=1e-6)).clamp(max=1.0)

    def _past_maps(self, past: Sequence[SceneState | None], road_z_m: Tensor) -> list[Tensor | None]:
        """The maps of the states; in training those of the last ``unroll`` - 1 steps are fused again, with gradient."""
        if not self.training or self.unroll == 1:
            return [None if state is None else state.bev for state in past]
        chains = [_chain(state) for state in past]  # newest first
        maps: list[Tensor | None] = [None] * len(past)
        for depth in reversed(range(max(map(len, chains)))):
            again = [b for b, chain in enumerate(chains) if len(chain) > depth + 1]
            for b, chain in enumerate(chains):
                if len(chain) == depth + 1:  # where the chain begins
                    maps[b] = chain[depth].bev
            if again:
                own = [chains[b][depth] for b in again]
                frame_bevs = [state.frame_bev for state in own if state.frame_bev is not None]  # of all of them
                bevs = torch.stack(frame_bevs).to(road_z_m.device)
                older = [chains[b][depth + 1] for b in again]
                fused = self.fuse(bevs, own, older, [maps[b] for b in again], road_z_m[again])
                for b, bev in zip(again, fused):
                    maps[b] = bev
        return maps

    def _kept(self, now: SceneState, past: SceneState | None, fused: Tensor, own: Tensor) -> SceneState:
        kept = replace(now, bev=_copied(fused))
        if not self.training or self.unroll == 1:
            return kept
        previous = None if past is None else _shortened(past, self.unroll - 1)
        return replace(kept, frame_bev=_copied(own), previous=previous)

    @torch.no_grad()
    def _follow_mean(self, fused: Tensor) -> None:
        """The mean over processes, too: where they share weights out, nothing else would bring them together."""
        mean = fused.detach().float().mean(0)
        all_reduce(mean, "mean")
        self.running_mean.lerp_(mean, (1.0 / (self.num_updates + 1)).clamp(min=MEAN_SHARE))
        self.num_updates += 1


def _poses(batch: Batch) -> tuple[Tensor, Tensor] | None:
    """global_from_bev and ego_from_bev, [B, 4, 4] float64, of the current frames; None where the batch has none."""
    if batch.global_from_ego is None or batch.ego_from_bev is None:
        return None
    ego_from_bev = batch.ego_from_bev.double()
    return batch.global_from_ego[:, batch.current].double() @ ego_from_bev, ego_from_bev


def _copied(bev: Tensor) -> Tensor:
    return bev.detach().to(torch.float32, memory_format=torch.contiguous_format, copy=True)


def _chain(state: SceneState | None) -> list[SceneState]:
    """The state and those before it, newest first."""
    found = []
    while state is not None:
        found.append(state)
        state = state.previous
    return found


def _shortened(state: SceneState, length: int) -> SceneState | None:
    """The last so many of a chain of states."""
    if length < 1:
        return None
    if length == 1 or state.previous is None:  # the beginning, which is not fused again
        return replace(state, frame_bev=None, previous=None)
    return replace(state, previous=_shortened(state.previous, length - 1))
