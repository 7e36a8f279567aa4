"""The speedrun: from random weights to the demo's quality on two CPU cores, in one command that can be restarted.

    make speedrun                                            # or python benchmarks/speedrun.py --out runs/speedrun
    make speedrun SPEEDRUN_ARGS='--recipe 2026-11-20'        # --list names the recipes

Renders the training sets, runs the stages of a recipe (speedrun_recipes.py), exports the last weights and scores them
on the demo's scenes. A killed run goes on with the same command. ``result.json`` has the time of each stage, the
scores, which thresholds are reached, the machine and the commit; docs/speedrun.md says how to claim a record.

Time is wall time of a stage's process from its start to its end, also of attempts that were killed (to within
some seconds): starting Python, reading data, writing checkpoints and storing features count. Rendering data and the
evaluation are reported beside it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import torch
from speedrun_recipes import DEFAULT, RECIPES, Recipe, Stage

from drivestack.cli.demo import run_demo
from drivestack.cli.options import seed_number
from drivestack.core.errors import ConfigError, DrivestackError
from drivestack.core.files import write_json
from drivestack.core.folders import folder_lock
from drivestack.core.signals import terminate_as_exception
from drivestack.data_tools.synthetic import synthesize
from drivestack.data_tools.synthetic.recipes import RECIPES as SETS
from drivestack.data_tools.synthetic.recipes import SetRecipe
from drivestack.engine.checkpoints import export_weights
from drivestack.engine.config import KEYS, load_config
from drivestack.engine.config_text import config_text

THRESHOLDS = {"nds": 0.50, "miou": 0.37, "ols": 0.53}
"""Scores on the demo's scenes, as metrics.json of `drivestack demo` names them."""
BEAT_S = 5.0
REPOSITORY = Path(__file__).resolve().parent.parent


class Started(Protocol):
    """What subprocess.Popen is, as far as it is needed here."""

    def poll(self) -> int | None: ...
    def terminate(self) -> None: ...
    def wait(self) -> int: ...


Launch = Callable[[Sequence[str], int], Started]
"""Start `drivestack ARGUMENTS` in so many processes."""


def start_processes(arguments: Sequence[str], processes: int) -> Started:
    """As torchrun does, each process with one thread: quicker than one with more (docs/LOG.md)."""
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, "drivestack", *arguments], env=environment)


def run(
    recipe: Recipe,
    name: str,
    out: Path,
    data: Path,
    seed: int = 0,
    demo: SetRecipe = SETS["demo"],
    launch: Launch = start_processes,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """All of a recipe, and what ``out/result.json`` holds. data: folder of the training sets; demo: scenes to score on.

    Raises ConfigError where ``out`` holds the run of another recipe or seed, or of another version of a stage, a folder
    of ``data`` another set (before anything is rendered), or a stage's process fails.
    """
    with folder_lock(out, "speedrun"):
        notes = Notes(out / "state.json", name, seed)
        notes.refuse_other_stages(recipe.stages)
        for own in sorted(recipe.sets, key=lambda own: not (data / own).is_dir()):  # what is there may be another set
            _rendered(own, data / own, notes, say)
        roots = [data / own for own in recipe.sets]
        last: Path | None = None
        for stage in recipe.stages:
            last = _trained(stage, last, roots, out, seed, notes, launch, say)
        assert last is not None  # a recipe has stages
        weights = out / f"{recipe.stages[-1].config}.safetensors"
        about = {"recipe": name, "seed": str(seed), "commit": " ".join(notes.commits), "sets": " ".join(recipe.sets)}
        export_weights(last, weights, about, torch.float16)
        notes.parts.pop("evaluation", None)  # of an earlier call
        with notes.timed("evaluation"):
            config = recipe.stages[-1].config
            scores = run_demo(out / "demo", demo, config, weights, num_pictures=0, say=say)
        result = summary(name, recipe, seed, notes, scores)
        write_json(out / "result.json", result, indent=1)
    return result


def summary(name: str, recipe: Recipe, seed: int, notes: Notes, scores: Mapping[str, Any]) -> dict[str, Any]:
    """The content of result.json."""
    parts = notes.parts
    found = {key: scores[key] for key in THRESHOLDS}
    stages = [
        {"name": s.name, "config": s.config, "iterations": s.iterations, "processes": s.processes, **parts[s.name]}
        for s in recipe.stages
    ]
    minutes = {
        "training": sum(stage["wall_s"] for stage in stages) / 60,
        "data": sum(part["wall_s"] for key, part in parts.items() if key.startswith("data ")) / 60,
        "evaluation": parts["evaluation"]["wall_s"] / 60,
    }
    minutes["sum"] = sum(minutes.values())
    reached = {key: found[key] is not None and found[key] >= least for key, least in THRESHOLDS.items()}
    return {
        "recipe": name,
        "seed": seed,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "minutes": {key: round(value, 2) for key, value in minutes.items()},
        "scores": found,
        "thresholds": THRESHOLDS,
        "reached": reached,
        "record": all(reached.values()),
        "stages": stages,
        "machine": {"processor": processor(), "cores": cores(), "torch": torch.__version__},
        "commits": notes.commits,
    }


class Notes:
    """What has been done, on disk: per part the wall time, CPU time and attempts so far, and whether it is done; of
    stages a digest of their settings and the commits that trained them, too."""

    def __init__(self, path: Path, recipe: str, seed: int) -> None:
        self.path = path
        self.content = {"recipe": recipe, "seed": seed, "parts": {}}
        if path.is_file():  # one without a seed is of a version that knew 0 alone
            self.content = {"seed": 0} | json.loads(path.read_text(encoding="utf-8"))
        for key, wanted in {"recipe": recipe, "seed": seed}.items():
            if (found := self.content[key]) != wanted:
                raise ConfigError(f"{path}: of {key} {found}; choose another --out for {wanted}")

    @property
    def parts(self) -> dict[str, dict[str, Any]]:
        return self.content["parts"]

    def refuse_other_stages(self, stages: Sequence[Stage]) -> None:
        """Raises ConfigError for a stage that has begun with other settings."""
        for stage in stages:
            settings = settings_of(stage)
            if self.parts.get(stage.name, {}).get("settings", settings) != settings:
                raise ConfigError(
                    f"{self.path}: stage {stage.name} has begun with other settings of the recipe or its config; "
                    "choose another --out"
                )

    @property
    def commits(self) -> list[str]:
        """That trained the stages."""
        return list(dict.fromkeys(name for part in self.parts.values() for name in part.get("commits", ())))

    def timed(self, part: str) -> Timed:
        """A context whose time is added to a part's, also where it is killed."""
        return Timed(self, part)

    def save(self) -> None:
        write_json(self.path, self.content, indent=1)


class Timed:
    """See Notes.timed."""

    def __init__(self, notes: Notes, part: str) -> None:
        self.notes, self.part = notes, part

    def __enter__(self) -> Timed:
        fresh = {"wall_s": 0.0, "cpu_s": 0.0, "attempts": 0, "done": False}
        self.entry = self.notes.parts.setdefault(self.part, fresh)
        self.entry["attempts"] += 1
        self._since, self._cpu_s = time.monotonic(), _cpu_s()
        self.notes.save()
        return self

    def beat(self, least_s: float = 0.0) -> None:
        """Write down the time that has gone by, if it is that long."""
        now, cpu_s = time.monotonic(), _cpu_s()
        if now - self._since < least_s:
            return
        self.entry["wall_s"] = round(self.entry["wall_s"] + now - self._since, 2)
        self.entry["cpu_s"] = round(self.entry["cpu_s"] + cpu_s - self._cpu_s, 2)
        self._since, self._cpu_s = now, cpu_s
        self.notes.save()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.entry["done"] = kind is None
        self.beat()


def _cpu_s() -> float:
    """Of this process and its children that have ended."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(own.ru_utime + own.ru_stime for own in usage)


def _rendered(name: str, root: Path, notes: Notes, say: Callable[[str], None]) -> None:
    part, chosen = f"data {name}", SETS[name]
    if not (notes.parts.get(part, {}).get("done") and root.is_dir()):
        say(f"{root}: {chosen.num_scenes} scenes x {chosen.keyframes_per_scene} keyframes")
        with notes.timed(part):
            try:
                synthesize(root, workers=cores(), **chosen.arguments())
            except ValueError as error:
                raise ConfigError(str(error)) from None


def _trained(
    stage: Stage,
    before: Path | None,
    roots: Sequence[Path],
    out: Path,
    seed: int,
    notes: Notes,
    launch: Launch,
    say: Callable[[str], None],
) -> Path:
    """The last checkpoint of a stage."""
    last = out / stage.name / f"iter_{stage.iterations}.pth"
    if notes.parts.get(stage.name, {}).get("done") and last.is_file():
        return last
    say(f"stage {stage.name}: {stage.config}, {stage.iterations} iterations in {stage.processes} processes")
    arguments = ["train", stage.config, "--work-dir", str(out / stage.name), "--resume", "--seed", str(seed)]
    if before is not None and stage.start is not None:
        arguments += [f"--{stage.start.replace('_', '-')}", str(before)]
    changes = {
        "train_dataloader.dataset.source.root": [str(root) for root in roots],
        "train_cfg.max_iters": stage.iterations,
        **stage.changes,
    }
    for key, value in changes.items():
        arguments += ["--set", f"{key}={value!r}".replace("{out}", str(out))]
    with notes.timed(stage.name) as timer:
        timer.entry["settings"] = settings_of(stage)
        timer.entry["commits"] = list(dict.fromkeys([*timer.entry.get("commits", ()), commit()]))
        started = launch(arguments, stage.processes)
        try:
            while (ended := started.poll()) is None:
                time.sleep(0.2)
                timer.beat(BEAT_S)
        finally:
            if started.poll() is None:  # it saves a checkpoint
                started.terminate()
                started.wait()
        if ended:
            raise ConfigError(f"stage {stage.name} ended with status {ended}: see above; the same command goes on")
    return last


def settings_of(stage: Stage) -> str:
    """A digest of all that decides what a stage learns but its seed, data, start weights and the code."""
    config = config_text(load_config(stage.config, dict(stage.changes)), KEYS)
    text = json.dumps([config, stage.iterations, stage.start, stage.processes])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def commit() -> str:
    """Of the repository, with a mark where files differ from it; empty outside one."""
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=12"]
    found = subprocess.run(command, capture_output=True, text=True)
    return found.stdout.strip()


def cores() -> int:
    """Those that this process may use (taskset)."""
    return len(os.sched_getaffinity(0))


def processor() -> str:
    """The processor's name as Linux has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/speedrun"), help="work folder (default: %(default)s)")
    parser.add_argument("--recipe", default=DEFAULT, choices=sorted(RECIPES), help="default: %(default)s")
    parser.add_argument("--data", type=Path, default=Path("data"), help="training sets (default: %(default)s)")
    parser.add_argument("--seed", type=seed_number, default=0, help="of all trainings (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="show the recipes and stop")
    options = parser.parse_args()
    if options.list:
        for name, recipe in RECIPES.items():
            stages = ", ".join(f"{s.name} {s.iterations}" for s in recipe.stages)
            print(f"{name}: {stages} (sets {', '.join(recipe.sets)})")
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        with terminate_as_exception():
            chosen, out, data = options.recipe, options.out.resolve(), options.data.resolve()
            result = run(RECIPES[chosen], chosen, out, data, options.seed)
    except DrivestackError as error:
        raise SystemExit(f"error: {error}") from None
    for key, least in THRESHOLDS.items():
        found = result["scores"][key]
        print(f"{key} {'not scored' if found is None else f'{found:.3f}'} (at least {least})")
    print(f"minutes: {', '.join(f'{key} {value:.1f}' for key, value in result['minutes'].items())}")
    print(f"{options.out / 'result.json'}: {'all thresholds reached' if result['record'] else 'not all are reached'}")


if __name__ == "__main__":
    main()
