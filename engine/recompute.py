"""Activation checkpointing by a module's name: what it computes is dropped, and computed again in backward."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ..core.errors import ConfigError


def module_names(model: nn.Module, config: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """The submodules that ``key`` of a config names. Raises ConfigError for one that the model does not have."""
    value = config.get(key) or ()
    names = (value,) if isinstance(value, str) else tuple(value)
    for name in names:
        try:
            model.get_submodule(name)
        except AttributeError:
            parts = ", ".join(child for child, _ in model.named_children())
            raise ConfigError(f"{key}: the model has no module {name!r}; it has {parts}.") from None
    return names


def recompute_in_backward(model: nn.Module, names: Iterable[str]) -> None:
    """Let these submodules keep only their inputs in training: less memory, about a third more time.

    Gradients, random numbers (dropout) and the statistics of BatchNorm are as without. Only ``forward`` is replaced, so
    hooks around it run once: FSDP2's, which fetch and free weights, are outside, whether they are added before or
    after.
    """
    for name in names:
        module = model.get_submodule(name)
        module.forward = _recomputed(module)


def _recomputed(module: nn.Module) -> Any:
    forward = module.forward

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _StatisticsKept(module)

    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not (module.training and torch.is_grad_enabled()):
            return forward(*args, **kwargs)
        # Not the re-entrant kind: it gives no gradient where the inputs need none, as images do.
        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    return run


class _StatisticsKept(AbstractContextManager[None]):
    """Within, BatchNorm normalises as in training but does not count the batch, which it has counted before."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.before: list[tuple[_BatchNorm, float | None, Tensor | None]] = []

    def __enter__(self) -> None:
        norms = [part for part in self.module.modules() if isinstance(part, _BatchNorm)]
        for norm in (norm for norm in norms if norm.training and norm.track_running_stats):
            count = norm.num_batches_tracked
            self.before.append((norm, norm.momentum, None if count is None else count.clone()))
            norm.momentum = 0.0

    def __exit__(self, *_: object) -> None:
        for norm, momentum, count in self.before:
            norm.momentum = momentum
            if count is not None and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(count)
        self.before.clear()
