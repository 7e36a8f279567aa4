"""Muon for matrices, AdamW for the rest, as one optimiser.

Muon: Keller Jordan et al. 2024 (kellerjordan.github.io/posts/muon), with the step size that matches AdamW's of
"Muon is Scalable for LLM Training", arXiv 2502.16982, section 2.2, so that one learning rate serves both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIMIZERS
from torch import Tensor, nn
from torch.optim import AdamW

from ..core.errors import ConfigError
from ..core.registries import OPTIM_WRAPPER_CONSTRUCTORS
from ..core.weights.published_keys import published_name

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the Newton-Schulz iteration, from the post above
RMS_OF_ADAMW = 0.2  # of an update, arXiv 2502.16982


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """[n, rows, columns]: each matrix with its singular values moved near 1 (0.7 to 1.2), in bfloat16."""
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16()
    is_tall = x.shape[1] > x.shape[2]
    x = x.mT if is_tall else x
    x = x / x.float().norm(dim=(1, 2), keepdim=True).clamp(min=1e-7).bfloat16()
    for _ in range(steps):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


@OPTIMIZERS.register_module()
class MuonAdamW(AdamW):
    """AdamW, but for parameter groups with ``muon=True``, whose matrices move along their orthogonalised momentum.

    momentum: of those, Nesterov's; muon_lr: their learning rate as a factor of ``lr``, whatever its schedule. Other
    arguments are AdamW's. Decoupled weight decay is the same in both. MuonConstructor makes the groups.
    """

    def __init__(
        self, params: Any, lr: float = 1e-3, momentum: float = 0.95, muon_lr: float = 1.0, **adamw: Any
    ) -> None:
        super().__init__(params, lr=lr, **adamw)
        for group in self.param_groups:
            group.setdefault("muon", False)
            group.setdefault("momentum", momentum)
            group.setdefault("muon_lr", muon_lr)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if not group["muon"]]
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if group["muon"]:
                self._move(group)
        return loss

    def _move(self, group: dict[str, Any]) -> None:
        of_shape: dict[torch.Size, list[Tensor]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                of_shape.setdefault(parameter.shape, []).append(parameter)
        for shape, parameters in of_shape.items():
            gradients, kept = [p.grad for p in parameters if p.grad is not None], []
            for parameter in parameters:
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    # AdamW looks for a step in every state that it loads
                    state.update(step=torch.zeros(()), momentum_buffer=torch.zeros_like(parameter))
                kept.append(state["momentum_buffer"])
            torch._foreach_lerp_(kept, gradients, 1 - group["momentum"])
            ahead = torch._foreach_lerp(gradients, kept, group["momentum"])
            update = orthogonal(torch.stack(ahead)).to(parameters[0].dtype).unbind()
            lr = group["lr"] * group["muon_lr"]
            torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
            torch._foreach_add_(parameters, update, alpha=-lr * RMS_OF_ADAMW * math.sqrt(max(shape)))


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class MuonConstructor(DefaultOptimWrapperConstructor):
    """`optim_wrapper=dict(constructor=MuonConstructor, optimizer=dict(type=MuonAdamW, ...), paramwise_cfg=...)`.

    Weights of linear layers learn by Muon: matrices from features to features. Embeddings, convolutions, norms, biases,
    and linear layers with fewer than 16 outputs (classes, box codes) learn by AdamW. Reads from `paramwise_cfg`, all
    optional:

    - `adamw` (()): parts of names of further matrices that learn by AdamW, in the model or in checkpoints.
    - `decay_one_dim` (True): whether one-dimensional tensors have weight decay, as AdamW alone has it.

    Raises ConfigError for an unknown option, another optimiser than MuonAdamW, or a part that no name has.
    """

    DEFAULTS: dict[str, Any] = {"adamw": (), "decay_one_dim": True}
    LEAST_OUTPUTS = 16

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        given = dict(paramwise_cfg or {})
        if unknown := sorted(set(given) - set(self.DEFAULTS)):
            raise ConfigError(f"paramwise_cfg: unknown {', '.join(unknown)}; known are {', '.join(self.DEFAULTS)}")
        super().__init__(optim_wrapper_cfg, {**self.DEFAULTS, **given})
        optimizer = optim_wrapper_cfg["optimizer"]
        kind = optimizer.get("optimizer_class", optimizer.get("type"))  # within SharedStateOptimizer
        if kind not in (MuonAdamW, "MuonAdamW"):
            raise ConfigError(f"optim_wrapper.optimizer.type: MuonConstructor needs MuonAdamW, got {kind!r}")

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = "", is_dcn_module: Any = None) -> None:
        """Fill `params` with the groups of the whole model (MMEngine calls this once)."""
        by_muon = self._matrices(module)
        groups: dict[str, dict[str, Any]] = {
            "muon": {"params": [], "muon": True},
            "adamw": {"params": []},
            "one_dim": {"params": [], "weight_decay": 0.0},
        }
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                flat = parameter.ndim <= 1 and not self.paramwise_cfg["decay_one_dim"]
                groups["muon" if name in by_muon else "one_dim" if flat else "adamw"]["params"].append(parameter)
        params.extend(group for group in groups.values() if group["params"])

    def _matrices(self, model: nn.Module) -> set[str]:
        found = {
            f"{name}.weight"
            for name, part in model.named_modules()
            if isinstance(part, nn.Linear) and part.out_features >= self.LEAST_OUTPUTS
        }
        names = {name: (name, published_name(model, name)) for name, _ in model.named_parameters()}
        for part in self.paramwise_cfg["adamw"]:
            if not any(_has(own, part) for own in names.values()):
                raise ConfigError(f"paramwise_cfg.adamw: no parameter has {part!r} in its name")
        return {
            name for name in found if not any(_has(names.get(name, ()), part) for part in self.paramwise_cfg["adamw"])
        }


def _has(names: Iterable[str], part: str) -> bool:
    return any(part in name for name in names)
