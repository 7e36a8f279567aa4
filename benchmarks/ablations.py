"""Experiments with seeds: each trained at equal iterations, scored on several sets, compared with its control.

    python benchmarks/ablations.py noise --out runs/noise --data train=data/train100 --sets demo=data/demo
    python benchmarks/ablations.py noise --out runs/noise --report        # the tables of what is there

TABLE is a module of benchmarks/experiments, or a .py file (docs/judge.md says how to write one). Every training can be
interrupted and goes on with the same command; what is done is skipped. --max-minutes stops in time, with exit code 3
where something is left. Results in --out:
results.jsonl (one line per experiment, seed and set: scores, iterations, CPU and wall seconds of the training),
tables.md (mean and standard deviation over seeds, difference to the control). No difference below two standard
deviations is claimed.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from experiments import Experiment, read_table
from judge import details
from mmengine.config import Config
from summaries import MAIN, flat, flat_details, is_error
from training_runs import Spread, claim, cost, markdown, named_root, named_roots, records, trained, write_text

import drivestack
from drivestack.core.errors import ConfigError, DrivestackError
from drivestack.core.folders import folder_lock
from drivestack.core.weights.shipped import weights_file
from drivestack.data_tools.readers.registry import DataSource
from drivestack.engine.config import load_config
from drivestack.tasks.base import GroundTruth
from drivestack.tasks.registry import find
from drivestack.tasks.run import load_model

UNFINISHED = 3  # exit code where the time was over
RESULTS, TABLES = "results.jsonl", "tables.md"
Row = Mapping[str, Any]


class Runs:
    """The trainings and scores of a table in one folder."""

    def __init__(
        self,
        out: Path,
        table: Sequence[Experiment],
        data: Mapping[str, Sequence[str]],
        details: bool = False,
        features: Path | None = None,
    ) -> None:
        """data: roots by name; details: measure voxels and lanes beside their scores, too (judge.py); features: folder
        of stored ones, default below ``out``."""
        self.out, self.table, self.data = out, {experiment.name: experiment for experiment in table}, data
        self.results, self.details, self.features = out / RESULTS, details, features or out / "features"

    def rows(self) -> list[Row]:
        return list(records(self.results)) if self.results.is_file() else []

    def roots(self, experiment: Experiment) -> list[str]:
        if missing := [name for name in experiment.data if name not in self.data]:
            raise ConfigError(f"{experiment.name}: no root of the data {missing[0]!r}: give --data {missing[0]}=ROOT")
        return [root for name in experiment.data for root in self.data[name]]

    def folder(self, experiment: Experiment, seed: int) -> Path:
        return self.out / f"{re.sub(r'[^A-Za-z0-9]+', '_', experiment.name)}_{seed}"

    def config(self, experiment: Experiment) -> Config:
        overrides = dict(experiment.overrides)
        if experiment.iterations:
            overrides["train_dataloader.dataset.source.root"] = self.roots(experiment)
            name = "max_iters" if "max_iters" in load_config(experiment.config) else "train_cfg.max_iters"
            overrides |= {name: experiment.iterations}  # the variable decides about the schedule, too
            overrides |= {"cache_features": str(self.features)} if experiment.stored_features else {}
        return load_config(experiment.config, overrides)

    def seeds(self, experiment: Experiment, seeds: Sequence[int]) -> Sequence[int]:
        """Without any training there is one result."""
        return seeds if self.is_trained(experiment) else seeds[:1]

    def is_trained(self, experiment: Experiment) -> bool:
        return bool(experiment.iterations) or experiment.start in self.table

    def check(self, chosen: Sequence[Experiment], seeds: Sequence[int]) -> None:
        """Raises what an experiment would, some hours later: ConfigError for data without a root, or a start that has
        to run first; CheckpointError for start weights that are not there."""
        coming = {experiment.name for experiment in chosen}
        for experiment in chosen:
            if experiment.iterations:
                self.roots(experiment)
            if experiment.start in self.table:
                for seed in seeds if experiment.start not in coming else ():
                    self.start(experiment, seed)
            elif experiment.start is not None:
                weights_file(experiment.start)

    def start(self, experiment: Experiment, seed: int) -> str | Path | None:
        """The weights that it starts from. Raises ConfigError where another experiment has to be trained first."""
        if experiment.start not in self.table:
            return experiment.start
        first = self.table[experiment.start]
        path = self.folder(first, seed) / f"iter_{first.iterations}.pth"
        if not path.is_file():
            raise ConfigError(f"{experiment.name}: starts from {first.name!r}, seed {seed}, which has to run first")
        return path

    def weights(self, experiment: Experiment, seed: int, max_minutes: float | None) -> str | Path | None:
        """Trained ones; None: the time was over. Raises ConfigError where the folder has another experiment."""
        start = self.start(experiment, seed)
        if not experiment.iterations:
            return start
        folder = self.folder(experiment, seed)
        note, digest = folder / "experiment.txt", experiment.digest(self.roots(experiment))
        if note.is_file() and note.read_text(encoding="utf-8").strip() != digest:
            raise ConfigError(f"{folder}: was trained with other settings; rename the experiment or remove the folder")
        folder.mkdir(parents=True, exist_ok=True)
        write_text(note, digest + "\n")
        how = {} if start is None else {"fine_tune" if experiment.adapt else "load_from": start}
        return trained(self.config(experiment), folder, seed, max_minutes, **how)

    def score(self, experiment: Experiment, weights: str | Path | None, root: str, keep: Path) -> dict[str, float]:
        """Of weights on a set; the submissions stay in ``keep``."""
        config = self.config(experiment)
        source = DataSource.of({**config.test_dataset.source, "root": root})
        model = drivestack.Perception(load_model(config, weights), config)
        scores = drivestack.evaluate(model, source, out=keep, progress=False)
        measurable = [name for name in scores if name != "boxes" or "benchmark" not in config]  # nuScenes' files alone
        kinds = [name for name in measurable if name == "boxes" or self.details]
        measured = details(find(keep, kinds), GroundTruth(source)) if kinds else {}
        return flat(scores) | flat_details(measured)

    def add(self, row: Row) -> None:
        lines = [*self.rows(), row]
        write_text(self.results, "".join(json.dumps(line) + "\n" for line in lines))

    def is_done(self, experiment: Experiment, seed: int, name: str) -> bool:
        own = [row for row in self.rows() if (row["experiment"], row["set"]) == (experiment.name, name)]
        found = [row for row in own if row["seed"] == seed or not self.is_trained(experiment)]
        roots = self.roots(experiment) if experiment.iterations else []
        if found and found[-1]["digest"] != experiment.digest(roots):
            raise ConfigError(f"{self.results}: {experiment.name} had other settings; rename it or remove its lines")
        return bool(found)


def run(runs: Runs, chosen: Sequence[Experiment], args: argparse.Namespace) -> bool:
    """Train and score what is missing; whether all is there."""
    deadline = math.inf if args.max_minutes is None else time.monotonic() + 60 * args.max_minutes
    sets = named_root(args.sets)
    if absent := [root for root in sets.values() if not Path(root).is_dir()]:
        raise ConfigError(f"--sets: no folder {absent[0]}")
    every = [(e, seed, name) for e in chosen for seed in runs.seeds(e, args.seeds) for name in sets]
    left_over = {e.name for e, seed, name in every if not runs.is_done(e, seed, name)}
    runs.check([e for e in chosen if e.name in left_over], args.seeds)
    for seed in args.seeds:  # all experiments of one seed before the next: what is there can be compared
        for experiment in chosen:
            if seed not in runs.seeds(experiment, args.seeds):
                continue
            missing = [name for name in sets if not runs.is_done(experiment, seed, name)]
            if not missing:
                continue
            left = (deadline - time.monotonic()) / 60
            if left <= 0:
                return False
            weights = runs.weights(experiment, seed, None if math.isinf(left) else left)
            if weights is None and experiment.iterations:
                print(f"{experiment.name}, seed {seed}: stopped in time; the same command goes on", flush=True)
                return False
            spent = cost(runs.folder(experiment, seed), experiment.iterations) if experiment.iterations else {}
            roots = runs.roots(experiment) if experiment.iterations else []
            for name in missing:
                if time.monotonic() > deadline:
                    return False
                keep = runs.folder(experiment, seed) / name
                began, scores = time.process_time(), runs.score(experiment, weights, sets[name], keep)
                runs.add(
                    {
                        "experiment": experiment.name,
                        "seed": seed,
                        "set": name,
                        "iterations": experiment.iterations,
                        **spent,
                        "scoring_cpu_s": round(time.process_time() - began, 1),
                        "digest": experiment.digest(roots),
                        "scores": {key: None if math.isnan(value) else value for key, value in scores.items()},
                    }
                )
                shutil.rmtree(keep / "occupancy", ignore_errors=True)  # packed in occupancy.zip
                shown = ", ".join(f"{key} {scores[key]:.4f}" for key in MAIN if key in scores)
                print(f"{experiment.name}, seed {seed}, {name}: {shown}", flush=True)
    return True


def report(rows: Sequence[Row], table: Sequence[Experiment], metrics: Sequence[str]) -> str:
    """Markdown, a table for each set: experiments by metrics, mean ± standard deviation over seeds and the difference
    to the control, bold from two standard deviations on."""
    parts = []
    for name in dict.fromkeys(row["set"] for row in rows):
        own = [row for row in rows if row["set"] == name]
        used = [metric for metric in metrics if any(row["scores"].get(metric) is not None for row in own)]
        lines = [["experiment", "seeds", "iterations", "CPU s", *used]]
        for experiment in table:
            found = [row for row in own if row["experiment"] == experiment.name]
            if not found:
                continue
            cpu_s = Spread.of([row.get("cpu_s", math.nan) for row in found]).mean
            cells = [experiment.name, str(len(found)), str(experiment.iterations)]
            cells.append("-" if math.isnan(cpu_s) else f"{cpu_s:.0f}")
            reference = experiment.control or table[0].name
            others = [] if reference == experiment.name else [r for r in own if r["experiment"] == reference]
            lines.append(cells + [_cell(found, others, metric) for metric in used])
        parts.append(f"On `{name}`:\n\n{markdown(lines)}")
    return "\n".join(parts)


def _cell(found: Sequence[Row], others: Sequence[Row], metric: str) -> str:
    spread, control = (_spread(rows, metric) for rows in (found, others))
    if not others:
        return str(spread)
    difference, verdict = claim(spread, control, is_error(metric))
    if math.isnan(difference):
        return str(spread)
    text = f"{difference:+.4f}{'?' if verdict == '?' else ''}"
    return f"{spread} ({f'**{text}** {verdict}' if verdict in ('better', 'worse') else text})"


def _spread(rows: Sequence[Row], metric: str) -> Spread:
    values = [row["scores"].get(metric) for row in rows]
    return Spread.of([math.nan if value is None else value for value in values])


def main(arguments: Sequence[str] | None = None) -> bool:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", metavar="TABLE", help="of benchmarks/experiments, or a .py file")
    parser.add_argument("--out", type=Path, help="default: runs/TABLE")
    parser.add_argument("--data", nargs="+", default=[], metavar="NAME=ROOT", help="training sets; a name may repeat")
    parser.add_argument("--sets", nargs="+", default=[], metavar="NAME=ROOT", help="val sets to score on")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="experiments to run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--max-minutes", type=float, help="stop in time; the same command goes on")
    parser.add_argument("--metrics", nargs="+", default=list(MAIN), help="columns of the tables")
    parser.add_argument("--details", action="store_true", help="with judge.py's measures of voxels and lanes")
    parser.add_argument("--features", type=Path, help="folder of stored features (default: OUT/features)")
    parser.add_argument("--report", action="store_true", help="only write and print the tables")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    table = read_table(args.table)
    if unknown := [name for name in args.only or () if name not in {experiment.name for experiment in table}]:
        parser.error(f"--only {unknown[0]}: the experiments are {', '.join(e.name for e in table)}")
    if not args.report and not args.sets:
        parser.error("--sets NAME=ROOT: name a set to score on")
    runs = Runs(
        args.out or Path("runs") / Path(args.table).stem, table, named_roots(args.data), args.details, args.features
    )
    runs.out.mkdir(parents=True, exist_ok=True)
    chosen = [experiment for experiment in table if not args.only or experiment.name in args.only]
    with nullcontext() if args.report else folder_lock(runs.out, "ablations"):
        complete = args.report or run(runs, chosen, args)
    rows = runs.rows()
    known = {name for row in rows for name in row["scores"]}
    if absent := [name for name in args.metrics if name not in {*known, *MAIN}]:
        print(f"no result has {', '.join(absent)}; they have {', '.join(sorted(known))}", file=sys.stderr)
    text = report(rows, table, args.metrics)
    write_text(runs.out / TABLES, text)
    print(text, end="")
    return complete


if __name__ == "__main__":
    try:
        raise SystemExit(0 if main() else UNFINISHED)
    except DrivestackError as error:
        raise SystemExit(f"error: {error}") from None
