"""Scores while a model trains, and the best checkpoint kept: the weights that would be published, on rank 0."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from torch import nn

from ..core.errors import ConfigError, TrainingError, library_errors
from .checkpoints import read_checkpoint
from .failures import bad_parameters
from .hooks import LogProgress, is_due
from .run_log import RunLog
from .runner import TrainRunner

logger = logging.getLogger("drivestack")

BEST = "best.pth"
LONGEST_VALIDATION = timedelta(days=2)  # other ranks wait as long for rank 0; torch's default is 10 to 30 minutes

Evaluate = Callable[[nn.Module, int], Mapping[str, float | None]]
"""``evaluate(model, iteration)``: scores by name, None where there is nothing to measure, of a model in eval mode
without gradients, which it must not change. Called on rank 0 only, so it must not talk to other ranks."""


@dataclass(frozen=True)
class Best:
    """The best validation so far."""

    metric: str
    score: float
    iter: int


class Validation(Hook):
    """Runs ``evaluate`` every ``interval`` iterations and at the last one; keeps the best checkpoint as ``best.pth``.

    metric: the score that decides; mode: "max" or "min", which of two is better. With EMA the averaged weights are
    scored. Scores go to the run's log; generators and modes of modules are as before afterwards, so that training takes
    the same path with and without.

    Raises ConfigError for an interval or mode that is none, and where ``evaluate`` returns no such metric.
    """

    priority = "VERY_LOW"  # after EMA and schedulers have moved: best.pth is a state to resume from

    def __init__(self, evaluate: Evaluate, interval: int, metric: str, mode: str = "max") -> None:
        if not isinstance(interval, int) or interval < 1:
            raise ConfigError(f"validation.interval: must be a whole number from 1 on, got {interval!r}.")
        if mode not in ("max", "min"):
            raise ConfigError(f"validation.mode: must be 'max' or 'min', got {mode!r}.")
        self.evaluate, self.interval, self.metric, self.mode = evaluate, interval, metric, mode
        self.log: RunLog | None = None
        self.best: Best | None = None
        self._waiting_room: Any = None

    def before_train(self, runner: TrainRunner) -> None:
        if runner.distributed:  # a group of its own, whose barrier outlasts a long validation
            self._waiting_room = torch.distributed.new_group(backend="gloo", timeout=LONGEST_VALIDATION)
        names = getattr(self.evaluate, "names", ())  # an evaluation of the user's own need not say
        if names and self.metric not in names:
            raise ConfigError(f"validation.metric {self.metric!r}: the scores are {', '.join(sorted(names))}.")
        path = Path(runner.work_dir) / BEST
        if runner.iter > 0 and is_main_process() and path.is_file():
            noted = read_checkpoint(path)["meta"].get("best", {})
            if noted.get("metric") == self.metric:
                self.best = Best(**noted)
            else:
                logger.info("%s: not the best by %s; it will be replaced", path, self.metric)

    def after_train_iter(
        self, runner: TrainRunner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        done = runner.iter + 1
        if not is_due(done, self.interval, runner.train_loop.window) and done != runner.max_iters:
            return
        began_s, is_better = time.monotonic(), False
        scores: dict[str, float] = {}
        with undisturbed(runner.model), runner.scored_model() as model:
            if model is not None:
                if bad := bad_parameters(model):
                    raise TrainingError(
                        f"validation at iteration {done}: weights are not finite ({', '.join(bad)}): resume from "
                        "the last checkpoint with a lower learning rate."
                    )
                with torch.no_grad():
                    scores = self._numbers(self.evaluate(model.eval(), done), done)
        if is_main_process():
            is_better = self._compare(scores, done)
        if self._waiting_room is not None:  # the other ranks wait here
            told: list[Any] = [is_better, self.best]
            torch.distributed.broadcast_object_list(told, 0, group=self._waiting_room)
            is_better, self.best = told
        if is_better:
            assert self.best is not None
            runner.save_training_state(Path(runner.work_dir) / BEST, done, is_last=False, best=asdict(self.best))
        if is_main_process():
            self._report(scores, done, is_better)
            for hook in runner.hooks:
                if isinstance(hook, LogProgress):
                    hook.pause(time.monotonic() - began_s)

    def _numbers(self, scores: Any, done: int) -> dict[str, float]:
        fix = "evaluate must return numbers by name, or None where there is nothing to measure"
        with library_errors(ConfigError, f"validation at iteration {done}", fix):
            return {name: math.nan if score is None else float(score) for name, score in scores.items()}

    def _compare(self, scores: dict[str, float], done: int) -> bool:
        """Whether these scores are the best so far; they then are ``self.best``."""
        if self.metric not in scores:
            raise ConfigError(
                f"validation.metric {self.metric!r}: the scores are {', '.join(sorted(scores)) or 'none'}."
            )
        score = scores[self.metric]
        if is_better := self._is_better(score):
            self.best = Best(self.metric, score, done)
        return is_better

    def _report(self, scores: dict[str, float], done: int, is_better: bool) -> None:
        score = scores[self.metric]
        if self.log is not None:
            finite = {name: value if math.isfinite(value) else None for name, value in scores.items()}
            self.log.write({"iter": done, "validation": finite}, group="validation")
        if is_better:
            remark = "the best so far"
        else:
            remark = f"best {self.best.score:.4f} at iter {self.best.iter}" if self.best else "not a number"
        logger.info("validation at iter %d  %s %.4f (%s)", done, self.metric, score, remark)

    def _is_better(self, score: float) -> bool:
        if not math.isfinite(score):
            return False
        return self.best is None or (score > self.best.score if self.mode == "max" else score < self.best.score)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Random generators, and which modules of ``model`` are in training mode, are afterwards as they were."""
    modes = [(module, module.training) for module in model.modules()]
    for_python, for_numpy, for_torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    for_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        random.setstate(for_python)
        np.random.set_state(for_numpy)
        torch.set_rng_state(for_torch)
        if for_gpus:
            torch.cuda.set_rng_state_all(for_gpus)
