"""What pretraining pays: the tiny BEV model from scratch against the same from pretrained encoders, by iterations.

    python benchmarks/pretraining_pays.py --out runs/pays
    python benchmarks/pretraining_pays.py --out runs/pays --weights detection=det.pth --weights segmentation=seg.pth

One synthetic training set and one held-out set; the encoder learns monocular 3D boxes on the training set (not counted
in the iterations, its time is printed); then for each seed the BEV model learns boxes from scratch, from the mono-3D
weights and from each file of --weights, which any image pipeline may have written (`drivestack hand-over`). All arms
have the same data, order of samples, schedule and number of iterations. The learning rate is constant after warm-up and
averaged weights are scored, so that every point of a curve is the result of that many iterations.

A killed run goes on where it stopped (same command). Results in --out: curves.csv, summary.json, curves.svg. The
question: at which share of the iterations does an arm reach the best quality that training from scratch reaches?
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from training_runs import trained, validations, write_text

import drivestack
from drivestack.core.files import atomic_path, write_json
from drivestack.data_tools.synthetic import synthesize
from drivestack.engine.config import load_config

BEV, MONO = "bevformerv2_tiny_synthetic", "mono3d_tiny_synthetic"
SCRATCH = "scratch"
COLOURS = ("#555555", "#0072b2", "#d55e00", "#009e73", "#cc79a7")
WARM_UP = 50
NEAR_M = 24.0  # objects within this radius are learned and scored: what 96 pixels of height show
SMALL: dict[str, Any] = {  # what makes the tiny configs smaller still
    "train_dataloader.dataset.image.train_heights_px": (96,),
    "train_dataloader.dataset.image.test_height_px": 96,
    "test_dataset.image.train_heights_px": (96,),
    "test_dataset.image.test_height_px": 96,
}

Curve = list[tuple[int, float]]


def common(args: argparse.Namespace, iterations: int) -> dict[str, Any]:
    """Settings of both kinds of training."""
    schedule = [{"type": "LinearLR", "start_factor": 0.05, "by_epoch": False, "begin": 0, "end": WARM_UP}]
    return {
        **SMALL,
        "train_dataloader.dataset.source.root": str(args.out / "train"),
        "test_dataset.source.root": str(args.out / "val"),
        "train_dataloader.dataset.cache_images": True,
        "train_cfg.max_iters": iterations,
        "param_scheduler": schedule,
        "ema": {"momentum": 0.01},
        "checkpoint": {"interval": args.every, "keep": 1},
        "log_interval": args.every,
    }


def pretrained(args: argparse.Namespace) -> Path:
    """The mono-3D weights, handed over to the BEV model's encoder."""
    out = args.out / "mono3d.safetensors"
    if not out.is_file():
        settings = {**common(args, args.pretrain_iterations), "validation": None}
        checkpoint = drivestack.train(MONO, args.out / "mono3d", resume=True, seed=args.seeds[0], overrides=settings)
        print(drivestack.hand_over(checkpoint, BEV, out), flush=True)
    return out


def run(args: argparse.Namespace, arm: str, seed: int, weights: Path | None) -> Curve:
    """One training of the BEV model, gone on with where it stopped; its scores by iteration."""
    work_dir = args.out / f"{arm}_{seed}"
    settings = {
        "bev_size": (28, 28),
        "pc_range": [-NEAR_M, -NEAR_M, -5.0, NEAR_M, NEAR_M, 3.0],
        "model.boxes.head.post_center_range": [-2 * NEAR_M, -2 * NEAR_M, -10.0, 2 * NEAR_M, 2 * NEAR_M, 10.0],
        "model.boxes.head.num_groups": 1,
        "class_range_m": dict.fromkeys(load_config(BEV).class_names, NEAR_M),
        **common(args, args.iterations),
        "validation": {"interval": args.every, "metric": args.metric},
    }
    trained(load_config(BEV, settings), work_dir, seed, fine_tune=weights)
    return curve_of(work_dir / "log.jsonl", args.metric)


def curve_of(log: Path, metric: str) -> Curve:
    """(iteration, score) of a run's validations; of one that was repeated after a kill the last."""
    scores = {i: found[metric] for i, found in validations(log).items()}
    return [(0, 0.0), *sorted((i, 0.0 if score is None else score) for i, score in scores.items())]


def reached(curve: Curve, quality: float) -> float | None:
    """The iteration at which a curve first has this quality, between two points in proportion; None: never."""
    for (i, low), (j, high) in pairwise(curve):
        if high >= quality:
            return j if high == low else i + (j - i) * max(0.0, quality - low) / (high - low)
    return None


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Mean over seeds at the iterations that all of them have."""
    shared = set.intersection(*(set(dict(curve)) for curve in curves))
    return [(i, sum(dict(curve)[i] for curve in curves) / len(curves)) for i in sorted(shared)]


def summary(curves: Mapping[str, Mapping[int, Curve]]) -> dict[str, Any]:
    """Per arm: final and best score of the mean curve, and the share of iterations it needs for scratch's best.

    ``share``: of mean curves; ``share_by_seed``: each seed against its own scratch. The denominator is the iteration
    at which scratch itself first reaches its best.
    """

    def share(curve: Curve, scratch: Curve) -> float | None:
        best = max(score for _, score in scratch)
        theirs, own = reached(scratch, best), reached(curve, best)
        return None if own is None or not theirs else round(own / theirs, 3)

    means = {arm: mean_curve(list(by_seed.values())) for arm, by_seed in curves.items() if by_seed}
    return {
        arm: {
            "seeds": sorted(curves[arm]),
            "final": round(mean[-1][1], 4),
            "best": round(max(score for _, score in mean), 4),
            "share": share(mean, means[SCRATCH]),
            "share_by_seed": {
                seed: share(curve, curves[SCRATCH][seed])
                for seed, curve in curves[arm].items()
                if seed in curves[SCRATCH]
            },
        }
        for arm, mean in means.items()
    }


def picture(curves: Mapping[str, Mapping[int, Curve]], metric: str, title: str) -> str:
    """SVG: a thin line for each seed, a thick one for their mean."""
    width, height, left, top = 640, 400, 60, 40
    points = [point for by_seed in curves.values() for curve in by_seed.values() for point in curve]
    most_x, most_y = max(x for x, _ in points), max(max(y for _, y in points), 1e-6) * 1.05

    def line(curve: Curve, colour: str, thick: float, opacity: float) -> str:
        xy = " ".join(
            f"{left + (width - left - 20) * x / most_x:.1f},{height - 50 - (height - 50 - top) * y / most_y:.1f}"
            for x, y in curve
        )
        style = f'fill="none" stroke="{colour}" stroke-width="{thick}" opacity="{opacity}"'
        return f'<polyline points="{xy}" {style}/>'

    def text(x: float, y: float, words: str, anchor: str = "middle", colour: str = "#000") -> str:
        return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="{colour}">{words}</text>'

    parts = [text(width / 2, 20, title), text(width / 2, height - 10, "iterations"), text(30, top - 8, metric)]
    for k in range(5):
        y = height - 50 - (height - 50 - top) * k / 4
        parts.append(f'<path d="M{left} {y:.0f}H{width - 20}" stroke="#ddd"/>')
        parts.append(text(left - 6, y + 4, f"{most_y * k / 4:.3f}", "end"))
        parts.append(text(left + (width - left - 20) * k / 4, height - 32, f"{most_x * k / 4:.0f}"))
    for k, (arm, by_seed) in enumerate(curves.items()):
        colour = COLOURS[k % len(COLOURS)]
        parts += [line(curve, colour, 1, 0.4) for curve in by_seed.values()]
        parts.append(line(mean_curve(list(by_seed.values())), colour, 3, 1))
        parts.append(text(left + 12, top + 16 + 18 * k, arm, "start", colour))
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        f'font-size="13"><rect width="100%" height="100%" fill="#fff"/>\n{body}\n</svg>\n'
    )


def write(out: Path, curves: Mapping[str, Mapping[int, Curve]], metric: str, title: str) -> dict[str, Any]:
    """All results so far."""
    with atomic_path(out / "curves.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("arm", "seed", "iteration", metric))
        for arm, by_seed in curves.items():
            rows.writerows((arm, seed, *point) for seed, curve in by_seed.items() for point in curve)
    write_text(out / "curves.svg", picture(curves, metric, title))
    found = summary(curves)
    write_json(out / "summary.json", found, indent=1)
    return found


def files(texts: Sequence[str]) -> dict[str, Path]:
    """``--weights NAME=FILE`` as a mapping."""
    pairs = dict(text.split("=", 1) for text in texts)
    return {name: Path(path) for name, path in pairs.items()}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/pretraining_pays"))
    parser.add_argument("--weights", metavar="NAME=FILE", action="append", default=[], help="one more arm; repeatable")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=1200, help="of the BEV model (default: %(default)s)")
    parser.add_argument("--pretrain-iterations", type=int, default=1500, help="0: no mono-3D arm")
    parser.add_argument("--every", type=int, default=150, help="iterations between scores (default: %(default)s)")
    parser.add_argument("--metric", default="mAP")
    parser.add_argument("--scenes", type=int, default=60, help="to train on, of 4 keyframes (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    started = time.monotonic()
    sizes = {"keyframes_per_scene": 4, "image_width_px": 384, "labels": (), "workers": args.threads}
    synthesize(args.out / "train", split="train", num_scenes=args.scenes, seed=100, **sizes)
    synthesize(args.out / "val", split="val", num_scenes=max(args.scenes // 5, 1), seed=7, **sizes)
    arms: dict[str, Path | None] = {SCRATCH: None}
    if args.pretrain_iterations:
        arms["mono3d"] = pretrained(args)
    for name, path in files(args.weights).items():
        arms[name] = args.out / f"{name}.safetensors"
        if not arms[name].is_file():
            print(drivestack.hand_over(path, BEV, arms[name]), flush=True)
    print(f"data and pretraining: {time.monotonic() - started:.0f} s in this run", flush=True)

    curves: dict[str, dict[int, Curve]] = {arm: {} for arm in arms}
    found: dict[str, Any] = {}
    for seed in args.seeds:  # all arms of one seed before the next seed: what is there can be compared
        for arm, weights in arms.items():
            began = time.monotonic()
            curves[arm][seed] = run(args, arm, seed, weights)
            last = curves[arm][seed][-1]
            print(f"{arm} seed {seed}: {args.metric} {last[1]:.4f} ({time.monotonic() - began:.0f} s)", flush=True)
            title = f"tiny BEV model, {args.scenes} synthetic scenes, seeds {', '.join(map(str, args.seeds))}"
            found = write(args.out, {arm: own for arm, own in curves.items() if own}, args.metric, title)
    for arm, values in found.items():
        print(f"{arm:12} {values}")
    return found


if __name__ == "__main__":
    main()
