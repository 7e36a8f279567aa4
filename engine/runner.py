"""MMEngine's Runner with checkpoints that are safe to read, atomic to write, and refuse another model's weights."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import nn

from ..core.checkpoint import load_checkpoint, load_state
from ..core.errors import CheckpointError, ConfigError, TrainingError, library_errors
from ..core.files import atomic_path, write_json
from ..core.registries import OPTIM_WRAPPER_CONSTRUCTORS
from ..core.weights.lineage import KEY, Stage, stages_of
from ..core.weights.names import StateDict, weights_of
from ..core.weights.shards import has_shared_out, whole_on_first
from . import checkpoints
from .averaging import AverageWeights
from .config import KEYS, build_model, building, task_names
from .config_text import config_text, read_config_text
from .failures import bad_parameters
from .fine_tune import fine_tune
from .loop import local_device
from .provenance import earlier_stages, own_stage, warn_if_near, warn_if_seen
from .recompute import module_names, recompute_in_backward
from .resume import Settings, compare, other_changes, run_settings
from .sharding import FixedBuckets, check_shared_out, share_out_model, with_shared_state

logger = logging.getLogger("drivestack")

CONFIG = "config.py"


class TrainRunner(Runner):
    """Differs from Runner in how processes share the model (sharding.py) and in the files it writes and reads."""

    fine_tune = False
    """``load_from`` holds weights of another task shape: fine_tune.py takes what fits."""
    resumed_from: Path | None = None
    resumed: dict[str, Any] | None = None
    """The content of the checkpoint to resume from, where it has been read before."""
    settings: Settings
    """What this run is configured with, for its checkpoints (resume.py)."""
    command = ""
    """That started the run, for the record."""
    lineage: tuple[Stage, ...] = ()
    """The trainings behind the weights, this one last (core/weights/lineage.py)."""
    _has_loaded: bool  # set by Runner

    def __init__(self, cfg: Config, **options: Any) -> None:
        self.config = cfg
        """All that the run was configured with. Runner gets it without the keys that it would act on itself."""
        self.sharding = cfg.get("sharding") if options.get("launcher", "none") != "none" else None
        super().__init__(
            cfg=Config({key: value for key, value in cfg.items() if key != "activation_checkpointing"}), **options
        )

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        return model if isinstance(model, nn.Module) else build_model({"model": model})

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        device, find_unused = local_device(), self.config.get("find_unused_parameters", False)
        recomputed = module_names(model, self.config, "activation_checkpointing")
        module_names(model, self.config, "efficient_conv_bn_eval")  # which Runner acts on
        init_weights = getattr(model, "init_weights", None)
        if init_weights is not None:
            init_weights()
        recompute_in_backward(model, recomputed)
        if self.distributed and self.config.get("sync_bn") and device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        if self.sharding == "fsdp2":
            return share_out_model(model, device, recomputed, find_unused)
        model = model.to(device)
        if not self.distributed:
            return model
        return FixedBuckets(
            module=model,
            device_ids=[device.index] if device.type == "cuda" else None,
            find_unused_parameters=find_unused,
        )

    def _init_model_weights(self) -> None:
        """Done in wrap_model, while every process holds the whole model."""

    def build_optim_wrapper(self, optim_wrapper: Any) -> OptimWrapper:
        if isinstance(optim_wrapper, Mapping) and "type" in optim_wrapper.get("optimizer", ()):
            if self.sharding == "zero1":
                optim_wrapper = {**optim_wrapper, "optimizer": with_shared_state(optim_wrapper["optimizer"])}
            elif self.sharding == "fsdp2":
                check_shared_out(optim_wrapper["optimizer"])
        if isinstance(optim_wrapper, Mapping) and isinstance(name := optim_wrapper.get("constructor"), str):
            # MMEngine looks in its own registry alone
            optim_wrapper = {**optim_wrapper, "constructor": OPTIM_WRAPPER_CONSTRUCTORS.get(name) or name}
        return super().build_optim_wrapper(optim_wrapper)

    def build_logger(self, log_level: int | str = "WARNING", **kwargs: Any) -> MMLogger:
        """MMEngine's warnings on standard error; progress goes to log.jsonl (run_log.RunLog), not to its files."""
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # every rank has just made the folder, or found it
        if self.rank == 0:
            with suppress(OSError):
                Path(self.log_dir).rmdir()
        return MMLogger.get_instance(self.experiment_name, logger_name="mmengine", log_level=log_level)

    def _log_env(self, env_cfg: dict) -> None:
        """`drivestack doctor` shows the environment; MMEngine's own report starts compilers to get their versions."""

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        """Call all hooks. What other people's code raises there is a TrainingError that names the hook."""
        own = __name__.partition(".")[0] + "."
        for hook in self._hooks:
            method = getattr(hook, fn_name, None)
            if method is None:
                continue
            if type(hook).__module__.startswith(own) and not isinstance(hook, EMAHook):
                method(self, **kwargs)
                continue
            fix = "see custom_hooks and ema of the config; --debug shows where"
            kind = ConfigError if fn_name == "before_run" else TrainingError
            with library_errors(kind, f"hook {type(hook).__name__}.{fn_name}", fix):
                method(self, **kwargs)

    def _maybe_compile(self, target: str) -> None:
        """Compile the model, which the loop calls: Runner compiles its ``train_step``, which nothing calls here."""
        options = self.config.get("compile", False)
        if options is not False:
            with building("compile"):
                self.bare_model.compile(**({} if options is True else options))

    def dump_config(self) -> None:
        """Not yet: Runner calls this before it is known whether the run can begin."""

    def write_config(self) -> None:
        """The whole config, overrides included, as ``work_dir/config.py``, which loads like any other."""
        if self.rank == 0:
            with atomic_path(Path(self.work_dir) / CONFIG) as temporary:
                temporary.write_text(config_text(self.config, KEYS), encoding="utf-8")

    @property
    def bare_model(self) -> nn.Module:
        """The model without its DDP wrapper."""
        return self.model.module if is_model_wrapper(self.model) else self.model

    def save_training_state(self, path: Path, iteration: int, is_last: bool = True, **notes: Any) -> None:
        """Write all that resuming after ``iteration`` iterations needs, whole, on rank 0.

        Every rank calls: where they share weights or states out, those are fetched to rank 0, on the CPU.

        is_last: a plain resume goes on from here; notes: more entries of ``meta`` (checkpoints.py).
        """
        if not self.takes_part_in_saving:
            return
        weights, optimizer = self._gather(), self.optim_wrapper.state_dict()
        memory = self.train_loop.memory.gathered(self.bare_model) if self.streams else None
        if self.rank != 0:
            return
        *earlier, own = self.lineage
        range_m = getattr(getattr(self.bare_model, "bev_map", None), "pc_range", None)
        checkpoint = {
            "meta": {
                "iter": iteration,
                "seed": self.seed,
                "world_size": self.world_size,
                "settings": self.settings,
                "config": self.config.get("config_name", ""),
                "torch": torch.__version__.split("+")[0],
                KEY: [stage.as_dict() for stage in (*earlier, replace(own, iterations=iteration))],
                **self._names(),
                **({} if range_m is None else {"pc_range": [float(own) for own in range_m]}),
                **notes,
            },
            "state_dict": weights,
            "optimizer": optimizer,
            "param_schedulers": [scheduler.state_dict() for scheduler in self.param_schedulers or []],
            **({} if memory is None else {"memory": memory}),
        }
        self.call_hook("before_save_checkpoint", checkpoint=checkpoint)  # EMA moves its weights into state_dict
        checkpoints.save_checkpoint(checkpoint, path, is_last)

    @property
    def takes_part_in_saving(self) -> bool:
        """Whether this rank holds something that checkpoints need."""
        return self.rank == 0 or self.sharding is not None or self.streams

    @property
    def streams(self) -> bool:
        """Whether the model hands a memory from one iteration to the next."""
        return getattr(self.bare_model, "streams", False)

    def bad_parameters(self) -> list[str]:
        """Names of weights that are not finite (failures.py), of all ranks; where weights are shared out, all call."""
        found = bad_parameters(self.bare_model)
        if not has_shared_out(self.bare_model):
            return found
        all_found: list[list[str]] = [[] for _ in range(self.world_size)]
        torch.distributed.all_gather_object(all_found, found)
        return list(dict.fromkeys(name for names in all_found for name in names))

    def _averages(self) -> AverageWeights | None:
        return next((hook for hook in self._hooks if isinstance(hook, AverageWeights)), None)

    def _gather(self) -> StateDict:
        """The raw weights, whole on rank 0, and the averaged ones for the hook that keeps them; all ranks call."""
        if averages := self._averages():
            averages.gather()
        return whole_on_first(weights_of(self.bare_model))

    @contextmanager
    def scored_model(self) -> Iterator[nn.Module | None]:
        """The whole model with the weights that would be published, on rank 0; None on others. All ranks enter.

        Where its weights are shared out, it is a model of its own, for a pass of one rank alone cannot fetch them.
        """
        is_shared_out = has_shared_out(self.bare_model)
        weights = self._gather() if is_shared_out else {}
        if self.rank != 0:
            yield None
            return
        self.call_hook("before_val_epoch")  # EMA lends its averaged weights to the model
        try:
            yield self._whole_model(weights) if is_shared_out else self.bare_model
        finally:
            self.call_hook("after_val_epoch")

    def _whole_model(self, weights: StateDict) -> nn.Module:
        model = build_model(self.config)
        averages = self._averages()
        load_state(model, {**weights, **(averages.averaged() if averages else {})}, source="the weights in training")
        return model.to(local_device())

    def _names(self) -> dict[str, tuple[str, ...]]:
        """``classes`` and ``cameras`` of the config; classes that a data set reads from its files, from there."""
        known = getattr(self.train_dataloader.dataset, "class_names", None)
        return ({"classes": tuple(known)} if known else {}) | task_names(self.config)

    def load_or_resume(self) -> None:
        """Start from ``load_from`` (weights only) or go on from it (``resume``); Runner.train calls this."""
        world_size, dataset = self.world_size, self.train_dataloader.dataset
        self.settings = run_settings(self.config, self.seed, world_size, dataset, self.optim_wrapper)
        if slots := getattr(self.train_dataloader.sampler, "slots", None):
            self.settings["slots"] = slots
        own = own_stage(self.config, self.seed, dataset, self.command)
        weights = None if self._load_from is None or self._resume else Path(self._load_from)
        self.lineage = (*earlier_stages(self.config, weights), own)
        if self._load_from is not None and not self._has_loaded:
            if self._resume:
                self._resume_from(Path(self._load_from))
            else:
                self._start_from(Path(self._load_from))
            self._has_loaded = True
        if self.rank == 0:
            warn_if_seen(self.config, self.lineage[:-1])
            warn_if_near(self.config, dataset)
        self.write_config()

    def _start_from(self, path: Path) -> None:
        if self.fine_tune:
            report = fine_tune(self.bare_model, path, **task_names(self.config))
            if self.rank == 0:
                logger.info("%s", report)
                write_json(Path(self.work_dir) / "fine_tune.json", report.as_dict(), indent=1)
        else:
            load_checkpoint(self.bare_model, path, may_lack=tuple(self.config.get("new_parts", ())))
        self.call_hook("after_load_checkpoint", checkpoint={"state_dict": self.bare_model.state_dict()})

    def _resume_from(self, path: Path) -> None:
        checkpoint, self.resumed = self.resumed or checkpoints.read_checkpoint(path), None
        # Before the EMA hook swaps raw and averaged weights: does this belong to the model at all?
        load_state(self.bare_model, checkpoint["state_dict"], source=str(path))
        fix = "it is damaged: resume from another checkpoint"
        with library_errors(CheckpointError, f"{path}: training state", fix):
            changes = compare(checkpoint["meta"], self.settings, path)
            if changes.drops_ema:
                raw = checkpoint.pop("ema_state_dict")
                checkpoint["state_dict"] = {name: raw[f"module.{name}"] for name in checkpoint["state_dict"]}
            self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
            load_state(self.bare_model, checkpoint["state_dict"], source=str(path))
            self._resume_optimizer(checkpoint, changes.iteration if changes.rates else None)
            if self.streams and "memory" in checkpoint:
                self.train_loop.memory.load(self.bare_model, checkpoint["memory"])
        if KEY in checkpoint["meta"]:
            *earlier, began = stages_of(checkpoint["meta"][KEY], str(path))
            self.lineage = (*earlier, replace(self.lineage[-1], command=began.command))
        checkpoint.clear()  # the caller holds it, too, for as long as the training takes
        self.train_loop.iter = changes.iteration
        self.resumed_from = path.resolve()
        if self.rank == 0:
            before = read_config_text(path.parent / CONFIG)
            for line in [*changes.lines, *other_changes(before or self.config, self.config, changes.iteration)]:
                logger.info("%s", line)
            if changes.iteration >= self.max_iters:
                logger.info("iteration %d of %d: nothing is left to train", changes.iteration, self.max_iters)

    def _resume_optimizer(self, checkpoint: Mapping[str, Any], fast_forward: int | None) -> None:
        """Take the optimiser's state, and rates and schedules from the checkpoint, or from the config.

        fast_forward: so many iterations this run's own schedules are stepped, so that the rates are exactly those of a
        run that had the config's settings from its start; None: all goes on from the checkpoint's state.
        """
        schedulers = self.param_schedulers or []
        if fast_forward is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # no step of the optimiser comes between
                for _ in range(fast_forward):
                    for scheduler in schedulers:
                        scheduler.step()
            settings = [
                {key: value for key, value in group.items() if key != "params"}
                for group in self.optim_wrapper.param_groups
            ]
        self.optim_wrapper.load_state_dict(checkpoint["optimizer"])
        if fast_forward is not None:
            for group, values in zip(self.optim_wrapper.param_groups, settings):
                group.update(values)
            return
        states = checkpoint["param_schedulers"]
        if len(states) != len(schedulers):
            raise ValueError(f"{len(states)} schedules, the config has {len(schedulers)}")
        for scheduler, state in zip(schedulers, states):
            scheduler.load_state_dict(state)
