"""Changing a variable of a config file so that all that is computed from it follows, as if its line had been edited.

A config's helper variables (max_iters, pc_range, ...) are values that other lines copied when the file was read:
setting them afterwards changes nothing. So the files of the inheritance chain are read again, from copies in a
temporary folder where the new value stands right behind the assignment that counts.
"""

from __future__ import annotations

import ast
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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


READING_CPU_S = 20.0
"""Processor time that reading a config may take; a shipped one takes 1 s, most of it to import the model's code."""


def read_source(path: Path, importers: tuple[Path, ...] = ()) -> ConfigSource:
    """The chain of a config file. Raises ConfigError where it comes back to a file that is being read."""
    path = path.absolute()
    if path in importers:
        circle = " -> ".join(file.name for file in (*importers[importers.index(path) :], path))
        raise ConfigError(f"{importers[-1]}: imports itself ({circle}); remove this import from `with read_base()`.")
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    imports = [
        node
        for statement in tree.body
        if isinstance(statement, ast.With)
        for node in statement.body
        if isinstance(node, ast.ImportFrom)
    ]
    bases = [(node, read_source(_base_file(path, node), (*importers, path))) for node in imports]
    return ConfigSource(path, tree, bases)


@contextmanager
def time_limit(path: Path) -> Iterator[None]:
    """Within, a config that computes for READING_CPU_S is named instead of hanging (main thread, not on Windows)."""
    usable = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if not usable or signal.getsignal(signal.SIGVTALRM) is not signal.SIG_DFL:
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise ConfigError(f"{path}: still not read after {READING_CPU_S:.0f} s of computing; it loops without end.")

    signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, READING_CPU_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, signal.SIG_DFL)


def load_with_variables(source: ConfigSource, changes: Mapping[str, Any]) -> Config:
    """The config of ``source`` read with new values for top-level names: dotted keys of their own, or the names.

    ``changes`` maps ``"max_iters"`` or ``"source.root"`` to values that can be written as Python literals.
    Raises ConfigError for others, and for a name that no file of the chain assigns.
    """
    source = read_source(source.path)  # a copy of its own, to change
    for key, value in changes.items():
        _insert(source, key, value)
    with tempfile.TemporaryDirectory(prefix="drivestack-config-") as folder:
        return Config.fromfile(_write(source, Path(folder), source.path.stem), lazy_import=True)


def unread_names(source: ConfigSource) -> set[str]:
    """Variables that the first file assigns or changes and that nothing in it reads, keys of the config among them.

    (What its bases computed from a variable of theirs, they computed before.)
    """
    assigned = {name for statement in source.tree.body for name in _assigned_names(statement)}
    changed = {node: node.id for statement in source.tree.body for node in _changed_names(statement)}
    variables = {name for name in changed.values() if any(file.assignments(name) for file in source.walk())}
    read = {
        node.id
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node not in changed
    }
    return {name for name in (assigned | variables) - read if not name.startswith("_")}


def _changed_names(statement: ast.stmt) -> Iterator[ast.Name]:
    """Names of which a statement changes a part: ``name.x = 1``, ``name["x"] = 1``, ``name.update(x=1)``."""
    if isinstance(statement, ast.Assign):
        nodes = list(statement.targets)
    elif isinstance(statement, (ast.AnnAssign, ast.AugAssign)):
        nodes = [statement.target]
    elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        nodes = [statement.value.func]
    else:
        return
    for node in nodes:
        inner = node
        while isinstance(inner, (ast.Attribute, ast.Subscript)):
            inner = inner.value
        if inner is not node and isinstance(inner, ast.Name):
            yield inner


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
