"""What happens beside the training step: checkpoints kept, progress told."""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import time
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from .runner import TrainRunner

logger = logging.getLogger("drivestack")


@HOOKS.register_module()
class KeepCheckpoints(Hook):
    """Saves ``iter_N.pth`` every ``interval`` iterations and when training ends; keeps the last ``keep`` of them."""

    priority = "VERY_LOW"  # after EMA and schedulers have moved

    def __init__(self, interval: int = 500, keep: int = 2) -> None:
        self.interval = interval
        self.keep = keep
        self.saved_at = -1

    def after_train_iter(
        self, runner: TrainRunner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if self.every_n_train_iters(runner, self.interval):
            self._save(runner, runner.iter + 1)

    def after_train(self, runner: TrainRunner) -> None:
        if self.saved_at != runner.iter:
            self._save(runner, runner.iter)

    def _save(self, runner: TrainRunner, iteration: int) -> None:
        self.saved_at = iteration
        if not is_main_process():
            return
        folder = Path(runner.work_dir)
        runner.save_training_state(folder / f"iter_{iteration}.pth", iteration)
        matches = [(re.fullmatch(r"iter_(\d+)\.pth", path.name), path) for path in folder.iterdir()]
        older = sorted((int(match[1]), path) for match, path in matches if match and int(match[1]) < iteration)
        for _, path in older[: max(0, len(older) + 1 - self.keep)]:
            path.unlink()


@HOOKS.register_module()
class TellProgress(Hook):
    """Mean losses, learning rate and times every ``interval`` iterations, to ``log.jsonl`` and to the reader.

    The reader gets a bar where standard error is a terminal and a plain line elsewhere (logger ``drivestack``).
    """

    priority = "BELOW_NORMAL"

    def __init__(self, interval: int = 50) -> None:
        self.interval = interval
        self.bar: Progress | None = None

    def before_train(self, runner: TrainRunner) -> None:
        self.log_file = Path(runner.work_dir) / "log.jsonl"
        self._restart()
        self.first_iteration = runner.iter
        self.started = time.monotonic()
        if is_main_process() and sys.stderr.isatty():
            columns = (TextColumn("train"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, TextColumn("{task.fields[told]}"))
            self.task = self.bar.add_task("train", total=runner.max_iters, completed=runner.iter, told="")
            self.bar.start()

    def after_train_iter(
        self, runner: TrainRunner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self.count += 1
        self.data_time_s += runner.train_loop.data_time_s
        for name, value in outputs.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        done = runner.iter + 1
        if self.bar:
            self.bar.update(self.task, completed=done)
        if is_main_process() and (done % self.interval == 0 or done == runner.max_iters):
            self._tell(runner, done)
            self._restart()

    def close(self) -> None:
        """Give the terminal back, also after an error."""
        if self.bar:
            self.bar.stop()

    def _restart(self) -> None:
        self.sums: dict[str, Tensor | float] = {}
        self.count = 0
        self.data_time_s = 0.0
        self.since = time.monotonic()

    def _tell(self, runner: TrainRunner, done: int) -> None:
        per_iteration_s = (time.monotonic() - self.since) / self.count
        overall_s = (time.monotonic() - self.started) / (done - self.first_iteration)
        means = {name: float(total) / self.count for name, total in self.sums.items()}
        record = {
            "iter": done,
            **means,
            "lr": max(group["lr"] for group in runner.optim_wrapper.param_groups),
            "gradient_norm": runner.optim_wrapper.gradient_norm,
            "seconds_per_iter": round(per_iteration_s, 4),
            "data_seconds_per_iter": round(self.data_time_s / self.count, 4),
        }
        if not math.isfinite(record["gradient_norm"]):  # a step that fp16 skipped; JSON has no infinity
            record["gradient_norm"] = None
        with self.log_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        terms = " ".join(f"{name.removeprefix('loss_')} {value:.3g}" for name, value in means.items())
        told = (
            f"{terms}  lr {record['lr']:.2e}  {per_iteration_s:.2f} s/it (data {record['data_seconds_per_iter']:.2f})"
        )
        if self.bar:
            self.bar.update(self.task, told=f"loss {means['loss']:.3g}  {per_iteration_s:.2f} s/it")
        else:
            minutes, seconds = divmod(round(overall_s * (runner.max_iters - done)), 60)
            logger.info("iter %d/%d  %s  eta %d:%02d", done, runner.max_iters, told, minutes, seconds)
