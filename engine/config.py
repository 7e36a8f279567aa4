"""Config files: pure Python, found by name or path, changed by ``a.b=value`` overrides."""

from __future__ import annotations

import ast
import difflib
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils.data import Dataset

from ..core.errors import LIBRARY_ERRORS, ConfigError, DrivestackError
from ..core.registries import DATASETS, MODELS
from ..core.signals import Terminated
from .config_check import KEYS, check_types, dotted_leaves, unread
from .config_text import import_types
from .config_variables import load_with_variables, read_source, time_limit, unread_names

__all__ = ["KEYS"]  # beside what is defined here

MOST_PARAMETERS = 30_000
"""Tensors of a model; the largest released one has some thousands."""

CONFIG_FOLDER = Path(__file__).resolve().parents[1] / "configs"


def config_names() -> list[str]:
    """Names of the shipped configs."""
    return sorted(shipped_configs())


def shipped_configs() -> dict[str, Path]:
    """Config files by name: a shipped config is known by its stem, whichever folder it lies in."""
    files = [path for path in CONFIG_FOLDER.glob("*/*.py") if path.parent.name != "_base_"]
    return {path.stem: path for path in files if path.stem != "__init__"}


def load_config(name_or_path: str | Path, overrides: Mapping[str, Any] | Iterable[str] = ()) -> Config:
    """A config by file path, or by the name of a shipped one, with overrides applied. Raises ConfigError.

    ``overrides`` maps dotted keys to values, or lists ``key=value`` with Python literals (other text is a string):
    ``["train_cfg.max_iters=100", "optim_wrapper.optimizer.lr=1e-4"]``. A helper variable of the file
    (``"max_iters=100"``) acts on all that the file computes from it; one that nothing depends on is refused, as are
    top-level names that neither the file nor drivestack defines.
    """
    path = Path(name_or_path)
    if path.suffix != ".py":
        path = shipped_configs().get(str(name_or_path), path)
    if not path.is_file():
        raise ConfigError(f"{name_or_path}: no such config. Name a .py file or one of: {', '.join(config_names())}.")
    pairs = dict(overrides.items() if isinstance(overrides, Mapping) else map(parse_override, overrides))
    config = _read(path, {})
    for key in pairs:
        _check_top_level(config, key)
    variables = {key: value for key, value in pairs.items() if key.split(".")[0] not in KEYS}
    if variables:
        before = config
        config = _read(path, variables)
        for key in variables:
            _check_effect(before, config, key, variables, path)
    for key, value in pairs.items():
        if key not in variables:
            override(config, key, value)
    check_types(config)
    config.config_name = path.stem
    return config


def _read(path: Path, variables: Mapping[str, Any]) -> Config:
    try:
        with time_limit(path):
            source = read_source(path)
            config = load_with_variables(source, variables) if variables else Config.fromfile(path, lazy_import=True)
            _import_all(config._cfg_dict)
            import_types(config._cfg_dict)
        names = unread_names(source)
    except (DrivestackError, Terminated):
        raise
    except (Exception, SystemExit) as error:  # a config is code: whatever it raises, the reader needs the file's name
        change = f" with {', '.join(f'{key}={value!r}' for key, value in variables.items())}" if variables else ""
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ConfigError(f"{path}: cannot be read as a config{change}: {reason}") from error
    for name in names - KEYS:
        raise ConfigError(f"{path}: {unread(name, config._cfg_dict)}")
    return config


def _check_top_level(config: Config, key: str) -> None:
    name = key.split(".")[0]
    own = set(config) - config._imported_names - {"read_base"}
    if name not in own | KEYS:
        near = difflib.get_close_matches(name, sorted(own | KEYS), n=3, cutoff=0.5)
        choices = f"did you mean {', '.join(near)}?" if near else f"it has {', '.join(sorted(own))}."
        raise ConfigError(f"override {key}: the config has no {name}; {choices}")


def _check_effect(before: Config, after: Config, key: str, variables: Mapping[str, Any], path: Path) -> None:
    """Refuse a helper variable on which nothing depends that drivestack reads."""
    if len(variables) > 1:  # the others may have had all the effect there is
        others = {other: value for other, value in variables.items() if other != key}
        before = _read(path, others)
    last = key.split(".")[-1]
    old_values, new_values = before.to_dict(), after.to_dict()  # classes as their names: lazy ones never compare equal
    if any(old_values.get(part) != new_values.get(part) for part in KEYS):
        return
    value = variables[key]
    old: Any = before._cfg_dict
    for part in key.split("."):
        old = old.get(part) if isinstance(old, Mapping) else None
    if old == value:
        return
    places = [place for place, leaf in dotted_leaves(before._cfg_dict) if place.split(".")[0] in KEYS]
    near = [place for place in places if place.split(".")[-1] == last][:3]
    advice = f"set {' or '.join(near)} instead" if near else "set the dotted key that you mean instead"
    raise ConfigError(f"override {key}: nothing in the config depends on it; {advice}.")


def task_names(config: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """``classes`` and ``cameras``: names in the model's order, of the first dataset in the config that states them."""
    loader = config.get("train_dataloader") or {}
    datasets = [dataset for dataset in (loader.get("dataset"), config.get("test_dataset")) if dataset]
    found = {}
    for name, key in (("classes", "classes"), ("cameras", "camera_names")):
        stated = [dataset.get(key) for dataset in datasets if dataset.get(key)]
        if stated:
            found[name] = tuple(stated[0])
    return found


def _import_all(node: Any) -> None:
    """Import what a config names, so that a misspelt class is found now and not when it is first built."""
    children = node.values() if isinstance(node, dict) else node if isinstance(node, (list, tuple)) else ()
    for child in children:
        _import_all(child)


def override(config: Config, key: str, value: Any) -> None:
    """Set the dotted ``key``. Raises ConfigError where a part of it on the way does not exist."""
    *parents, last = key.split(".")
    node: Any = config
    for parent in parents:
        try:
            node = node[int(parent)] if isinstance(node, (list, tuple)) else node[parent]
        except (KeyError, IndexError, ValueError, TypeError):
            raise ConfigError(f"override {key}: the config has no '{parent}' there.") from None
    try:
        if isinstance(node, list):
            node[int(last)] = value
        else:
            node[last] = value
    except (TypeError, ValueError, IndexError):
        raise ConfigError(f"override {key}: '{last}' cannot be set there.") from None


def parse_override(text: str) -> tuple[str, Any]:
    """``"a.b=3"`` to ``("a.b", 3)``."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {text!r}: write it as key=value, for example train_cfg.max_iters=100.")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


@contextmanager
def building(part: str) -> Iterator[None]:
    """Within, a config's wrong type, argument or value becomes a ConfigError that names the part of the config."""
    try:
        yield
    except LIBRARY_ERRORS as error:
        text = " ".join(str(error.args[0] if error.args else "").partition("\n")[0].split()) or type(error).__name__
        name, unregistered, _ = text.partition(" is not in the ")  # MMEngine's words, which go on for two lines
        if unregistered:
            text = f"nothing is registered as type={name!r}; import the class in the config and write type=TheClass"
        raise ConfigError(f"{part} of the config cannot be built: {text}") from error


@contextmanager
def _within_memory() -> Iterator[None]:
    """Refuse a model whose parameters alone exceed this machine's memory, before the system ends the process, and one
    of so many that building it would not end."""
    total_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf
    used_bytes = tensors = 0

    def count(module: nn.Module, name: str, parameter: torch.Tensor | None) -> None:
        nonlocal used_bytes, tensors
        tensors += 1
        if tensors > MOST_PARAMETERS:
            raise ConfigError(
                f"model: more than {MOST_PARAMETERS} parameter tensors, the last of {type(module).__name__}; look at "
                "the numbers of layers in the config."
            )
        if parameter is None or parameter.device.type != "cpu":
            return
        used_bytes += parameter.nbytes
        if used_bytes > total_bytes:
            raise ConfigError(
                f"model: {type(module).__name__}.{name} of {tuple(parameter.shape)} brings the parameters to "
                f"{used_bytes / 2**30:.0f} GiB, more than this machine's memory; look at the sizes in the config."
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def build_model(config: Mapping[str, Any]) -> nn.Module:
    """The model a config describes, with fresh weights. Raises ConfigError."""
    with building("model"), _within_memory():
        return MODELS.build(config["model"])


def build_dataset(dataset_config: Mapping[str, Any]) -> Dataset:
    """The dataset that a part of a config describes, such as ``config.test_dataset``. Raises ConfigError, DataError."""
    with building("dataset"):
        return DATASETS.build(dataset_config)
