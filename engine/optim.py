"""One optimiser wrapper for fp32, bf16 and fp16, on CPU and GPU, that never steps on a gradient that is not finite."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from ..core.registries import OPTIM_WRAPPERS
from ..core.weights.shards import whole
from .precision import PRECISIONS, chosen_precision
from .sharding import shared_out_state, whole_optimizer_state


@OPTIM_WRAPPERS.register_module()
class PrecisionOptimWrapper(OptimWrapper):
    """Mixed precision by name. (MMEngine's AmpOptimWrapper refuses to run without a GPU.)

    ``precision`` is "fp32", "bf16", "fp16" or "auto" (precision.py); only fp16 scales its loss, and a step that
    overflows is then skipped and the scale halved. In fp32 and bf16 such a step raises FloatingPointError before the
    optimiser moves.
    ``clip_grad`` as in OptimWrapper; without it the norm is still measured and checked. Where processes share gradients
    and states out (sharding.py), the norm is that of all of them, and state dicts are whole: all processes call
    ``state_dict``, the first one gets it.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        precision: str = "fp32",
        clip_grad: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(optimizer, clip_grad=clip_grad or {"max_norm": math.inf}, **kwargs)
        self.device_type = optimizer.param_groups[0]["params"][0].device.type
        precision = chosen_precision(precision, self.device_type)
        self.autocast_dtype = PRECISIONS[precision]
        self.scaler = torch.amp.GradScaler(self.device_type, enabled=precision == "fp16")
        self.gradient_norm = math.nan

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with super().optim_context(model), self.autocast():
            yield

    def autocast(self) -> torch.autocast:
        """The precision in which the model computes, as a context."""
        return torch.autocast(self.device_type, self.autocast_dtype, enabled=self.autocast_dtype is not None)

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        self.scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs: Any) -> None:
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        if self.clip_func is torch.nn.utils.clip_grad_value_:  # which makes infinity finite, and tells no norm
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            self.clip_func(parameters, **self.clip_grad_kwargs)
        else:
            norm = self.clip_func(parameters, **self.clip_grad_kwargs)
        self.gradient_norm = float(whole(norm))
        if not math.isfinite(self.gradient_norm) and not self.scaler.is_enabled():
            raise FloatingPointError(f"gradient norm is {self.gradient_norm} although the loss is finite")
        self.scaler.step(self.optimizer, **kwargs)
        self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        return whole_optimizer_state({**super().state_dict(), "loss_scaler": self.scaler.state_dict()})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = dict(state_dict)
        scaler_state = state.pop("loss_scaler", {})
        if self.scaler.is_enabled() and scaler_state:  # of a run in another precision it is empty: start as a new run
            self.scaler.load_state_dict(scaler_state)
        super().load_state_dict(shared_out_state(state, self.optimizer))
