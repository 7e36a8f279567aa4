"""What happens beside the training step: checkpoints kept, progress shown and recorded."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from torch import Tensor

from ..core.errors import ConfigError, TrainingError
from ..core.progress import ProgressDisplay
from ..core.registries import HOOKS
from .checkpoints import saved_checkpoints
from .run_log import RunLog
from .runner import TrainRunner

logger = logging.getLogger("drivestack")


def is_due(done: int, interval: int, window: int) -> bool:
    """Whether something that happens every ``interval`` iterations happens after ``done`` of them.

    window: iterations per step of the optimiser; it happens between two steps, at the first one after the interval.
    """
    return done % window == 0 and done // interval > (done - window) // interval


@HOOKS.register_module()
class KeepCheckpoints(Hook):
    """Saves ``iter_N.pth`` every ``interval`` iterations and when training ends; keeps the last ``keep`` of them.

    Where gradients are accumulated, at the end of the window: the next step of the optimiser is then as without a stop.
    Raises TrainingError instead of saving weights that are not finite: the checkpoint before stays the last.
    """

    priority = "VERY_LOW"  # after EMA and schedulers have moved

    def __init__(self, interval: int = 500, keep: int = 2) -> None:
        self.interval = interval
        self.keep = keep
        self.saved_at = -1

    def before_train(self, runner: TrainRunner) -> None:
        if runner.resumed_from == Path(runner.work_dir) / f"iter_{runner.iter}.pth":
            self.saved_at = runner.iter

    def after_train_iter(
        self, runner: TrainRunner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if is_due(runner.iter + 1, self.interval, runner.train_loop.window):
            self._save(runner, runner.iter + 1)

    def after_train(self, runner: TrainRunner) -> None:
        if self.saved_at != runner.iter:
            self._save(runner, runner.iter)

    def _save(self, runner: TrainRunner, iteration: int) -> None:
        self.saved_at = iteration
        if not runner.takes_part_in_saving:
            return
        if bad := runner.bad_parameters():
            raise TrainingError(
                f"iteration {iteration}: weights are not finite ({', '.join(bad)}), so they were not saved: resume "
                "from the last checkpoint with a lower learning rate."
            )
        folder = Path(runner.work_dir)
        runner.save_training_state(folder / f"iter_{iteration}.pth", iteration)
        if not is_main_process():
            return
        names = [path.name for path in saved_checkpoints(folder)]
        for name in names[names.index(f"iter_{iteration}.pth") + self.keep :]:
            (folder / name).unlink()


@HOOKS.register_module()
class LogProgress(Hook):
    """Mean losses, learning rate and times every ``interval`` iterations, to the run's log and to the reader.

    The reader gets a bar where standard error is a terminal and a plain line elsewhere (logger ``drivestack``).
    log: where the records go; None on ranks that write none.
    """

    priority = "BELOW_NORMAL"

    def __init__(self, interval: int = 50, log: RunLog | None = None) -> None:
        self.interval = interval
        self.log = log
        self.display: ProgressDisplay | None = None

    def before_train(self, runner: TrainRunner) -> None:
        self._restart()
        shown = is_main_process()
        self.display = ProgressDisplay("train", runner.max_iters, done=runner.iter, shown=shown, lines=False)
        self.display.__enter__()

    def after_train_iter(
        self, runner: TrainRunner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self.count += 1
        self.data_time_s += runner.train_loop.data_time_s
        for name, value in outputs.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        done = runner.iter + 1
        assert self.display is not None  # since before_train
        self.display.move_to(done)
        if is_main_process() and (done % self.interval == 0 or done == runner.max_iters):
            self._write(runner, done, self.display)
            self._restart()

    def pause(self, seconds: float) -> None:
        """``seconds`` went by beside training and do not count as time of an iteration."""
        self.since += seconds

    def close(self) -> None:
        """Give the terminal back, also after an error."""
        if self.display:
            self.display.__exit__(None, None, None)

    def _restart(self) -> None:
        self.sums: dict[str, Tensor | float] = {}
        self.count = 0
        self.data_time_s = 0.0
        self.since = time.monotonic()

    def _write(self, runner: TrainRunner, done: int, display: ProgressDisplay) -> None:
        per_iteration_s = (time.monotonic() - self.since) / self.count
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
        if self.log:
            self.log.write(record)
        display.move_to(done, note=f"loss {means['loss']:.3g}  {per_iteration_s:.2f} s/it")
        if not display.on_terminal:
            terms = " ".join(f"{name.removeprefix('loss_')} {value:.3g}" for name, value in means.items())
            speed = f"{per_iteration_s:.2f} s/it (data {record['data_seconds_per_iter']:.2f})"
            values = (done, runner.max_iters, terms, record["lr"], speed, display.eta())
            logger.info("iter %d/%d  %s  lr %.2e  %s  eta %s", *values)


@HOOKS.register_module()
class LogGradients(Hook):
    """What gradients the tasks send into what they share, every ``interval`` iterations, to the run's log.

    A record has ``gradients`` of the first process's samples. Other iterations cost nothing, and no step changes.

    log: where the records go. Raises ConfigError for a model that cannot measure them.
    """

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self.log: RunLog | None = None

    def before_train(self, runner: TrainRunner) -> None:
        if not hasattr(runner.bare_model, "measures_gradients"):
            name = type(runner.bare_model).__name__
            raise ConfigError(f"gradient_log_interval: {name} has no tasks that share a map; leave it out")
        if runner.sharding == "fsdp2":
            raise ConfigError("gradient_log_interval: weights that are shared out are gone by then; use no sharding")

    def before_train_iter(self, runner: TrainRunner, batch_idx: int, data_batch: Any = None) -> None:
        model: Any = runner.bare_model
        # on every process: SyncBatchNorm's backward pass, on the way to the map, takes part in a collective
        model.measures_gradients = (runner.iter + 1) % self.interval == 0

    def after_train_iter(
        self, runner: TrainRunner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        model: Any = runner.bare_model
        if not model.measures_gradients:
            return
        model.measures_gradients = False
        if model.gradients is None:
            raise ConfigError(f"gradient_log_interval: {type(model).__name__} measures none; leave it out")
        if self.log is not None:
            found = {name: value if math.isfinite(value) else None for name, value in model.gradients.items()}
            self.log.write({"iter": runner.iter + 1, "gradients": found})
