"""Training whose memory many processes share: `sharding` of a config, for runs under torchrun.

- None: DistributedDataParallel. Every process holds weights, gradients and the optimiser's state.
- "zero1": the same, but each holds the optimiser's state of its share of the parameters (ZeRO stage 1,
  arXiv 1910.02054, by torch's ZeroRedundancyOptimizer).
- "fsdp2": each holds a part of every weight, gradient and state (torch's fully_shard); a block's weights are fetched
  when it runs.

Checkpoints hold whole tensors in all three, so a run goes on with any of them and any number of processes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import OPTIMIZERS
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.optim import Optimizer

from ..backbone.internimage.model import InternImageLayer
from ..core.errors import ConfigError
from ..core.weights.shards import is_shared_out, shared_out, whole_on_first
from .muon import MuonAdamW

BUFFER_BYTES = 2**28  # how much is broadcast at once, as in DistributedDataParallel


class FixedBuckets(MMDistributedDataParallel):
    """DistributedDataParallel whose buckets of gradients are the same in all iterations.

    torch's own are formed anew after the first backward pass. With three or more processes the place of a gradient in a
    bucket decides in which order its summands are added, so a resumed run would differ by rounding. Here they are
    formed at once, the last parameters first, which is about the order in which gradients come.
    """

    def __init__(self, module: nn.Module, find_unused_parameters: bool = False, **options: Any) -> None:
        super().__init__(module=module, find_unused_parameters=find_unused_parameters, **options)
        if not find_unused_parameters:  # torch's then stay as they are
            self.reducer._push_all_rebuilt_params()
            self.reducer._rebuild_buckets()

    def _build_params_for_reducer(self) -> tuple[list[nn.Parameter], list[bool]]:
        parameters, are_sparse = super()._build_params_for_reducer()
        return parameters[::-1], are_sparse[::-1]


def share_out_model(
    model: nn.Module, device: torch.device, units: Collection[str] = (), find_unused: bool = False
) -> nn.Module:
    """Give each process its part of the model's parameters, on ``device``, in place.

    The blocks of an InternImage, and the modules named in ``units``, are fetched when they run and freed after it; the
    rest is there during the whole pass. So a module's parameters must be used within its own ``forward``. Buffers stay
    whole and are, as in DistributedDataParallel, those of the first process in every training pass.

    A model on the CPU goes to a GPU unit by unit, which never holds it whole. find_unused: parameters may have a
    gradient on some processes and none on others, which then count as zero.

    Raises ConfigError for scalar parameters, which cannot be shared out.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if scalars := [name for name, value in model.named_parameters() if value.ndim == 0]:
        raise ConfigError(
            f"sharding='fsdp2': {scalars[0]} is a single number, which cannot be shared out: give it the shape [1], "
            "or use sharding='zero1'"
        )
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    chosen = [part for name, part in model.named_modules() if name in units or isinstance(part, InternImageLayer)]
    for part in reversed(chosen):  # inner ones first
        fully_shard(part, mesh=mesh)
    sharded = fully_shard(model, mesh=mesh)
    if find_unused:
        if not hasattr(sharded, "set_reduce_scatter_unused_params"):
            raise ConfigError(
                "sharding='fsdp2' with find_unused_parameters=True needs a newer torch; use sharding='zero1'"
            )
        sharded.set_reduce_scatter_unused_params(True)
    model.register_forward_pre_hook(_share_buffers)
    return model


def _share_buffers(model: nn.Module, _: Any) -> None:
    buffers, everyone = list(model.buffers()), dist.group.WORLD
    if buffers and model.training and everyone is not None:
        dist._broadcast_coalesced(everyone, buffers, BUFFER_BYTES, 0)


def whole_optimizer_state(state: dict[str, Any]) -> dict[str, Any]:
    """The state dict of an optimiser with whole tensors on the first process; all of them call."""
    return {**state, "state": whole_on_first(state["state"])}


def shared_out_state(state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """The state dict of an optimiser with tensors shared out as the parameters that they belong to."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not any(is_shared_out(parameter) for parameter in parameters):
        return state
    found = {
        index: {name: _as_parameter(value, parameters[index]) for name, value in entries.items()}
        for index, entries in state["state"].items()
    }
    return {**state, "state": found}


def _as_parameter(value: Any, parameter: Tensor) -> Any:
    """Counts of steps and the like have shapes of their own and stay whole."""
    return shared_out(value, parameter) if isinstance(value, Tensor) and value.shape == parameter.shape else value


def with_shared_state(optimizer: Mapping[str, Any]) -> dict[str, Any]:
    """The config of an optimiser whose state the processes share out (ZeRO stage 1)."""
    kind = optimizer["type"]
    return {**optimizer, "type": SharedStateOptimizer, "optimizer_class": _optimizer_class(kind)}


def check_shared_out(optimizer: Mapping[str, Any]) -> None:
    """Raises ConfigError for an optimiser that cannot work on parts of weights."""
    kind = _optimizer_class(optimizer["type"])
    if isinstance(kind, type) and issubclass(kind, (torch.optim.Adafactor, MuonAdamW)):
        raise ConfigError(
            f"sharding='fsdp2': {kind.__name__} looks at rows and columns of whole weights; use AdamW, or "
            "sharding='zero1'"
        )


def _optimizer_class(kind: str | type) -> type:
    found = OPTIMIZERS.get(kind) if isinstance(kind, str) else kind
    if found is None:
        raise ConfigError(f"optim_wrapper.optimizer.type: nothing is registered as {kind!r}.")
    return found


class SharedStateOptimizer(ZeroRedundancyOptimizer):
    """torch's, with a state dict that any optimiser of ``optimizer_class`` can load, and that does not go to all.

    torch's own pickles each process's whole state and broadcasts it, through GPU memory, to all processes.
    """

    def __init__(self, params: Any, optimizer_class: type[Optimizer], **options: Any) -> None:
        super().__init__(params, optimizer_class, **options)
        self.defaults = dict(self.optim.defaults)
        for group, own in zip(self.param_groups, self.optim.param_groups):
            group.update({name: value for name, value in own.items() if name not in group})

    def state_dict(self) -> dict[str, Any]:
        """Whole on the first process, on the CPU; without entries on the others. All of them call."""
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        places = {parameter: index for index, parameter in enumerate(parameters)}
        own = {places[parameter]: entries for parameter, entries in self.optim.state.items()}
        rank, size, device = dist.get_rank(), dist.get_world_size(), parameters[0].device
        notes = {index: {name: _note(value) for name, value in entries.items()} for index, entries in own.items()}
        noted: list[Any] = [None] * size
        dist.gather_object(notes, noted if rank == 0 else None)
        state: dict[int, dict[str, Any]] = {}
        if rank > 0:
            for index, entries in notes.items():
                for name in (name for name, note in entries.items() if isinstance(note, Sent)):
                    dist.send(own[index][name].to(device).contiguous(), 0)
        else:
            state = {i: {k: v.cpu() if isinstance(v, Tensor) else v for k, v in own[i].items()} for i in own}
            for sender in range(1, size):
                for index, entries in noted[sender].items():
                    state[index] = {name: _received(note, sender, device) for name, note in entries.items()}
        return {**Optimizer.state_dict(self), "state": dict(sorted(state.items()))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take this process's share of a whole state."""
        groups = state_dict["param_groups"]
        Optimizer.load_state_dict(self, {"state": {}, "param_groups": groups})
        places = {parameter: i for i, parameter in enumerate(p for group in self.param_groups for p in group["params"])}
        entries: dict[int, Any] = {}
        own_groups = self.optim.state_dict()["param_groups"]
        for group, own in zip(self.optim.param_groups, own_groups):
            for parameter, number in zip(group["params"], own["params"]):
                if places[parameter] in state_dict["state"]:
                    entries[number] = state_dict["state"][places[parameter]]
        own_groups = [{**group, "params": own["params"]} for group, own in zip(groups, own_groups)]
        self.optim.load_state_dict({"state": entries, "param_groups": own_groups})


class Sent:
    """A tensor that is sent by itself: its shape and type."""

    def __init__(self, value: Tensor) -> None:
        self.shape, self.dtype = tuple(value.shape), value.dtype


def _note(value: Any) -> Any:
    return Sent(value) if isinstance(value, Tensor) and value.ndim else value


def _received(note: Any, sender: int, device: torch.device) -> Any:
    if not isinstance(note, Sent):
        return note.cpu() if isinstance(note, Tensor) else note
    value = torch.empty(note.shape, dtype=note.dtype, device=device)
    dist.recv(value, sender)
    return value.cpu()
