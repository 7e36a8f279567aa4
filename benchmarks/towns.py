"""Streets of families that training had, and of families that it never had: each head's scores on both.

    python benchmarks/towns.py --out runs/towns --sets seen=data/demo unseen=data/towns
    python benchmarks/towns.py --out runs/towns --recipes seen=val:7 unseen=val:7:towns --scenes 10 --keyframes 8

--weights names shipped weights or a file, --config their config; several NAME=FILE may follow --weights, a row each. A
recipe is SPLIT:SEED or SPLIT:SEED:STREETS, STREETS as `drivestack synthesize --streets` takes it; its scenes are
written into --out. The first set is the one of seen streets; differences are to it. Results also in --out: towns.md,
towns.json. What was scored is kept: the same command goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ablations import Runs
from experiments import TINY, Experiment
from summaries import MAIN, is_error
from training_runs import markdown, named_root, write_text

from drivestack.core.errors import ConfigError, DrivestackError
from drivestack.core.weights.shipped import weights_file
from drivestack.data_tools.synthetic import synthesize

Scores = Mapping[str, Mapping[str, Mapping[str, float | None]]]
"""Weights -> set -> metric -> value."""


def made(recipe: str, root: Path, sizes: Mapping[str, int]) -> Path:
    """The scenes of a recipe, written where they are not there yet. Raises ConfigError where they cannot be."""
    split, seed, *streets = recipe.split(":")
    kind: dict[str, Any] = {"streets": streets[0]} if streets else {}
    try:
        synthesize(root, split=split, seed=int(seed), **sizes, **kind)
    except ValueError as error:  # another set lies there, or the recipe is none
        raise ConfigError(f"{recipe}: {error}") from None
    return root


def table(scores: Scores, metrics: Sequence[str]) -> str:
    """Markdown: a row for each metric, a column for each set, and the difference to the first set."""
    parts = []
    for weights, by_set in scores.items():
        first, *others = by_set
        lines = [[weights, first, *(f"{name} (difference)" for name in others)]]
        for metric in metrics:
            values = {name: own.get(metric) for name, own in by_set.items()}
            if all(value is None for value in values.values()):
                continue
            lines.append([metric, _text(values[first]), *(_cell(values[first], values[name]) for name in others)])
        parts.append(markdown(lines))
    return "\n".join(parts) + "\nLess is better of: " + ", ".join(filter(is_error, metrics)) + ".\n"


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _cell(first: float | None, value: float | None) -> str:
    difference = "" if first is None or value is None else f" ({value - first:+.4f})"
    return _text(value) + difference


def main(arguments: Sequence[str] | None = None) -> Scores:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/towns"))
    parser.add_argument("--config", default=TINY)
    parser.add_argument("--weights", nargs="+", default=[TINY], metavar="[NAME=]FILE")
    parser.add_argument(
        "--sets", nargs="+", default=[], metavar="NAME=ROOT", help="val sets, those of seen streets first"
    )
    parser.add_argument("--recipes", nargs="+", default=[], metavar="NAME=RECIPE", help="sets to synthesize")
    parser.add_argument("--scenes", type=int, default=20)
    parser.add_argument("--keyframes", type=int, default=20)
    parser.add_argument("--metrics", nargs="+", default=list(MAIN))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    sizes = {"num_scenes": args.scenes, "keyframes_per_scene": args.keyframes, "workers": args.threads}
    weights = named_root([text if "=" in text else f"{Path(text).stem}={text}" for text in args.weights])
    written = {name: weights_file(file).stat() for name, file in weights.items()}
    named, recipes = named_root([*args.sets, *args.recipes]), named_root(args.recipes)
    if len(named) < 2:
        parser.error("name two sets or more, with --sets or --recipes")
    folders = {name: args.out / f"{name}_{recipe.replace(':', '_')}" for name, recipe in recipes.items()}
    roots = {name: made(text, folders[name], sizes) if name in recipes else Path(text) for name, text in named.items()}
    results = args.out / "towns.json"
    found: dict[str, Any] = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else {}
    keys: dict[tuple[str, str], str] = {}
    for name, file in weights.items():
        runs, experiment = Runs(args.out, [], {}), Experiment(name, 0, config=args.config, start=file)
        for own, root in roots.items():
            version = f"{written[name].st_size} bytes, {written[name].st_mtime_ns}"  # a file that is trained again
            key = keys[name, own] = f"{name}, {file} ({version}), {args.config}, {own}, {root}"
            if key not in found:
                scores = runs.score(experiment, file, str(root), args.out / "submissions" / name / own)
                found[key] = {metric: None if value != value else value for metric, value in scores.items()}
                write_text(results, json.dumps(found, indent=1) + "\n")
    chosen = {name: {own: found[keys[name, own]] for own in roots} for name in weights}
    text = table(chosen, args.metrics)
    write_text(args.out / "towns.md", text)
    print(text, end="")
    return chosen


if __name__ == "__main__":
    try:
        main()
    except DrivestackError as error:
        raise SystemExit(f"error: {error}") from None
