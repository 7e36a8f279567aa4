"""Changing a variable of a config file so that all that is computed from it follows, as if its line had been edited.

A config's helper variables (max_iters, pc_range, ...) are values that other lines copied when the file was read:
setting them afterwards changes nothing. So the files of the inheritance chain are read again, from copies in a
temporary folder where the new value stands right behind the assignment that counts.
"""

from __future__ import annotations

import ast
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.utils import get_installed_path

from ..core.errors import ConfigError


@dataclass
class ConfigSource:
    """One file of an inheritance chain."""

    path: Path
    tree: ast.Module
    bases: list[tuple[ast.ImportFrom, ConfigSource]]
    """Import statements of ``with read_base()``, in their order, and what each names."""

    def walk(self) -> Iterator[ConfigSource]:
        """This file, then its bases, the later (which wins) first."""
        yield self
        for _, base in reversed(self.bases):
            yield from base.walk()

    def assignments(self, name: str) -> list[int]:
        """Positions in the file's body at which a top-level statement assigns ``name``."""
        return [i for i, statement in enumerate(self.tree.body) if name in _assigned_names(statement)]


def read_source(path: Path) -> ConfigSource:
    """The chain of a config file."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    imports = [
        node
        for statement in tree.body
        if isinstance(statement, ast.With)
        for node in statement.body
        if isinstance(node, ast.ImportFrom)
    ]
    return ConfigSource(path, tree, [(node, read_source(_base_file(path, node))) for node in imports])


def load_with_variables(path: Path, changes: Mapping[str, Any]) -> Config:
    """The config of ``path`` read with new values for top-level names: dotted keys of their own, or the names.

    ``changes`` maps ``"max_iters"`` or ``"source.root"`` to values that can be written as Python literals.
    Raises ConfigError for others, and for a name that no file of the chain assigns.
    """
    source = read_source(path)
    for key, value in changes.items():
        _insert(source, key, value)
    with tempfile.TemporaryDirectory(prefix="drivestack-config-") as folder:
        return Config.fromfile(_write(source, Path(folder), path.stem), lazy_import=True)


def assigns(source: ConfigSource, name: str) -> bool:
    """Whether a file of the chain assigns the top-level ``name``."""
    return any(file.assignments(name) for file in source.walk())


def _insert(source: ConfigSource, key: str, value: Any) -> None:
    name, *rest = key.split(".")
    try:
        is_literal = ast.literal_eval(repr(value)) == value
    except (ValueError, SyntaxError):
        is_literal = False
    if not is_literal:
        raise ConfigError(f"override {key}: {value!r} is no Python literal; set the keys that use it instead.")
    target = name + "".join(f"[{int(part) if part.isdigit() else part!r}]" for part in rest)
    statement = ast.parse(f"{target} = {value!r}").body[0]
    for file in source.walk():
        if places := file.assignments(name):
            file.tree.body.insert(places[-1] + 1, statement)
            return
    raise ConfigError(f"override {key}: no line of the config assigns {name}.")


def _assigned_names(statement: ast.stmt) -> set[str]:
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, (ast.AnnAssign, ast.AugAssign)):
        targets = [statement.target]
    else:
        return set()
    return {node.id for target in targets for node in _leaves(target) if isinstance(node, ast.Name)}


def _leaves(target: ast.expr) -> list[ast.expr]:
    return list(target.elts) if isinstance(target, (ast.Tuple, ast.List)) else [target]


def _base_file(path: Path, node: ast.ImportFrom) -> Path:
    """The file that an import inside ``with read_base()`` names, found as MMEngine finds it."""
    parts = (node.module or "").split(".")
    if node.level:
        folder = path.parents[node.level - 1]
    else:
        folder, parts = Path(get_installed_path(parts[0])), parts[1:]
    return folder.joinpath(*parts).with_suffix(".py")


def _write(source: ConfigSource, folder: Path, name: str) -> Path:
    """Write a chain flat into ``folder``, each import naming its copy, and return the first file."""
    for i, (node, base) in enumerate(source.bases):
        copy = _write(base, folder, f"{name}_{i}")
        node.level, node.module = 1, copy.stem
    file = folder / f"{name}.py"
    file.write_text(ast.unparse(ast.fix_missing_locations(source.tree)), encoding="utf-8")
    return file
