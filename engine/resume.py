"""A resumed run is the run that its config states: what differs from the checkpoint acts and is said, or is refused.

The settings are stored in the checkpoint's ``meta["settings"]``, a dict of plain values: ``config`` (the entries that
its state depends on), ``seed``, ``world_size``, ``batch_size`` (of one process), ``accumulation`` (iterations in a step
of the optimiser), ``samples`` and ``fingerprint`` of the training data, ``parameter_groups`` of the optimiser,
``slots`` of a StreamingSampler.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from ..core.errors import CheckpointError
from .config_check import KEYS, scheduler_list, shown

Settings = dict[str, Any]

STORED = ("optim_wrapper", "param_scheduler", "ema")
"""Keys of the config that the state of a checkpoint depends on, beside the data (``dataset``, ``sampler``)."""

NOT_OF_TRAINING = (
    "benchmark", "class_range_m", "data_command", "new_parts", "region_of_interest", "test_dataset", "waymo_entry",
)  # fmt: skip
"""Keys whose change does not concern a resumed run."""

TUNABLE = ("lr", "weight_decay", "betas", "eps", "momentum", "dampening", "nesterov", "foreach")
"""Arguments of an optimiser that may change while its state stays what it is."""

REFUSED = ("optim_wrapper.type", "optim_wrapper.optimizer.*", "train_dataloader.sampler.*")
"""Entries whose change makes another run, but for TUNABLE ones."""

RATES = ("optim_wrapper.optimizer.*", "optim_wrapper.paramwise_cfg.*", "optim_wrapper.constructor", "param_scheduler*")
"""Entries that the learning rates and other values of the parameter groups follow from."""

COUNTED = ("train_dataloader.batch_size", "optim_wrapper.accumulative_counts")  # compared as sizes
NAMED = ("type", "collate_fn")  # classes and functions, in a written config by their dotted names
ABSENT = "not set"


@dataclass(frozen=True)
class Changes:
    """How a run differs from the one that wrote its checkpoint."""

    iteration: int
    """Where this run goes on, in its own iterations."""
    lines: tuple[str, ...] = ()
    """What to report, one change each."""
    rates: bool = False
    """Whether learning rates and schedules follow the config instead of the checkpoint's state."""
    drops_ema: bool = False
    """The checkpoint holds averaged weights and this run averages none."""


def run_settings(config: Mapping[str, Any], seed: int, world_size: int, dataset: Any, optim_wrapper: Any) -> Settings:
    """The settings of a run about to start."""
    loader = config["train_dataloader"]
    stored = {key: plain_settings(config.get(key)) for key in STORED}
    end = config["train_cfg"]["max_iters"]  # where a schedule without end of its own ends
    schedules = [{"end": end, **entry} for entry in scheduler_list(config.get("param_scheduler"))]
    stored["param_scheduler"] = plain_settings(schedules)
    stored["train_dataloader"] = {key: plain_settings(loader[key]) for key in ("dataset", "sampler")}
    return {
        "config": stored,
        "seed": int(seed),
        "world_size": int(world_size),
        "batch_size": int(loader["batch_size"]),
        "accumulation": int(optim_wrapper._accumulative_counts),
        "samples": len(dataset),
        "fingerprint": data_fingerprint(dataset),
        "parameter_groups": parameter_groups(optim_wrapper.optimizer),
    }


def data_fingerprint(dataset: Any) -> str:
    """Of the samples in their order: scenes, and tokens where the data set has them."""
    digest = hashlib.sha256()
    for names in (dataset.scene_tokens, getattr(dataset, "tokens", ())):
        digest.update("\n".join(map(str, names)).encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()[:16]


def parameter_groups(optimizer: torch.optim.Optimizer) -> str:
    """How the optimiser's parameters are grouped, as text: equal where the state of one fits the other."""
    shapes = [[tuple(parameter.shape) for parameter in group["params"]] for group in optimizer.param_groups]
    mark = hashlib.sha256(repr(shapes).encode()).hexdigest()[:8]
    return f"{sum(map(len, shapes))} parameters in {len(shapes)} groups ({mark})"


def compare(meta: Mapping[str, Any], now: Settings, path: Path) -> Changes:
    """What differs between the run that wrote ``path`` and this one. Raises CheckpointError for what cannot go on."""
    stored = meta.get("settings")
    if not isinstance(stored, Mapping):
        return _compare_old(meta, now, path)
    refused = [
        (name, stored.get(key, ABSENT), now.get(key, ABSENT))
        for key, name in (
            ("seed", "seed"),
            ("samples", "a training set of so many samples:"),
            ("fingerprint", "other samples or scenes in the training set, fingerprint"),
            ("parameter_groups", "parameter groups:"),
            ("slots", "so many sequences at a time (processes x batch size x interleave):"),
        )
        if stored.get(key) != now.get(key)
    ]
    if refused and refused[0][0].startswith("a training set"):
        refused = [entry for entry in refused if "fingerprint" not in entry[0]]
    changed = _changed(stored.get("config", {}), now["config"])
    for key, (old, new) in changed.items():
        is_tunable = key.startswith("optim_wrapper.optimizer.") and key.split(".")[2] in TUNABLE
        if _matches(key, REFUSED) and not is_tunable:
            refused.append((key, old, new))
    if refused:
        raise CheckpointError(_refusal(path, refused))
    iteration, lines = _position(meta, stored, now, path)
    rates = any(_matches(key, RATES) for key in changed) or iteration != meta["iter"]
    drops_ema = _averages(stored["config"]) and not _averages(now["config"])
    lines += _lines(changed, iteration)
    return Changes(iteration, tuple(lines), rates, drops_ema)


def other_changes(before: Mapping[str, Any], config: Mapping[str, Any], iteration: int) -> list[str]:
    """Lines about the keys that no state depends on (model, iterations, intervals, ...), which simply act.

    before: what the run was configured with so far, as its work folder's config.py states it.
    """
    left = KEYS.difference(NOT_OF_TRAINING, STORED, ("seed",))  # the checkpoint's own seed was compared
    old, new = ({key: plain_settings(values[key]) for key in left.intersection(values)} for values in (before, config))
    for values in (old, new):
        loader = values.get("train_dataloader")
        if isinstance(loader, Mapping):
            values["train_dataloader"] = {k: v for k, v in loader.items() if k not in ("dataset", "sampler")}
    return _lines(_changed(old, new), iteration)


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    before, after = _leaves(old), _leaves(new)
    pairs = {key: (before.get(key, ABSENT), after.get(key, ABSENT)) for key in sorted(before.keys() | after.keys())}
    return {key: (one, two) for key, (one, two) in pairs.items() if key not in COUNTED and not _equal(one, two)}


def _lines(changed: Mapping[str, tuple[Any, Any]], iteration: int) -> list[str]:
    lines = []
    for key, (old, new) in changed.items():
        name = "learning rate" if key == "optim_wrapper.optimizer.lr" else key
        values = " -> ".join(value if isinstance(value, str) else shown(value) for value in (old, new))
        lines.append(f"{name} {values} from iteration {iteration} on: the config's value is used")
    return lines


def _compare_old(meta: Mapping[str, Any], now: Settings, path: Path) -> Changes:
    """A checkpoint from before settings were stored."""
    refused = [(key, meta.get(key), now[key]) for key in ("seed", "world_size") if meta.get(key) != now[key]]
    if refused:
        raise CheckpointError(_refusal(path, refused))
    lines = [
        f"{path}: holds no settings to compare (an older version wrote it); learning rate and schedule go on as in the "
        "checkpoint, all else is as the config states"
    ]
    if lost := meta["iter"] % now["accumulation"]:
        lines.append(f"{path}: was written inside an accumulation window; the gradients of {lost} iterations are lost")
    return Changes(meta["iter"], tuple(lines))


def _refusal(path: Path, refused: Sequence[tuple[str, Any, Any]]) -> str:
    parts = [f"trained with {name} {shown(old)}, this run has {name} {shown(new)}" for name, old, new in refused]
    return f"{path}: {'; '.join(parts)}. Resume with the same, or start a new --work-dir with --load-from {path}."


def _position(meta: Mapping[str, Any], stored: Mapping[str, Any], now: Settings, path: Path) -> tuple[int, list[str]]:
    """Where to go on: the position in samples is kept, whatever number of processes shares the global batch."""
    sizes = ("world_size", "batch_size", "accumulation")
    old, new = [[settings[size] for size in sizes] for settings in (stored, now)]
    if old == new:
        return meta["iter"], []
    (old_world, old_batch, old_window), (new_world, new_batch, new_window) = old, new
    words = "{} processes x batch size {} x {} accumulated iterations"
    if old_world * old_batch * old_window != new_world * new_batch * new_window:
        raise CheckpointError(
            f"{path}: trained with {words.format(*old)} = {old_world * old_batch * old_window} samples in a step, this "
            f"run has {words.format(*new)} = {new_world * new_batch * new_window}. Resume with the same product (set "
            "train_dataloader.batch_size, optim_wrapper.accumulative_counts), or start a new --work-dir with "
            f"--load-from {path}."
        )
    iteration = meta["iter"] * old_world * old_batch // (new_world * new_batch)
    lines = [
        f"{words.format(*old)} -> {words.format(*new)} from iteration {iteration} on: the same samples in each step"
    ]
    if iteration != meta["iter"]:
        lines.append(
            f"an iteration is {new_world * new_batch} samples instead of {old_world * old_batch}: iteration "
            f"{meta['iter']} of the checkpoint is iteration {iteration} here; train_cfg.max_iters, param_scheduler and "
            "the intervals of the config count the new ones"
        )
    return iteration, lines


def _averages(config: Mapping[str, Any]) -> bool:
    return bool(config.get("ema"))


def _matches(key: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _leaves(node: Any, place: str = "") -> dict[str, Any]:
    """Values by dotted key; lists of numbers and names are values, lists of dicts are not."""
    items: list[tuple[Any, Any]] = []
    if isinstance(node, Mapping):
        items = list(node.items())
    elif isinstance(node, (list, tuple)) and any(isinstance(item, Mapping) for item in node):
        items = list(enumerate(node))
    if not items:
        return {place: list(node) if isinstance(node, (list, tuple)) else node}
    found: dict[str, Any] = {}
    for key, value in items:
        found |= _leaves(value, f"{place}.{key}" if place else str(key))
    return found


def _equal(old: Any, new: Any) -> bool:
    return bool(old == new) or ({repr(old), repr(new)} <= {repr(ABSENT), "None"})


def plain_settings(value: Any) -> Any:
    """As plain values that a checkpoint may hold and that compare equal where the settings do.

    Classes and functions are their names, wherever their modules are; other objects are the names of their classes.
    """
    if isinstance(value, Mapping):
        return {str(key): _type_name(item) if key in NAMED else plain_settings(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [plain_settings(item) for item in value]
        is_foreign = len(items) > 3 and not isinstance(value[0], (bool, int, float, str, list, tuple, Mapping))
        return [f"{len(items)} x {items[0]}"] if is_foreign else items
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # NumPy's and torch's numbers
        return plain_settings(value.tolist())
    return _type_name(value)


def _type_name(value: Any) -> str:
    if isinstance(value, str):
        return value.rpartition(".")[2]
    return str(getattr(value, "__qualname__", type(value).__qualname__))
