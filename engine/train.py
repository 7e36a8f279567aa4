"""Training: config in, checkpoints out, on one process or on many under torchrun."""

from __future__ import annotations

import atexit
import copy
import gc
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import ParamSchedulerHook
from mmengine.visualization import Visualizer

from ..core.errors import CheckpointError, ConfigError, DataError
from ..core.folders import folder_lock
from ..core.registries import DATA_SAMPLERS
from ..core.weights.shipped import weights_file
from . import checkpoints
from .averaging import AverageWeights
from .config import building, load_config
from .config_check import check_keys, check_types, scheduler_list, shown
from .feature_cache import CacheFeatures
from .from_data import completed
from .hooks import KeepCheckpoints, LogGradients, LogProgress
from .loop import ResumableTrainLoop, local_device
from .muon import MuonConstructor  # noqa: F401 (registered: configs may name it as text)
from .optim import PrecisionOptimWrapper
from .precision import AUTO, PRECISIONS, chosen_precision
from .predict import check_inputs
from .run_log import RunLog, require_tensorboard
from .runner import TrainRunner
from .validation import Evaluate, Validation

logger = logging.getLogger("drivestack")

NEEDED = (
    "model",
    "train_dataloader",
    "train_dataloader.dataset",
    "train_dataloader.sampler",
    "train_dataloader.batch_size",
    "optim_wrapper",
    "optim_wrapper.optimizer",
    "train_cfg",
    "train_cfg.max_iters",
)
"""Keys that a config must have for training."""


def train(
    config: str | Path | Config,
    work_dir: str | Path,
    *,
    resume: bool | str | Path = False,
    seed: int | None = None,
    overrides: Mapping[str, Any] | Iterable[str] = (),
    load_from: str | Path | None = None,
    fine_tune: str | Path | None = None,
    max_minutes: float | None = None,
    evaluate: Evaluate | None = None,
    command: str = "",
) -> Path:
    """Train and return the path of the last checkpoint, ``work_dir/iter_N.pth``.

    config: file, shipped name or Config; keys as in configs/_base_/runtime.py.
    resume: True or "auto" goes on from work_dir's last checkpoint, or starts where there is none; or a checkpoint.
        Settings that have changed act and are reported, or are refused (resume.py). The number of processes may change
        while world size x batch size x accumulated iterations stays the same.
    seed: overrides the config's. On the CPU, one seed is one result, whether or not the run was interrupted.
    load_from: start from these weights (.pth, .safetensors, a shipped model's name), iteration 0, unless ``resume``
        finds a checkpoint.
    fine_tune: the same for weights of another task shape (classes, range, grid, queries, cameras, heads): takes what
        fits, adapts what can be, and writes a report to ``work_dir/fine_tune.json`` (fine_tune.py).
    max_minutes: stop after this time, checkpoint saved; ``resume`` goes on later.
    evaluate: scores of the model during training, for the config's ``validation`` (validation.py).
    command: that started the run, for its checkpoints' record of where weights come from (provenance.py).
    Under ``torchrun`` every process calls this; gradients are averaged over gloo (CPU) or nccl (GPU), and the config's
    ``sharding`` says what else processes share (sharding.py).

    work_dir is locked meanwhile. Within core.signals.terminate_as_exception (the command line), SIGTERM saves a
    checkpoint after the current step and then raises.

    Raises ConfigError, CheckpointError, DataError (samples, loader workers), OutputError (work_dir), TrainingError (a
    loss, gradient or weight that is not finite; a model that fails on a batch).
    """
    if not isinstance(config, Config):
        config = load_config(config, overrides)
    work_dir = Path(work_dir).resolve()
    _check_start(work_dir, resume, load_from, fine_tune)  # before data are read, which may take minutes
    with _naming_the_data(config):
        config = completed(config)
    seed = config.get("seed", 0) if seed is None else seed
    _check(config, seed, max_minutes, evaluate)
    if config.get("seed") != seed:
        config = copy.deepcopy(config)
        config.seed = seed  # what is written down is what ran
    with _alone_in(work_dir):
        start = choose_start(work_dir, resume, load_from, fine_tune)
        device = local_device()
        asked = config.optim_wrapper.get("precision", "fp32")
        if asked == AUTO and start.how == "resume":
            start = start.read()
        if (precision := chosen_precision(start.precision if asked == AUTO else asked, device)) != asked:
            config = copy.deepcopy(config)
            config.optim_wrapper.precision = precision  # what is written down is what ran
        if device.type == "cuda":
            torch.cuda.set_device(device)
        distributed = "WORLD_SIZE" in os.environ
        if distributed and not torch.distributed.is_initialized():  # MMEngine's own start requires a GPU
            torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        if distributed:
            _demand_one_start(start, precision)
        with checkpoints.safe_loaders():
            iterations = _run(config, work_dir, seed, start, max_minutes, evaluate, command, asked)
        if distributed:
            torch.distributed.barrier()  # rank 0 may still be writing
            _leave_at_exit()
    return work_dir / f"iter_{iterations}.pth"


@cache
def _leave_at_exit() -> None:
    """The processes stay connected until they end: a second training of one program could not connect them again, as
    gloo finds the addresses of the first connection in the store that torchrun keeps."""

    def leave() -> None:
        gc.collect()  # models hold the group, and its threads live as long
        torch.distributed.destroy_process_group()
        time.sleep(0.1)  # such a thread that waits for Python's lock while Python ends aborts the process

    atexit.register(leave)


@contextmanager
def _alone_in(work_dir: Path) -> Iterator[None]:
    """Within, no other training writes there. Rank 0 holds the lock for all processes of this one."""
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    with folder_lock(work_dir, "train"):
        yield


def _run(
    config: Config,
    work_dir: Path,
    seed: int,
    start: Start,
    max_minutes: float | None,
    evaluate: Evaluate | None,
    command: str,
    asked: str,
) -> int:
    """Build all parts, train, and return the number of iterations reached. asked: the precision, as it was named."""
    progress = LogProgress(config.get("log_interval", 50))
    with building("checkpoint"):
        hooks: list[Any] = [KeepCheckpoints(**config.get("checkpoint", {})), progress]
    gradients = LogGradients(config.gradient_log_interval) if config.get("gradient_log_interval") else None
    hooks += [gradients] if gradients else []
    validation = None
    if config.get("validation"):
        assert evaluate is not None  # train() sees to it
        with building("validation"):
            validation = Validation(evaluate, **config.validation)
        hooks.append(validation)
    if config.get("ema"):
        with building("ema"):
            hooks.append(dict(type=AverageWeights, **config.ema))
    if config.get("cache_features"):
        hooks.append(CacheFeatures(config.cache_features))
    hooks += config.get("custom_hooks") or []
    train_cfg = dict(type=ResumableTrainLoop, max_minutes=max_minutes, max_iters=_whole_windows(config))
    with building("model or custom_hooks"):
        runner = TrainRunner(
            model=config.model,
            work_dir=str(work_dir),
            train_dataloader=config.train_dataloader,
            train_cfg={**config.train_cfg, **train_cfg},
            optim_wrapper=config.optim_wrapper,
            param_scheduler=scheduler_list(config.get("param_scheduler")) or None,
            default_hooks=dict(
                runtime_info=None,
                timer=None,
                sampler_seed=None,
                logger=None,
                param_scheduler=dict(type=ParamSchedulerHook),
                checkpoint=None,
            ),
            custom_hooks=hooks,
            load_from=None if start.path is None else str(start.path),
            resume=start.how == "resume",
            launcher="pytorch" if torch.distributed.is_initialized() else "none",
            randomness=dict(seed=seed),
            visualizer=dict(type=Visualizer),
            log_level="WARNING",
            experiment_name=uuid4().hex,  # MMEngine shares state between runners of one name
            cfg=config,
        )
    if config.get("sharding") and not runner.sharding:
        logger.info("sharding=%s: no effect with one process; start several with torchrun", shown(config.sharding))
    runner.fine_tune = start.how == "fine_tune"
    runner.resumed, runner.command = start.content, command
    _share_frames(runner)
    _share_batch_size(runner)
    # Runner.train builds the same in the same order; here an error names the part of the config.
    with building("train_dataloader or train_cfg"), _naming_the_data(config):
        runner.train_loop  # noqa: B018 (a property that builds)
    check_inputs(runner.bare_model, runner.train_loop.dataloader.dataset)
    check_labels(runner.bare_model, runner.train_loop.dataloader.dataset)
    with building("optim_wrapper"):
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    if not isinstance(runner.optim_wrapper, PrecisionOptimWrapper):
        raise ConfigError(f"optim_wrapper.type: must be PrecisionOptimWrapper, got {shown(config.optim_wrapper.type)}.")
    if asked == AUTO and is_main_process():
        logger.info("precision: %s", config.optim_wrapper.precision)
    _report_unmatched(runner, config)
    if runner.param_schedulers is not None:
        with building("param_scheduler"):
            runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
    log = RunLog(work_dir, bool(config.get("tensorboard"))) if is_main_process() else None
    progress.log = log
    if gradients is not None:
        gradients.log = log
    if validation is not None:
        validation.log = log
    try:
        runner.train()
    finally:
        progress.close()
        if log is not None:
            log.close()
    return runner.iter


def _check(config: Config, seed: int, max_minutes: float | None, evaluate: Evaluate | None) -> None:
    """Refuse what cannot be trained before any data is read."""
    check_keys(config)
    check_types(config)
    for key in NEEDED:
        node: Any = config
        for part in key.split("."):
            if node.get(part) is None:
                raise ConfigError(f"the config has no {key}; training needs {', '.join(NEEDED)}.")
            node = node[part]
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise ConfigError(f"seed: must be a whole number from 0 to 4294967295, got {shown(seed)}.")
    if max_minutes is not None and not max_minutes >= 0:
        raise ConfigError(f"max_minutes: must not be negative, got {max_minutes!r}.")
    _whole_windows(config)
    for key in ("batch_sampler", "num_batch_per_epoch"):
        if config.train_dataloader.get(key) is not None:
            raise ConfigError(f"train_dataloader.{key}: training cannot resume with it; remove it.")
    if config.get("validation") and evaluate is None:
        raise ConfigError(
            "the config has validation, but train() was given no evaluate function: pass one (evaluate=...), or set "
            "validation=None."
        )
    if config.get("tensorboard"):
        require_tensorboard()


def _whole_windows(config: Config) -> int:
    """``max_iters``, less the iterations at the end that would not fill a step of the optimiser."""
    max_iters, window = config.train_cfg["max_iters"], config.optim_wrapper.get("accumulative_counts", 1)
    if max_iters < window:
        raise ConfigError(
            f"train_cfg.max_iters: {max_iters} iterations are less than one step of the optimiser, "
            f"optim_wrapper.accumulative_counts={window}."
        )
    return max_iters - max_iters % window


def _report_unmatched(runner: TrainRunner, config: Config) -> None:
    """Say which settings by name of a parameter find none."""
    if not is_main_process():
        return
    names = [name for name, _ in runner.bare_model.named_parameters()]
    for key in (config.optim_wrapper.get("paramwise_cfg") or {}).get("custom_keys", {}):
        if not any(key in name for name in names):
            logger.warning("optim_wrapper.paramwise_cfg.custom_keys: no parameter has %r in its name: no effect", key)
    window, max_iters = config.optim_wrapper.get("accumulative_counts", 1), config.train_cfg.max_iters
    if max_iters % window:
        words = "train_cfg.max_iters %d is no multiple of accumulative_counts %d: training ends after iteration %d"
        logger.warning(words, max_iters, window, _whole_windows(config))


def check_labels(model: Any, dataset: Any) -> None:
    """Compare the tasks that a model learns with the labels of a dataset, where both state them.

    Raises ConfigError where none of them has labels in any frame; logs those that have none.
    """
    labelled, tasks = getattr(dataset, "labelled_tasks", None), getattr(model, "tasks", ())
    without = [task for task in tasks if labelled is not None and task not in labelled]
    if not without:
        return
    what = f"none of the {len(dataset)} training frames has labels to learn {', '.join(without)} from"
    fix = "let the dataset load them (occupancy=True, lanes=True), on a split that has them"
    if len(without) == len(tasks):
        raise ConfigError(f"{what}: {fix}")
    logger.warning("%s, so nothing is learned there: %s, or choose model.tasks", what, fix)


def _share_frames(runner: TrainRunner) -> None:
    """The training data give the clips that the model learns from, unless their config says otherwise."""
    offsets, loader = getattr(runner.bare_model, "frame_offsets", None), runner._train_dataloader
    if offsets is not None and isinstance(loader, dict) and isinstance(loader["dataset"], dict):
        loader["dataset"].setdefault("frame_offsets", offsets)


def _share_batch_size(runner: TrainRunner) -> None:
    """A sampler that walks through sequences follows as many as the batch has places; its config need not say so."""
    loader = runner._train_dataloader
    sampler = loader["sampler"] if isinstance(loader, dict) else None
    if not isinstance(sampler, dict):
        return
    kind = DATA_SAMPLERS.get(sampler["type"]) if isinstance(sampler["type"], str) else sampler["type"]
    if hasattr(kind, "slots"):
        runner._train_dataloader = {**loader, "sampler": {"batch_size": loader["batch_size"], **sampler}}
    elif runner.streams:
        logger.warning(
            "the model has memory, but train_dataloader.sampler %s gives it no frames that follow each other: it "
            "learns as if each were the first of its scene; use StreamingSampler",
            getattr(kind, "__name__", kind),
        )


@contextmanager
def _naming_the_data(config: Config) -> Iterator[None]:
    """Within, an error about a missing data root also says how to come by the data."""
    try:
        yield
    except DataError as error:
        roots = (config.train_dataloader.dataset.get("source") or {}).get("root") or ()
        for root in [roots] if isinstance(roots, (str, Path)) else roots:
            if str(error).startswith(f"{root}:") and not Path(root).is_dir():
                command = config.get("data_command")
                fix = f"write it with `{command}`, or name" if command else "name"
                option = "--set train_dataloader.dataset.source.root=DIR"
                raise DataError(f"{root}: no such folder; {fix} your own data with {option}") from error
        raise


@dataclass(frozen=True)
class Start:
    """Where a run begins."""

    how: str
    """"new", "resume" (all of a checkpoint), "load_from" or "fine_tune" (its weights)"""
    path: Path | None = None
    content: dict[str, Any] | None = None
    """Of the checkpoint to resume from, where it has been read."""

    def read(self) -> Start:
        """With the content of the checkpoint to resume from."""
        content = checkpoints.read_checkpoint(self.path) if self.content is None and self.path else self.content
        return replace(self, content=content)

    @property
    def precision(self) -> str:
        """In which the run to resume began, as far as that is known: another device does not change its numbers."""
        settings = (self.content or {}).get("meta", {}).get("settings") or {}
        found = ((settings.get("config") or {}).get("optim_wrapper") or {}).get("precision")
        return found if found in PRECISIONS else AUTO


def _check_start(
    work_dir: Path, resume: bool | str | Path, load_from: str | Path | None, fine_tune: str | Path | None
) -> None:
    """Refuse options that exclude one another, files that are not there, and a folder that holds a run already."""
    if load_from and fine_tune:
        raise ConfigError(f"load_from {load_from} and fine_tune {fine_tune}: give one of them.")
    if weights := load_from or fine_tune:
        weights_file(weights)
    if not isinstance(resume, bool) and resume != "auto" and not Path(resume).is_file():
        raise CheckpointError(f"{resume}: no such checkpoint to resume from.")
    if not resume:
        find_start(work_dir, resume)


def _demand_one_start(start: Start, precision: str) -> None:
    """Refuse processes that would begin with different weights, as on machines that do not share the work folder, or
    in different precisions, as on machines of different kinds."""
    mine = " ".join([start.how, *([start.path.name] if start.path else []), "in", precision])
    every: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(every, mine)
    if other := [rank for rank, own in enumerate(every) if own != every[0]]:
        raise ConfigError(
            f"process 0 starts with {every[0]!r}, process {other[0]} with {every[other[0]]!r}: give all machines the "
            "same --work-dir, weights and optim_wrapper.precision"
        )


def choose_start(
    work_dir: Path,
    resume: bool | str | Path = False,
    load_from: str | Path | None = None,
    fine_tune: str | Path | None = None,
) -> Start:
    """Which of the options counts, said to the user: a checkpoint to resume before weights to start from."""
    weights, how = (load_from, "load_from") if load_from else (fine_tune, "fine_tune")
    if weights:
        weights = weights_file(weights)
    option = f"--{how.replace('_', '-')} {weights}"
    start = find_start(work_dir, resume)
    say = logger.info if os.environ.get("RANK", "0") == "0" else logger.debug
    if start is not None:
        say("resuming %s%s", start.path, f"; {option} is not used, it is for new runs" if weights else "")
        return start
    if resume:
        begin = f"starting from {option}" if weights else "starting anew"
        say("%s: no checkpoint to resume, %s", work_dir, begin)
    elif weights:
        say("starting from %s", option)
    return Start(how, Path(weights)) if weights else Start("new")


def find_start(work_dir: Path, resume: bool | str | Path) -> Start | None:
    """The checkpoint to resume from, None to start afresh."""
    if not resume:
        if saved := checkpoints.saved_checkpoints(work_dir):
            raise ConfigError(
                f"{work_dir}: holds a run that reached {saved[0].stem}. Go on with it (--resume), or choose another "
                "--work-dir."
            )
        return None
    if resume is True or resume == "auto":
        last = checkpoints.last_good_checkpoint(work_dir)
        return None if last is None else Start("resume", *last)
    return Start("resume", Path(resume))
