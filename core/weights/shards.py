"""Tensors of which every process holds a part (DTensors, as FSDP2 makes a model's parameters), and whole ones.

Files hold whole tensors only: `whole_on_first` before they are written, `shared_out` after they are read.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn


def is_shared_out(value: Any) -> bool:
    """Whether this process holds a part of the tensor only."""
    module = sys.modules.get("torch.distributed.tensor")  # slow to import, and there wherever such a tensor is
    return module is not None and isinstance(value, module.DTensor)


def has_shared_out(model: nn.Module) -> bool:
    """Whether processes share the model's weights out among them."""
    return any(is_shared_out(value) for value in model.parameters())


def own_part(value: Tensor) -> Tensor:
    """What this process holds of the tensor, which may be nothing; its memory is shared. A whole tensor as it is."""
    return cast(Any, value).to_local() if is_shared_out(value) else value


def shared_out(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, equal on all processes, shared out as ``like`` is; nothing is sent."""
    if not is_shared_out(like) or is_shared_out(value):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    whole = value.detach().to(like.device)
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def joined(part: Tensor, like: Tensor) -> Tensor:
    """Parts of all processes as the one tensor that they are, shared out as ``like`` is; nothing is sent."""
    if not is_shared_out(like):
        return part
    from torch.distributed.tensor import DTensor

    assert isinstance(like, DTensor)
    return DTensor.from_local(
        part.to(like.device), like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def whole(value: Tensor) -> Tensor:
    """The whole tensor on every process; all of them call. One that is whole is returned as it is."""
    return cast(Any, value).full_tensor() if is_shared_out(value) else value


def whole_on_first(state: Mapping[str, Any]) -> dict[str, Any]:
    """A nested dict whose tensors are whole and on the CPU; all processes call, and all but the first get {}.

    Tensors are fetched one by one, so a GPU holds at most one whole tensor more. Where none is shared out, the dict is
    returned as it is, on every process.
    """
    if not _any_shared_out(state):
        return dict(state)
    found = _fetched(state)
    return found if torch.distributed.get_rank() == 0 else {}


def _any_shared_out(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_any_shared_out(item) for item in value.values())
    return is_shared_out(value)


def _fetched(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _fetched(item) for key, item in value.items()}
    if not isinstance(value, Tensor):
        return value
    found = whole(value.detach())  # all processes take part; the others drop it at once
    return found.cpu() if torch.distributed.get_rank() == 0 else None
