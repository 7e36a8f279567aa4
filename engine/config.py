"""Config files: pure Python, found by name or path, changed by ``a.b=value`` overrides."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS
from torch import nn
from torch.utils.data import Dataset

from ..core.errors import ConfigError, DrivestackError

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
    ``["train_cfg.max_iters=100", "optim_wrapper.optimizer.lr=1e-4"]``.
    """
    path = Path(name_or_path)
    if path.suffix != ".py":
        path = shipped_configs().get(str(name_or_path), path)
    if not path.is_file():
        raise ConfigError(f"{name_or_path}: no such config. Name a .py file or one of: {', '.join(config_names())}.")
    try:
        config = Config.fromfile(path, lazy_import=True)
        _import_all(config._cfg_dict)
    except DrivestackError:
        raise
    except Exception as error:  # a config is code: whatever it raises, the reader needs the file's name
        raise ConfigError(f"{path}: cannot be read as a config: {type(error).__name__}: {error}") from error
    pairs = overrides.items() if isinstance(overrides, Mapping) else [parse_override(text) for text in overrides]
    for key, value in pairs:
        override(config, key, value)
    config.config_name = path.stem
    return config


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
    except (KeyError, TypeError, ValueError) as error:
        text = (str(error.args[0]) if error.args else "").partition("\n")[0] or type(error).__name__
        name, unregistered, _ = text.partition(" is not in the ")  # MMEngine's words, which go on for two lines
        if unregistered:
            text = f"nothing is registered as type={name!r}; import the class in the config and write type=TheClass"
        raise ConfigError(f"{part} of the config cannot be built: {text}") from error


def build_model(config: Config) -> nn.Module:
    """The model a config describes, with fresh weights. Raises ConfigError."""
    with building("model"):
        return MODELS.build(config.model)


def build_dataset(dataset_config: Mapping[str, Any]) -> Dataset:
    """The dataset that a part of a config describes, such as ``config.test_dataset``. Raises ConfigError, DataError."""
    with building("dataset"):
        return DATASETS.build(dataset_config)
