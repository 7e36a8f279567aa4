"""Training: config in, checkpoints out, on one process or on many under torchrun."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook, ParamSchedulerHook
from mmengine.visualization import Visualizer

from ..core.errors import CheckpointError, ConfigError
from . import checkpoints
from .config import building, load_config
from .hooks import KeepCheckpoints, TellProgress
from .loop import ResumableTrainLoop
from .runner import TrainRunner, local_device

logger = logging.getLogger("drivestack")

NEEDED = ("model", "train_dataloader", "optim_wrapper", "train_cfg")
"""Keys that a config must have for training."""


def train(
    config: str | Path | Config,
    work_dir: str | Path,
    *,
    resume: bool | str | Path = False,
    seed: int | None = None,
    overrides: Mapping[str, Any] | Iterable[str] = (),
    load_from: str | Path | None = None,
    max_minutes: float | None = None,
) -> Path:
    """Train and return the path of the last checkpoint, ``work_dir/iter_N.pth``.

    config: file, shipped name or Config; keys as in configs/_base_/runtime.py.
    resume: True or "auto" goes on from work_dir's last checkpoint, or starts where there is none; or a checkpoint.
    seed: overrides the config's. On the CPU, one seed is one result, whether or not the run was interrupted.
    load_from: start from these weights (.pth or .safetensors), iteration 0, unless ``resume`` finds a checkpoint.
    max_minutes: stop after this time, checkpoint saved; ``resume`` goes on later.
    Under ``torchrun`` every process calls this; gradients are averaged over gloo (CPU) or nccl (GPU).

    Raises ConfigError, CheckpointError, TrainingError (a loss or gradient that is not finite).
    """
    if not isinstance(config, Config):
        config = load_config(config, overrides)
    if missing := [key for key in NEEDED if key not in config]:
        raise ConfigError(f"the config has no {missing[0]}; training needs {', '.join(NEEDED)}.")
    work_dir = Path(work_dir).resolve()
    interrupted = find_start(work_dir, resume)
    start = interrupted or load_from
    checkpoints.close_unsafe_loaders()
    seed = config.get("seed", 0) if seed is None else seed
    device = local_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed = "WORLD_SIZE" in os.environ
    if distributed:  # MMEngine's own start asks for a GPU
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    progress = TellProgress(config.get("log_interval", 50))
    with building("checkpoint"):
        hooks: list[Any] = [KeepCheckpoints(**config.get("checkpoint", {})), progress]
    if config.get("ema"):
        hooks.append(dict(type=EMAHook, **config.ema))
    hooks += config.get("custom_hooks", [])
    runner = TrainRunner(
        model=config.model,
        work_dir=str(work_dir),
        train_dataloader=config.train_dataloader,
        train_cfg=dict(type=ResumableTrainLoop, max_minutes=max_minutes, **config.train_cfg),
        optim_wrapper=config.optim_wrapper,
        param_scheduler=config.get("param_scheduler"),
        default_hooks=dict(
            runtime_info=None,
            timer=None,
            sampler_seed=None,
            logger=None,
            param_scheduler=dict(type=ParamSchedulerHook),
            checkpoint=None,
        ),
        custom_hooks=hooks,
        load_from=None if start is None else str(start),
        resume=interrupted is not None,
        launcher="pytorch" if distributed else "none",
        randomness=dict(seed=seed),
        visualizer=dict(type=Visualizer),
        log_level="WARNING",
        experiment_name=uuid4().hex,  # MMEngine shares state between runners of one name
        cfg=config,
    )
    if start is not None:
        logger.info("%s %s", "starting from" if interrupted is None else "resuming", start)
    try:
        runner.train()
    finally:
        progress.close()
    if distributed:
        torch.distributed.barrier()  # rank 0 may still be writing
        torch.distributed.destroy_process_group()
    return work_dir / f"iter_{runner.iter}.pth"


def find_start(work_dir: Path, resume: bool | str | Path) -> Path | None:
    """The checkpoint to resume from, None to start afresh."""
    last = checkpoints.latest_checkpoint(work_dir)
    if not resume:
        if last is not None:
            raise ConfigError(
                f"{work_dir}: holds a run that reached {last.stem}. Go on with it (--resume), or choose another "
                "--work-dir."
            )
        return None
    if resume is True or resume == "auto":
        return last
    path = Path(resume)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint to resume from.")
    return path
