"""MMEngine's Runner with checkpoints that are safe to read, atomic to write, and refuse another model's weights."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel, is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from ..core.checkpoint import load_checkpoint, load_state
from ..core.errors import CheckpointError, library_errors
from ..core.files import atomic_path, write_json
from ..core.registries import MODELS
from ..core.weight_names import weights_of
from . import checkpoints
from .config import KEYS, task_names
from .config_text import config_text
from .fine_tune import fine_tune

logger = logging.getLogger("drivestack")


class TrainRunner(Runner):
    """Differs from Runner in how it wraps the model for DDP (gloo on CPU too) and in the files it writes and reads."""

    fine_tune = False
    """``load_from`` holds weights of another task shape: fine_tune.py takes what fits."""
    _has_loaded: bool  # set by Runner

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        return model if isinstance(model, nn.Module) else MODELS.build(model)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        device = local_device()
        model = model.to(device)
        if not self.distributed:
            return model
        if self.cfg.get("sync_bn") and device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return MMDistributedDataParallel(
            module=model,
            device_ids=[device.index] if device.type == "cuda" else None,
            find_unused_parameters=self.cfg.get("find_unused_parameters", False),
        )

    def build_logger(self, log_level: int | str = "WARNING", **kwargs: Any) -> MMLogger:
        """MMEngine's warnings on standard error; progress goes to log.jsonl (run_log.RunLog), not to its files."""
        with suppress(FileNotFoundError):  # another rank was faster
            Path(self.log_dir).rmdir()
        return MMLogger.get_instance(self.experiment_name, logger_name="mmengine", log_level=log_level)

    def _log_env(self, env_cfg: dict) -> None:
        """`drivestack doctor` shows the environment; MMEngine's own report starts compilers to get their versions."""

    def dump_config(self) -> None:
        """The whole config, overrides included, as ``work_dir/config.py``, which loads like any other."""
        if self.rank == 0:
            with atomic_path(Path(self.work_dir) / "config.py") as temporary:
                temporary.write_text(config_text(self.cfg, KEYS), encoding="utf-8")

    @property
    def bare_model(self) -> nn.Module:
        """The model without its DDP wrapper."""
        return self.model.module if is_model_wrapper(self.model) else self.model

    def save_training_state(self, path: Path, iteration: int, is_last: bool = True, **notes: Any) -> None:
        """Write all that resuming after ``iteration`` iterations needs. Call on rank 0 only.

        is_last: a plain resume goes on from here; notes: more entries of ``meta`` (checkpoints.py).
        """
        checkpoint = {
            "meta": {
                "iter": iteration,
                "seed": self.seed,
                "world_size": self.world_size,
                "config": self.cfg.get("config_name", ""),
                "torch": torch.__version__.split("+")[0],
                **task_names(self.cfg),
                **notes,
            },
            "state_dict": weights_of(self.bare_model),
            "optimizer": self.optim_wrapper.state_dict(),
            "param_schedulers": [scheduler.state_dict() for scheduler in self.param_schedulers or []],
        }
        self.call_hook("before_save_checkpoint", checkpoint=checkpoint)  # EMA moves its weights into state_dict
        checkpoints.save_checkpoint(checkpoint, path, is_last)

    def load_or_resume(self) -> None:
        """Start from ``load_from`` (weights only) or go on from it (``resume``); Runner.train calls this."""
        if self._has_loaded or self._load_from is None:
            return
        if self._resume:
            self._resume_from(Path(self._load_from))
        else:
            self._start_from(Path(self._load_from))
        self._has_loaded = True

    def _start_from(self, path: Path) -> None:
        if self.fine_tune:
            report = fine_tune(self.bare_model, path, **task_names(self.cfg))
            if self.rank == 0:
                logger.info("%s", report)
                write_json(Path(self.work_dir) / "fine_tune.json", report.as_dict(), indent=1)
        else:
            load_checkpoint(self.bare_model, path, may_lack=tuple(self.cfg.get("new_parts", ())))
        self.call_hook("after_load_checkpoint", checkpoint={"state_dict": self.bare_model.state_dict()})

    def _resume_from(self, path: Path) -> None:
        checkpoint = checkpoints.read_checkpoint(path)
        meta = checkpoint["meta"]
        for key, mine in (("seed", self.seed), ("world_size", self.world_size)):
            if meta[key] != mine:
                raise CheckpointError(
                    f"{path}: trained with {key} {meta[key]}, this run has {key} {mine}. "
                    "Resume with the same, or start a new --work-dir with --load-from."
                )
        # Before the EMA hook swaps raw and averaged weights: does this belong to the model at all?
        load_state(self.bare_model, checkpoint["state_dict"], source=str(path))
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        load_state(self.bare_model, checkpoint["state_dict"], source=str(path))
        with library_errors(
            CheckpointError, path, "its optimiser's state is damaged or another's: take an earlier one"
        ):
            self.optim_wrapper.load_state_dict(checkpoint["optimizer"])
            for scheduler, state in zip(self.param_schedulers or [], checkpoint["param_schedulers"]):
                scheduler.load_state_dict(state)
        self.train_loop.iter = meta["iter"]


def local_device() -> torch.device:
    """The GPU of this process (torchrun's LOCAL_RANK), or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
