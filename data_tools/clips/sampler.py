"""The order of clips: endless, resumable training orders and a scene-by-scene evaluation order.

A sampler yields ``(index, draw)``: the clip and the number that seeds its augmentation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from mmengine.dist import get_dist_info
from numpy.typing import NDArray
from torch.utils.data import Sampler

from ...core.errors import ConfigError
from ...core.registries import DATA_SAMPLERS


class HasScenes(Protocol):
    @property
    def scene_tokens(self) -> Sequence[str]:
        """Scene of each clip, in dataset order: a scene's clips follow each other in time."""


def scene_runs(scene_tokens: Sequence[str]) -> list[NDArray[np.int64]]:
    """Indices of consecutive clips of one scene, scene by scene in dataset order."""
    codes = np.unique(np.asarray(scene_tokens), return_inverse=True)[1]
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    return np.split(np.arange(len(codes)), starts[1:])


class EndlessSampler(Sampler):
    """What endless orders share: the position of this rank, which can be saved.

    With prefetching workers the sampler runs ahead of the trainer, which therefore states how many samples it has used:
    ``state_dict(consumed)``, or ``load_state_dict({"position": n})``.
    """

    def __init__(self, dataset: HasScenes, seed: int | None, rank: int | None, world_size: int | None) -> None:
        default_rank, default_world_size = get_dist_info()
        self.size = len(dataset.scene_tokens)
        self.seed = 0 if seed is None else seed
        self.rank = default_rank if rank is None else rank
        self.world_size = default_world_size if world_size is None else world_size
        self.position = 0
        self.forget()

    def at(self, position: int) -> tuple[int, int]:
        """(index, draw) that this rank yields at a position."""
        raise NotImplementedError

    def forget(self) -> None:
        """Drop what was derived from the seed, which may have changed."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[tuple[int, int]]:
        while True:
            item = self.at(self.position)
            self.position += 1
            yield item

    def __len__(self) -> int:
        """Samples of this rank per epoch (rounded up); the iterator itself does not end."""
        return -(-self.size // self.world_size)

    def state_dict(self, consumed: int | None = None) -> dict[str, Any]:
        return {"position": self.position if consumed is None else consumed, "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = int(state["position"])
        self.seed = int(state.get("seed", self.seed))
        self.forget()

    def set_epoch(self, epoch: int) -> None:
        """Called by epoch-based loops; the orders here already differ from epoch to epoch."""


@DATA_SAMPLERS.register_module()
class ResumableSampler(EndlessSampler):
    """An endless shuffled order that is a pure function of (seed, position).

    dataset: anything with ``scene_tokens``; run_length: so many clips of one scene stay together in time order (1:
    every clip for itself); rank, world_size: which share this process draws (default: from torch.distributed).

    Every epoch visits each clip once. The global order is dealt out to the ranks like cards, so together they see
    what one process would. ``draw`` is the position in the global order, hence new in every epoch.
    """

    def __init__(
        self,
        dataset: HasScenes,
        seed: int | None = None,
        run_length: int = 1,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if type(run_length) is not int or run_length < 1:
            raise ValueError(f"sampler.run_length must be a whole number from 1 on, got {run_length!r}")
        if seed is not None and (type(seed) is not int or seed < 0):
            raise ValueError(f"sampler.seed must be a whole number from 0 on, got {seed!r}")
        super().__init__(dataset, seed, rank, world_size)
        self.scenes = scene_runs(dataset.scene_tokens)
        self.run_length = run_length

    def forget(self) -> None:
        self._epoch: tuple[int, NDArray[np.int64]] | None = None

    def order(self, epoch: int) -> NDArray[np.int64]:
        """All clip indices in the order of one epoch."""
        if self._epoch is None or self._epoch[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            if self.run_length == 1:
                order = rng.permutation(self.size)
            else:
                runs = []
                for scene in self.scenes:
                    # A random first cut, so that a clip is not always at the same place of its run.
                    cuts = np.arange(rng.integers(1, self.run_length + 1), len(scene), self.run_length)
                    runs += np.split(scene, cuts)
                order = np.concatenate([runs[i] for i in rng.permutation(len(runs))])
            self._epoch = epoch, order
        return self._epoch[1]

    def at(self, position: int) -> tuple[int, int]:
        """(index, draw) that this rank yields at a position."""
        draw = position * self.world_size + self.rank
        return int(self.order(draw // self.size)[draw % self.size]), draw


class StreamStep(NamedTuple):
    """A frame of a sequence that a memory follows; all frames of one pass through a sequence have the same draw."""

    clip: int
    draw: int


@DATA_SAMPLERS.register_module()
class StreamingSampler(EndlessSampler):
    """An endless order for models with memory: each place of the global batch walks through whole sequences in time.

    The places (slots) are those of all ranks' batches, ``interleave`` times over: slot s takes every so-manieth
    sequence of an endless list in which each epoch has every sequence once, in a shuffled order (the idea is that of
    SOLOFusion, arXiv 2210.02443). The first sequence of a slot is begun in its middle, so that slots change scenes at
    different times. What a rank yields is a pure function of (seed, position), so it resumes to the bit, with any
    number of ranks that together have as many slots.

    dataset: anything with ``scene_tokens``; batch_size: of one rank (train fills it in from its dataloader);
    interleave: sequences that a place of the batch walks through by turns, a frame of each, so that steps of the
    optimiser with few samples do not see one scene many times in a row; sequence_frames: scenes are cut into sequences
    of about equal length and at most so many frames, None: whole scenes; rank, world_size: default from
    torch.distributed.
    """

    def __init__(
        self,
        dataset: HasScenes,
        seed: int | None = None,
        batch_size: int = 1,
        interleave: int = 1,
        sequence_frames: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        counts = dict(batch_size=batch_size, interleave=interleave, sequence_frames=sequence_frames)
        for name, value, low in (*((name, value, 1) for name, value in counts.items()), ("seed", seed, 0)):
            if value is not None and (type(value) is not int or value < low):
                raise ConfigError(f"sampler.{name}: must be a whole number from {low} on, got {value!r}")
        super().__init__(dataset, seed, rank, world_size)
        self.sequences = [
            part
            for scene in scene_runs(dataset.scene_tokens)
            for part in np.array_split(scene, -(-len(scene) // (sequence_frames or len(scene))))
        ]
        if not self.sequences:
            raise ConfigError("sampler: the dataset has no frames")
        self.batch_size, self.interleave = batch_size, interleave

    def forget(self) -> None:
        self._orders: dict[int, NDArray[np.int64]] = {}
        self._walks: dict[int, tuple[int, int]] = {}

    @property
    def slots(self) -> int:
        """Sequences that are walked through at a time, over all ranks."""
        return self.world_size * self.batch_size * self.interleave

    def sequence(self, number: int) -> NDArray[np.int64]:
        """The clips of a sequence of the endless list."""
        epoch, place = divmod(number, len(self.sequences))
        if epoch not in self._orders:
            if len(self._orders) > 64:  # slots are in a few epochs at a time
                self._orders.clear()
            self._orders[epoch] = np.random.default_rng([self.seed, epoch]).permutation(len(self.sequences))
        return self.sequences[self._orders[epoch][place]]

    def at(self, position: int) -> StreamStep:
        """What this rank yields at a position; quick for positions that ascend."""
        iteration, place = divmod(position, self.batch_size)
        step, turn = divmod(iteration, self.interleave)
        slot = (turn * self.batch_size + place) * self.world_size + self.rank
        first = slot, -(len(self.sequence(slot)) * slot // self.slots)  # number of the sequence, step of its beginning
        number, begun = self._walks.get(slot, first)
        if begun > step:
            number, begun = first
        while (end := begun + len(self.sequence(number))) <= step:
            number, begun = number + self.slots, end
        self._walks[slot] = number, begun
        return StreamStep(int(self.sequence(number)[step - begun]), number)


@DATA_SAMPLERS.register_module()
class SceneOrderSampler(Sampler):
    """Each clip once, in scene and time order; every rank gets whole, neighbouring scenes (never a part of one).

    Ranks may differ in length, by about a scene. Yields plain indices: evaluation draws nothing.
    """

    def __init__(
        self,
        dataset: HasScenes,
        seed: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        del seed  # the engine gives one to every sampler
        default_rank, default_world_size = get_dist_info()
        rank = default_rank if rank is None else rank
        world_size = default_world_size if world_size is None else world_size
        scenes = scene_runs(dataset.scene_tokens)
        total = len(dataset.scene_tokens)
        mine = []
        for scene in scenes:
            middle = (scene[0] + scene[-1] + 1) / 2  # a scene belongs to the rank in whose equal share its middle lies
            if min(int(middle * world_size / total), world_size - 1) == rank:
                mine.append(scene)
        self.indices = np.concatenate(mine) if mine else np.zeros(0, np.int64)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices.tolist())

    def __len__(self) -> int:
        return len(self.indices)
