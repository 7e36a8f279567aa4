"""The training loop: one iteration depends on (weights, seed, iteration, rank) and on nothing that happened before.

So a run that was killed and resumed takes the same path as one that was not. A model with memory adds its ``memory``,
which the loop holds, and checkpoints carry.
"""

from __future__ import annotations

import math
import os
import random
import time
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_reduce, barrier, get_rank, get_world_size
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop, Runner
from torch import Tensor

from ..core.errors import ConfigError, TrainingError
from ..core.registries import LOOPS
from ..core.signals import Held, hold_termination, start_children_without_signals
from .failures import bad_parameters, computing, end_workers, reading, workers_die_quietly
from .training_memory import TrainingMemory

AGAIN = "--resume goes on from the last checkpoint"
WORKERS = "train_dataloader.num_workers"
SHOWN = 4  # samples in a message


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
    """Trains for ``max_iters`` iterations, or until ``max_minutes`` of this process have passed or SIGTERM comes.

    The model is called as ``model(batch, mode="loss")`` and returns named terms; those whose name contains "loss"
    are added up. A model that ``streams`` is called as ``model(batch, mode="stream", memory=states)`` and also returns
    the states of the batch's streams, which no gradient goes through (bev/protocol.py). The dataloader's sampler is
    endless and takes ``load_state_dict({"position": n})``, n the samples of this rank that were already used
    (data_tools.clips.sampler.ResumableSampler). It stops between two steps of the optimiser only, so ``max_iters`` is a
    multiple of the iterations that are accumulated into one (train.py).
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
        sampler, own = self.dataloader.sampler, self.dataloader.batch_size
        turns = getattr(sampler, "interleave", 1)
        self.memory = TrainingMemory(turns)
        slots = getattr(sampler, "slots", None)
        if slots is not None and slots != own * get_world_size() * turns:
            raise ConfigError(
                f"train_dataloader.sampler: batch_size {sampler.batch_size}, but train_dataloader.batch_size {own}: "
                "leave the sampler's out"
            )

    @property
    def window(self) -> int:
        """Iterations per step of the optimiser. Between two steps nothing is saved: gradients are in no checkpoint."""
        return self.runner.optim_wrapper._accumulative_counts

    def run(self) -> torch.nn.Module:
        self.runner.call_hook("before_train")
        self.runner.call_hook("before_train_epoch")
        deadline = math.inf if self.max_minutes is None else time.monotonic() + 60 * self.max_minutes
        self.dataloader.sampler.load_state_dict({"position": self.iter * self.dataloader.batch_size})
        with hold_termination() as held:
            self._iterate(held, deadline)
            self.runner.call_hook("after_train_epoch")
            self.runner.call_hook("after_train")
            if self.runner.distributed:
                barrier()  # a process that left would have torchrun end rank 0, which may still be writing
        return self.runner.model

    def _iterate(self, held: Held, deadline: float) -> None:
        # torchrun signals workers, too: without them a rank would wait for data, and the others for that rank
        with reading(self._samples, WORKERS, AGAIN), start_children_without_signals():
            batches = iter(self.dataloader)  # draws a random number, so before the first reseed
        with workers_die_quietly():
            try:
                while self.iter < self.max_iters and not self.stop_training:
                    self.runner.model.train()
                    reseed(self.runner.seed, self.iter, get_rank())
                    start = time.monotonic()
                    with reading(self._samples, WORKERS, AGAIN):
                        batch = next(batches)
                    self.data_time_s = time.monotonic() - start
                    self._run_iteration(batch)
                    self.iter += 1
                    if self.iter % self.window == 0:
                        self.stop_training |= self._is_over(held.requested or time.monotonic() > deadline)
            finally:
                end_workers(batches)

    def _samples(self) -> str:
        """The samples of this iteration, named for a message."""
        sampler, size = self.dataloader.sampler, self.dataloader.batch_size
        if not hasattr(sampler, "at"):  # another one than ours
            return f"iteration {self.iter}"
        places = [sampler.at(self.iter * size + i)[0] for i in range(min(size, SHOWN))]
        tokens = getattr(self.dataloader.dataset, "tokens", None)
        names = [str(tokens[place] if tokens else place) for place in places] + ["..."] * (size > SHOWN)
        return f"iteration {self.iter}: samples {', '.join(names)}"

    def _run_iteration(self, batch: Any) -> None:
        runner = self.runner
        runner.call_hook("before_train_iter", batch_idx=self.iter, data_batch=batch)
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        where = lambda: f"iteration {self.iter}, on samples {', '.join(map(str, getattr(batch, 'tokens', ())))}"
        with computing(where, "train_dataloader.batch_size", AGAIN):
            batch = batch.to(next(model.parameters()).device)
            try:
                with runner.optim_wrapper.optim_context(runner.model):
                    if getattr(model, "streams", False):
                        losses, states = runner.model(batch, mode="stream", memory=self.memory.states)
                    else:
                        losses, states = runner.model(batch, mode="loss"), {}
                check_finite(losses)
                total = sum(value for name, value in losses.items() if "loss" in name)
                runner.optim_wrapper.update_params(total)
                self.memory.update(states, self.iter)
            except FloatingPointError as error:
                raise TrainingError(f"{self._not_finite(str(error), batch, model)}") from error
        outputs = {"loss": total.detach()} | {name: value.detach() for name, value in losses.items()}
        runner.call_hook("after_train_iter", batch_idx=self.iter, data_batch=batch, outputs=outputs)

    def _not_finite(self, reason: str, batch: Any, model: torch.nn.Module) -> str:
        message = f"iteration {self.iter}: {reason}, on samples {', '.join(batch.tokens)}. "
        if bad := bad_parameters(model):
            return message + (
                f"The weights are not finite since an earlier step ({', '.join(bad)}): resume from the last "
                "checkpoint, which is good, with a lower learning rate."
            )
        return message + (
            "This step changed nothing and the last checkpoint is good. Look at these samples (drivestack visualize) "
            "or lower the learning rate."
        )

    def _is_over(self, wanted: bool) -> bool:
        """Whether any process is to stop: a signal may reach them between different iterations."""
        if not self.runner.distributed:
            return wanted
        votes = torch.tensor(float(wanted), device=local_device())
        all_reduce(votes, "max")
        return bool(votes)


def local_device() -> torch.device:
    """The GPU of this process (torchrun's LOCAL_RANK), or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
