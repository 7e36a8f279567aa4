"""A config as the text of one self-contained file, and back: what a training run leaves in its work folder."""

from __future__ import annotations

import ast
import importlib
import pprint
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmengine.config import Config


def config_text(config: Config, keys: Collection[str]) -> str:
    """The config's ``keys``, overrides included, as a config file without imports: classes by their dotted names.

    What Python cannot write down (frames held in memory) stands there as text.
    """
    values = config.to_dict()
    parts = ["# Written by training. All that the run was configured with, in one file.\n"]
    for key in sorted(keys & values.keys()):
        parts.append(f"{key} = {pprint.pformat(_plain(values[key]), width=120, sort_dicts=False)}\n")
    return "\n".join(parts)


def read_config_text(path: Path) -> dict[str, Any]:
    """The values of a file that `config_text` has written, classes by their names; {} where it is none or missing."""
    with suppress(OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        statements = ast.parse(path.read_text(encoding="utf-8")).body
        pairs = [(line.targets[0], line.value) for line in statements if isinstance(line, ast.Assign)]
        return {name.id: ast.literal_eval(value) for name, value in pairs if isinstance(name, ast.Name)}
    return {}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value) if type(value) in (list, tuple) else str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return str(value)


def import_types(node: Any) -> None:
    """Replace every ``type="package.module.Name"`` below ``node``, and ``collate_fn``, by what it names.

    A name that cannot be imported stays: it may be a key of MMEngine's registries (``"mmdet.ResNet"``).
    """
    for key in ("type", "collate_fn") if isinstance(node, dict) else ():
        name = node.get(key)
        if isinstance(name, str) and "." in name:
            module, _, attribute = name.rpartition(".")
            with suppress(ModuleNotFoundError, AttributeError):
                node[key] = getattr(importlib.import_module(module), attribute)
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, (list, tuple)) else ():
        import_types(child)
