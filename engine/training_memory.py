"""What a model with memory carries from iteration to iteration, held by the training loop and by checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from mmengine.dist import get_rank, get_world_size
from torch import Tensor


class TrainingMemory:
    """The states of the sequences that this process walks through, by stream (Batch.streams).

    turns: iterations from one frame of a sequence to the next (StreamingSampler.interleave); a state that is not
    followed up then is dropped.
    """

    def __init__(self, turns: int = 1) -> None:
        self.turns = turns
        self.states: dict[str, Any] = {}
        self.made_at: dict[str, int] = {}
        """Iteration of each state."""

    def update(self, states: Mapping[str, Any], iteration: int) -> None:
        """Take in the states of an iteration."""
        self.states |= states
        self.made_at |= dict.fromkeys(states, iteration)
        for key in [key for key, made in self.made_at.items() if made <= iteration - self.turns]:
            del self.states[key], self.made_at[key]

    def gathered(self, model: Any) -> dict[str, Any]:
        """All processes' states as plain values on the first one's CPU; all call."""
        own = {"states": on_cpu(model.pack_memory(self.states)), "made_at": dict(self.made_at)}
        if get_world_size() == 1:
            return own
        parts: list[Any] | None = [None] * get_world_size() if get_rank() == 0 else None
        torch.distributed.gather_object(own, parts)
        return joined(parts or [])

    def load(self, model: Any, packed: Mapping[str, Any]) -> None:
        """Take the states of ``gathered``, those of other processes too: whose they are now depends on how many there
        are."""
        self.states = model.unpack_memory(dict(packed["states"]))
        self.made_at = {key: int(made) for key, made in packed["made_at"].items()}
        if self.states.keys() != self.made_at.keys():
            raise ValueError("its memory has states without their iterations, or the reverse")


def joined(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Of several processes: the newest state of each stream."""
    found: dict[str, Any] = {"states": {}, "made_at": {}}
    for part in parts:
        for key, made in part["made_at"].items():
            if made >= found["made_at"].get(key, made):
                found["states"][key], found["made_at"][key] = part["states"][key], made
    return found


def on_cpu(value: Any) -> Any:
    """A nest of dicts, lists and tuples with its tensors on the CPU, copied."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: on_cpu(own) for key, own in value.items()}
    return type(value)(map(on_cpu, value)) if isinstance(value, (list, tuple)) else value
