"""Trainings that a benchmark makes: done once, resumed where they stopped, with what they cost; scores as tables."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

import drivestack
from drivestack.core.errors import ConfigError
from drivestack.core.files import atomic_path
from drivestack.engine.checkpoints import latest_checkpoint

COST = "cost.jsonl"


def trained(
    config: Config, work_dir: Path, seed: int, max_minutes: float | None = None, **start: str | Path | None
) -> Path | None:
    """The last checkpoint of a training of ``config``, which goes on where it stopped; None: the time was over.

    start: load_from or fine_tune. What each session cost is added to ``work_dir/cost.jsonl``.
    """
    last = work_dir / f"iter_{config.train_cfg.max_iters}.pth"
    if last.is_file():
        return last
    before, cpu_s, wall_s = iterations_of(latest_checkpoint(work_dir)), time.process_time(), time.monotonic()
    try:
        drivestack.train(config, work_dir, resume=True, seed=seed, max_minutes=max_minutes, **start)
    finally:
        if (done := iterations_of(latest_checkpoint(work_dir)) - before) > 0:
            spent = {"cpu_s": time.process_time() - cpu_s, "wall_s": time.monotonic() - wall_s}
            with (work_dir / COST).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"iterations": done, **spent}) + "\n")
    return last if last.is_file() else None


def iterations_of(checkpoint: Path | None) -> int:
    """N of ``iter_N.pth``."""
    return 0 if checkpoint is None else int(checkpoint.stem.removeprefix("iter_"))


def cost(work_dir: Path, iterations: int) -> dict[str, float]:
    """``cpu_s`` and ``wall_s`` of a training of this process without data workers: seconds per iteration of the
    sessions that were recorded (one that was killed is not) times the iterations. NaN without any."""
    path = work_dir / COST
    sessions = list(records(path)) if path.is_file() else []
    counted = sum(session["iterations"] for session in sessions)
    share = iterations / counted if counted else math.nan
    return {name: round(share * sum(own[name] for own in sessions), 3) for name in ("cpu_s", "wall_s")}


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines; a last line that a kill cut short is left out."""
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return


def validations(log: Path) -> dict[int, dict[str, float | None]]:
    """Scores by iteration of a run's ``log.jsonl``; of a validation that was repeated after a kill the last."""
    return {r["iter"]: r["validation"] for r in records(log) if "validation" in r}


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table; the first row names its columns."""
    lines = [rows[0], ["-" * max(len(column), 3) for column in rows[0]], *rows[1:]]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def write_text(path: Path, text: str) -> None:
    """Atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def named_roots(texts: Sequence[str]) -> dict[str, list[str]]:
    """``NAME=ROOT``, a name may have several roots. Raises ConfigError for another text."""
    found: dict[str, list[str]] = {}
    for text in texts:
        name, _, root = text.partition("=")
        if not root:
            raise ConfigError(f"{text}: write NAME=ROOT")
        found.setdefault(name, []).append(root)
    return found


def named_root(texts: Sequence[str]) -> dict[str, str]:
    """``NAME=ROOT``, one root for each name. Raises ConfigError for another text, and for a name that repeats."""
    found = named_roots(texts)
    if twice := [name for name, roots in found.items() if len(roots) > 1]:
        raise ConfigError(
            f"{twice[0]}={found[twice[0]][1]}: {twice[0]} is {found[twice[0]][0]} already; give it another name"
        )
    return {name: root for name, (root,) in found.items()}


@dataclass(frozen=True)
class Spread:
    """Of one score over seeds."""

    mean: float
    deviation: float
    """Sample standard deviation, NaN of one seed."""
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if not values or any(map(math.isnan, values)):
            return cls(math.nan, math.nan, len(values))
        deviation = statistics.stdev(values) if len(values) > 1 else math.nan
        return cls(statistics.fmean(values), deviation, len(values))

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "-"
        return f"{self.mean:.4f}" + ("" if math.isnan(self.deviation) else f" ± {self.deviation:.4f}")


def claim(own: Spread, control: Spread, lower_is_better: bool = False) -> tuple[float, str]:
    """Difference to the control, and what may be said of it: "better" or "worse" from two standard deviations on (the
    larger of both), "" below, "?" where neither has two seeds."""
    difference = own.mean - control.mean
    known = [value for value in (own.deviation, control.deviation) if not math.isnan(value)]
    if math.isnan(difference) or not known:
        return difference, "?"
    if abs(difference) < 2 * max(known) or difference == 0:
        return difference, ""
    return difference, "better" if (difference < 0) == lower_is_better else "worse"
