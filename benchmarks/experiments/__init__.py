"""Tables of experiments for ablations.py: a module each, with a list ``EXPERIMENTS``. How to add one: docs/judge.md."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drivestack.core.errors import ConfigError

TINY = "perception_tiny_synthetic"
UP_TO_BEV = ("img_backbone.", "img_neck.", "bev_map.")
"""Parts that make the BEV map: with these frozen the heads alone learn."""


@dataclass(frozen=True)
class Experiment:
    """One row of a table; it is trained once per seed."""

    name: str
    iterations: int
    """0: the start weights are scored as they are."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Of the config, by dotted key, as --set takes them."""
    config: str = TINY
    start: str | None = TINY
    """Weights to start from: a shipped model, a file, or ``NAME`` of another experiment of the table, whose last
    checkpoint of the same seed is taken. None: random."""
    adapt: bool = False
    """Take what fits of the start weights (--fine-tune) instead of demanding that all fit (--load-from)."""
    data: Sequence[str] = ("train",)
    """Names of training sets, which --data gives roots."""
    stored_features: bool = False
    """Compute the features of frozen parts once and read them from --features afterwards (docs/speedrun.md)."""
    control: str = ""
    """The experiment that this one is compared with; default the table's first."""

    def digest(self, roots: Sequence[str]) -> str:
        """Of all that decides the result but the seed and the code."""
        settings = sorted((key, repr(value)) for key, value in self.overrides.items())
        text = repr((self.iterations, settings, self.config, self.start, self.adapt, list(roots)))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_table(name: str) -> list[Experiment]:
    """The experiments of a module of this folder, or of a ``.py`` file. Raises ConfigError for one that is none."""
    folder = Path(__file__).parent
    path = Path(name) if name.endswith(".py") else folder / f"{name}.py"
    if not path.is_file():
        known = sorted(own.stem for own in folder.glob("*.py") if own.stem != "__init__")
        raise ConfigError(f"{name}: no table of experiments; there are {', '.join(known)}, or name a .py file")
    spec = importlib.util.spec_from_file_location(f"experiments_of_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = list(getattr(module, "EXPERIMENTS", []))
    names = [experiment.name for experiment in found]
    if not found or len(set(names)) < len(names):
        raise ConfigError(f"{path}: EXPERIMENTS must be a list of experiments of different names, got {names}")
    if unknown := [e.control for e in found if e.control and e.control not in names]:
        raise ConfigError(f"{path}: control {unknown[0]!r} is none of {', '.join(names)}")
    return found
