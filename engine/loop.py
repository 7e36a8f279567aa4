"""The training loop: one iteration depends on (weights, seed, iteration, rank) and on nothing that happened before.

So a run that was killed and resumed takes the same path as one that was not.
"""

from __future__ import annotations

import math
import random
import time
from typing import Any

import numpy as np
import torch
from mmengine.dist import broadcast, get_rank
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop, Runner
from torch import Tensor

from ..core.errors import ConfigError, TrainingError
from ..core.registries import LOOPS


def reseed(seed: int, iteration: int, rank: int) -> None:
    """Set the Python, NumPy and torch generators to a state of their own for this iteration on this rank."""
    for_python, for_numpy, for_torch = np.random.SeedSequence((seed, iteration, rank)).generate_state(3)
    random.seed(int(for_python))
    np.random.seed(for_numpy)
    torch.manual_seed(int(for_torch))


def check_finite(losses: dict[str, Tensor]) -> None:
    """Raise FloatingPointError that names each loss term which is NaN or infinite."""
    terms = torch.stack([value.detach().float() for value in losses.values()])
    if not bool(torch.isfinite(terms).all()):
        bad = [f"{name} = {value:g}" for name, value in zip(losses, terms.tolist()) if not math.isfinite(value)]
        raise FloatingPointError(f"loss term {', '.join(bad)}")


@LOOPS.register_module()
class ResumableTrainLoop(BaseLoop):
    """Trains for ``max_iters`` iterations, or until ``max_minutes`` of this process have passed.

    The model is called as ``model(batch, mode="loss")`` and returns named terms; those whose name contains "loss"
    are added up. The dataloader's sampler is endless and takes ``load_state_dict({"position": n})``, n the samples of
    this rank that were already used (data_tools.clips.sampler.ResumableSampler).
    """

    def __init__(self, runner: Runner, dataloader: Any, max_iters: int, max_minutes: float | None = None) -> None:
        super().__init__(runner, dataloader)
        if not hasattr(self.dataloader.sampler, "load_state_dict"):
            raise ConfigError(
                f"train_dataloader.sampler: {type(self.dataloader.sampler).__name__} cannot resume; "
                "use ResumableSampler."
            )
        self.max_iters = max_iters
        self.max_minutes = max_minutes
        self.max_epochs = 1
        self.epoch = 0
        self.iter = 0
        self.stop_training = False
        self.data_time_s = 0.0

    def run(self) -> torch.nn.Module:
        self.runner.call_hook("before_train")
        self.runner.call_hook("before_train_epoch")
        deadline = math.inf if self.max_minutes is None else time.monotonic() + 60 * self.max_minutes
        self.dataloader.sampler.load_state_dict({"position": self.iter * self.dataloader.batch_size})
        batches = iter(self.dataloader)  # draws a random number, so before the first reseed
        while self.iter < self.max_iters and not self.stop_training:
            self.runner.model.train()
            reseed(self.runner.seed, self.iter, get_rank())
            start = time.monotonic()
            batch = next(batches)
            self.data_time_s = time.monotonic() - start
            self._run_iteration(batch)
            self.iter += 1
            self.stop_training |= self._is_past(deadline)
        self.runner.call_hook("after_train_epoch")
        self.runner.call_hook("after_train")
        return self.runner.model

    def _run_iteration(self, batch: Any) -> None:
        runner = self.runner
        runner.call_hook("before_train_iter", batch_idx=self.iter, data_batch=batch)
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        batch = batch.to(next(model.parameters()).device)
        try:
            with runner.optim_wrapper.optim_context(runner.model):
                losses = runner.model(batch, mode="loss")
            check_finite(losses)
            total = sum(value for name, value in losses.items() if "loss" in name)
            runner.optim_wrapper.update_params(total)
        except FloatingPointError as error:
            raise TrainingError(
                f"iteration {self.iter}: {error}, on samples {', '.join(batch.tokens)}. This step changed nothing and "
                "the last checkpoint is good. Look at these samples (drivestack visualize) or lower the learning rate."
            ) from error
        outputs = {"loss": total.detach()} | {name: value.detach() for name, value in losses.items()}
        runner.call_hook("after_train_iter", batch_idx=self.iter, data_batch=batch, outputs=outputs)

    def _is_past(self, deadline: float) -> bool:
        """Rank 0 decides, so that no rank waits for one that has left."""
        if deadline == math.inf:
            return False
        past = torch.tensor(int(time.monotonic() > deadline))
        broadcast(past)
        return bool(past)
