"""The moving average of the weights (EMA) that a run publishes."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import EMAHook
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..core.weights.shards import has_shared_out, joined, own_part, shared_out, whole_on_first

MODULE = "module."  # before the names of averaged weights in MMEngine's files
DOT = "/"  # stands for the dots of a key where a module's name may have none


class AverageWeights(EMAHook):
    """MMEngine's moving average of the weights, moved by steps of the optimiser.

    So it does not depend on how many iterations, and processes, share a step. Where processes share the weights out
    (FSDP2), each averages its own part.
    """

    sharded: nn.Module | None = None
    """The model, where its weights are shared out."""
    gathered: dict[str, Tensor]

    def before_run(self, runner: Any) -> None:
        if not has_shared_out(runner.bare_model):
            super().before_run(runner)
            return
        self.sharded = runner.bare_model
        self.src_model = parts_of(self.sharded)
        self.ema_model = MODELS.build(self.ema_cfg, default_args=dict(model=self.src_model))

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if (runner.iter + 1) % runner.train_loop.window:
            return
        if self.sharded is not None:
            self.src_model = parts_of(self.sharded)
        super().after_train_iter(runner, batch_idx, data_batch, outputs)

    def gather(self) -> None:
        """Fetch whole averages to the first process, for a checkpoint or a validation; all processes call."""
        if self.sharded is None:
            return
        like = self.sharded.state_dict()
        found = {}
        for key, value in self.ema_model.state_dict().items():
            name = key.removeprefix(MODULE).replace(DOT, ".")
            found[MODULE + name if key.startswith(MODULE) else key] = (
                joined(value, like[name]) if name in like else value
            )
        self.gathered = whole_on_first(found)

    def averaged(self) -> dict[str, Tensor]:
        """The gathered averages by the model's names."""
        return {key.removeprefix(MODULE): value for key, value in self.gathered.items() if key.startswith(MODULE)}

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        if self.sharded is None:
            super().before_save_checkpoint(runner, checkpoint)
            return
        checkpoint["ema_state_dict"] = self.gathered
        self._swap_ema_state_dict(checkpoint)

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        if self.sharded is None:
            super().after_load_checkpoint(runner, checkpoint)
            return
        if "ema_state_dict" in checkpoint and runner._resume:
            self._swap_ema_state_dict(checkpoint)
            values = checkpoint["ema_state_dict"]
        else:
            values = {MODULE + key: value for key, value in checkpoint["state_dict"].items()}
        like, own = self.sharded.state_dict(), self.ema_model.state_dict()
        for key, value in values.items():
            name = key.removeprefix(MODULE)
            if key.startswith(MODULE) and name in like:
                own[MODULE + name.replace(".", DOT)] = own_part(shared_out(value, like[name]))
            else:
                own[key] = value
        self.ema_model.load_state_dict(own, strict=self.strict_load)

    def _swap_ema_parameters(self) -> None:
        if self.sharded is None:  # else validation gets the averages in a model of its own (TrainRunner.scored_model)
            super()._swap_ema_parameters()


def parts_of(model: nn.Module) -> nn.Module:
    """A module without children that holds this process's parts of the model's state dict, in the same memory."""
    parts, made = nn.Module(), {}
    for key, value in model.state_dict(keep_vars=True).items():
        name = key.replace(".", DOT)
        if isinstance(value, nn.Parameter):
            if id(value) not in made:  # a tensor with two names stays one
                made[id(value)] = nn.Parameter(own_part(value.detach()), requires_grad=False)
            parts.register_parameter(name, made[id(value)])
        else:
            parts.register_buffer(name, value)
    return parts
