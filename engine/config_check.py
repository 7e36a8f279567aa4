"""What a config's entries may be, checked when it is read: a wrong type is named by its key, before anything is built.

Only keys of KEYS are looked at, and only those that are there; what training needs is demanded by train.py.
"""

from __future__ import annotations

import difflib
import inspect
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim.scheduler import param_scheduler as schedulers
from mmengine.registry import PARAM_SCHEDULERS

from ..core.errors import ConfigError

KEYS = frozenset(
    [
        "model",
        "train_dataloader",
        "test_dataset",
        "optim_wrapper",
        "param_scheduler",
        "train_cfg",
        "seed",
        "checkpoint",
        "log_interval",
        "gradient_log_interval",
        "ema",
        "sync_bn",
        "find_unused_parameters",
        "new_parts",
        "custom_hooks",
        "validation",
        "class_range_m",
        "benchmark",
        "waymo_entry",
        "region_of_interest",
        "tensorboard",
        "data_command",
        "activation_checkpointing",
        "sharding",
        "efficient_conv_bn_eval",
        "compile",
        "epochs",
        "sized_by_classes",
        "weights_by_class",
        "counts_by_class",
        "cache_features",
    ]
)
"""Top-level keys that are read from a config, here or by MMEngine; its other names are helper variables."""

ELSEWHERE = {
    "auto_scale_lr": "set optim_wrapper.optimizer.lr",
    "default_hooks": "use checkpoint, log_interval and custom_hooks",
    "env_cfg": "start several processes with torchrun",
    "load_from": "use the option --load-from",
    "model_wrapper_cfg": "use sharding, sync_bn and find_unused_parameters",
    "max_epochs": "use train_cfg = dict(max_iters=...), or epochs = dict(total=..., lr=...)",
    "randomness": "use seed",
    "resume": "use the option --resume",
    "strategy": "use sharding",
    "val_cfg": "use validation",
    "val_dataloader": "use validation and test_dataset",
    "val_evaluator": "use validation",
    "test_dataloader": "use test_dataset",
    "work_dir": "use the option --work-dir",
}
"""Keys of other code bases on MMEngine, and what does their job here."""

MAX_BATCH, MAX_WORKERS = 65536, 1024  # above, a slip: memory and process table end first


def shown(value: Any) -> str:
    """``value`` short enough for a message of one line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."


def whole(low: int, high: float = math.inf) -> Callable[[Any], str | None]:
    """A check for whole numbers from ``low`` to ``high``, which returns what is expected where it is not met."""
    words = f"a whole number from {low} " + ("on" if high == math.inf else f"to {high:.0f}")
    return lambda value: None if type(value) is int and low <= value <= high else words


def _is(words: str, *kinds: type) -> Callable[[Any], str | None]:
    return lambda value: None if isinstance(value, kinds) else words


def _number(value: Any) -> str | None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max
    return None if good else "a finite number that is not negative"


def _names(value: Any) -> str | None:
    good = isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)
    return None if good else "a list of names"


def _hooks(value: Any) -> str | None:
    good = isinstance(value, (list, tuple)) and all(isinstance(hook, (Mapping, Hook)) for hook in value)
    return None if good else "a list of dicts"


def _one_of(*choices: str) -> Callable[[Any], str | None]:
    return lambda value: None if value in choices else " or ".join(map(repr, choices))


def _or_none(check: Callable[[Any], str | None]) -> Callable[[Any], str | None]:
    return lambda value: None if value is None or check(value) is None else f"{check(value)}, or None"


_dict, _flag = _is("a dict", Mapping), _is("True or False", bool)
_modules = lambda value: None if isinstance(value, str) else _names(value)

CHECKS: Mapping[str, Callable[[Any], str | None]] = {
    "model": _dict,
    "train_dataloader": _dict,
    "train_dataloader.dataset": _dict,
    "train_dataloader.sampler": _dict,
    "train_dataloader.batch_size": whole(1, MAX_BATCH),
    "train_dataloader.num_workers": whole(0, MAX_WORKERS),
    "train_dataloader.prefetch_factor": _or_none(whole(1, MAX_WORKERS)),
    "test_dataset": _dict,
    "optim_wrapper": _dict,
    "optim_wrapper.optimizer": _dict,
    "optim_wrapper.optimizer.lr": _number,
    "optim_wrapper.accumulative_counts": whole(1),
    "optim_wrapper.clip_grad": _or_none(_dict),
    "optim_wrapper.paramwise_cfg": _or_none(_dict),
    "optim_wrapper.paramwise_cfg.custom_keys": _dict,
    "train_cfg": _dict,
    "train_cfg.max_iters": whole(1),
    "seed": whole(0, 2**32 - 1),
    "checkpoint": _dict,
    "checkpoint.interval": whole(1),
    "checkpoint.keep": whole(1),
    "log_interval": whole(1),
    "gradient_log_interval": _or_none(whole(1)),
    "ema": _or_none(_dict),
    "sync_bn": _flag,
    "find_unused_parameters": _flag,
    "new_parts": _names,
    "custom_hooks": _or_none(_hooks),
    "validation": _or_none(_dict),
    "validation.interval": whole(1),
    "class_range_m": _dict,
    "benchmark": _one_of("nuscenes", "waymo", "argoverse2"),
    "waymo_entry": _dict,
    "region_of_interest": _flag,
    "tensorboard": _flag,
    "data_command": _or_none(_is("text", str)),
    "activation_checkpointing": _or_none(_modules),
    "sharding": _or_none(_one_of("zero1", "fsdp2")),
    "efficient_conv_bn_eval": _or_none(_modules),
    "compile": _is("True, False or a dict", bool, Mapping),
    "epochs": _or_none(_dict),
    "sized_by_classes": _names,
    "weights_by_class": _names,
    "counts_by_class": _names,
    "cache_features": _or_none(_is("a folder", str)),
}


def check_types(config: Config | Mapping[str, Any]) -> None:
    """Raises ConfigError that names the key, what it must be and what it is."""
    values = config._cfg_dict if isinstance(config, Config) else config
    for key, check in CHECKS.items():
        node: Any = values
        for part in key.split("."):
            node = node.get(part, check) if isinstance(node, Mapping) else check
        if node is not check and (words := check(node)):
            raise ConfigError(f"{key}: must be {words}, got {shown(node)}.")
    scheduler_list(values.get("param_scheduler"))


def scheduler_list(value: Any) -> list[dict[str, Any]]:
    """``param_scheduler`` as a list of dicts that count iterations, which is what the training loop steps.

    Raises ConfigError for anything else, and for schedulers that would never act here.
    """
    entries = [] if value is None else [value] if isinstance(value, Mapping) else value
    if not isinstance(entries, (list, tuple)):
        raise ConfigError(f"param_scheduler: must be a list of dicts, got {shown(value)}.")
    found = []
    for i, entry in enumerate(entries):
        key = f"param_scheduler.{i}"
        if not isinstance(entry, Mapping):
            raise ConfigError(f"{key}: must be a dict, got {shown(entry)}.")
        if entry.get("by_epoch", False) is not False or entry.get("convert_to_iter_based", False) is not False:
            flag = "by_epoch" if entry.get("by_epoch", False) is not False else "convert_to_iter_based"
            raise ConfigError(
                f"{key}.{flag}={shown(entry[flag])}: training counts iterations and has no epochs; leave {flag} out "
                "(or by_epoch=False) and state begin, end, milestones and periods in iterations."
            )
        for name, check in (("begin", whole(0)), ("end", whole(1))):
            if name in entry and (words := check(entry[name])):
                raise ConfigError(f"{key}.{name}: must be {words}, got {shown(entry[name])}.")
        kind = PARAM_SCHEDULERS.get(entry["type"]) if isinstance(entry.get("type"), str) else entry.get("type")
        if inspect.isclass(kind) and issubclass(kind, schedulers.ReduceOnPlateauParamScheduler):
            raise ConfigError(f"{key}: {kind.__name__} would never act, it gets no scores here; use another schedule.")
        found.append({**entry, "by_epoch": False})
    return found


def check_keys(config: Config) -> None:
    """Refuse top-level keys that nobody reads, of a config that was made in memory and so has no helper variables."""
    if config.filename is None and "config_name" not in config:
        for name in config:
            if name not in KEYS:
                raise ConfigError(unread(name, config))


def unread(name: str, config: Mapping[str, Any]) -> str:
    """A message about a top-level name that nothing reads."""
    places = [place for place, _ in dotted_leaves(config) if place.split(".")[0] in KEYS]
    same = [place for place in places if place.split(".")[-1] == name][:3]
    near = difflib.get_close_matches(name, sorted(KEYS), n=1, cutoff=0.6)
    if name in ELSEWHERE:
        advice = ELSEWHERE[name]
    elif near:
        advice = f"did you mean {near[0]}?"
    elif same:
        advice = f"set {' and '.join(same)}, or --set {name}=..."
    else:
        advice = f"remove it, or use one of: {', '.join(sorted(KEYS))}"
    return f"{name}: nothing reads this key; {advice}"


def dotted_leaves(node: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted keys and values below ``node`` that are no mappings themselves, such as ``model.img_neck.num_outs``."""
    leaves = []
    for key, value in node.items():
        place = f"{prefix}{key}"
        if isinstance(value, Mapping):
            leaves += dotted_leaves(value, f"{place}.")
        else:
            leaves.append((place, value))
    return leaves
