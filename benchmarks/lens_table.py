"""What lenses are worth: a tiny BEV model on a rig with a 120 degree fisheye ahead and Brown-Conrady cameras around.

    python benchmarks/lens_table.py --out runs/lenses

Arms, which differ in nothing else (data, order of samples, schedule, iterations, pixels of the network's input):

    right lens     images as they are, the model projects through the lenses
    lens ignored   images as they are, cameras taken as pinholes, in training and in scoring
    undistorted    images of pinholes of the same matrices: what lies outside is lost
    pinholes       images of virtual pinholes of each camera's own field of view
    cylinders      images of virtual cylinders of each camera's own field of view

Each starts from the shipped weights, which learned on pinholes, unless --from-scratch is given; objects within 24 m
count. Printed: scores of the shipped weights as they are; scores with averaged weights after the last iteration, mean
over seeds with the smallest and the largest; and the CPU time of a frame from image files to boxes: reading the images
(with re-projection), and the model. A killed run goes on where it stopped (same command). Results also in --out:
table.md, table.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from pretraining_pays import BEV, NEAR_M, WARM_UP
from training_runs import markdown, trained, validations, write_text

import drivestack
from drivestack.core.files import write_json
from drivestack.core.weights.shipped import shipped_weights
from drivestack.data_tools.clips.collate import collate_clips
from drivestack.data_tools.readers.registry import DataSource
from drivestack.data_tools.synthetic import synthesize
from drivestack.engine.config import build_dataset, build_model, load_config
from drivestack.tasks.run import load_model

ARMS: dict[str, tuple[str, str]] = {  # reader option lens, image setting lens
    "right lens": ("used", "keep"),
    "lens ignored": ("ignored", "keep"),
    "undistorted": ("used", "undistort"),
    "pinholes": ("used", "pinhole"),
    "cylinders": ("used", "cylinder"),
}
HEIGHT_PX, ASPECT = 96, 1600 / 540  # of every network input, so that all arms compute as much
KEYS = {"mAP": "map", "NDS": "nds"}
METRICS = tuple(KEYS)
KEYFRAMES = 4

Scores = Mapping[str, Mapping[int, Mapping[str, float]]]
"""Arm -> seed -> metric -> value."""


def config_of(args: argparse.Namespace, arm: str) -> Config:
    """The tiny BEV model and its training in one arm."""
    names = load_config(BEV).class_names
    read_as, image_lens = ARMS[arm]
    settings: dict[str, Any] = {
        "model.boxes.head.num_groups": 1,
        "class_range_m": dict.fromkeys(names, NEAR_M),
        "train_dataloader.dataset.cache_images": True,
        "train_cfg.max_iters": args.iterations,
        "param_scheduler": [{"type": "LinearLR", "start_factor": 0.05, "by_epoch": False, "begin": 0, "end": WARM_UP}],
        "ema": {"momentum": 0.01},
        "checkpoint": {"interval": args.every, "keep": 1},
        "log_interval": args.every,
        "validation": {"interval": args.every, "metric": METRICS[0]},
    }
    for part, split in (("train_dataloader.dataset", "train"), ("test_dataset", "val")):
        settings |= {
            f"{part}.source.root": str(args.out / split),
            f"{part}.source.lens": read_as,
            f"{part}.image.lens": image_lens,
            f"{part}.image.aspect": ASPECT,
            f"{part}.image.train_heights_px": (HEIGHT_PX,),
            f"{part}.image.test_height_px": HEIGHT_PX,
        }
    return load_config(BEV, settings)


def run(args: argparse.Namespace, arm: str, seed: int) -> dict[str, float]:
    """One training, gone on with where it stopped; its last scores."""
    work_dir = args.out / f"{arm.replace(' ', '_')}_{seed}"
    weights = None if args.from_scratch else shipped_weights()[BEV]
    trained(config_of(args, arm), work_dir, seed, fine_tune=weights)
    return last_scores(work_dir / "log.jsonl")


def shipped_scores(args: argparse.Namespace, arm: str) -> dict[str, float]:
    """Of the shipped weights in this arm, which know pinholes alone."""
    config = config_of(args, arm)
    config.model.boxes.head.num_groups = load_config(BEV).model.boxes.head.num_groups
    model = drivestack.Perception(load_model(config, shipped_weights()[BEV]), config)
    found = drivestack.evaluate(model, DataSource.of(config.test_dataset.source), progress=False)["boxes"]
    return {metric: float(found[KEYS[metric]]) for metric in METRICS}


def last_scores(log: Path) -> dict[str, float]:
    """Of the last validation of a run; 0 where a score is not defined."""
    *_, found = validations(log).values()
    return {metric: float(found.get(metric) or 0.0) for metric in METRICS}


def frame_times(args: argparse.Namespace, arms: Sequence[str], rounds: int) -> dict[str, tuple[float, float]]:
    """Median CPU ms of a frame in each arm: reading and preparing its images, and the model; arms take turns."""
    parts = {}
    for arm in arms:
        config = config_of(args, arm)
        torch.manual_seed(0)
        parts[arm] = build_dataset(config.test_dataset), build_model(config).eval()
    found: dict[str, list[tuple[float, float]]] = {arm: [] for arm in arms}
    for k in range(rounds + 2):
        for arm, (data, model) in parts.items():
            began = time.process_time()
            batch = collate_clips([data[k % len(data)]])
            loaded = time.process_time()
            with torch.inference_mode():
                model.predict(batch, None)
            if k >= 2:  # the first ones warm up and make tables
                found[arm].append((1e3 * (loaded - began), 1e3 * (time.process_time() - loaded)))
    return {arm: tuple(map(statistics.median, zip(*times))) for arm, times in found.items()}


def table(scores: Scores, times: Mapping[str, tuple[float, float]], shipped: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown, an arm each."""
    columns = ["arm", *(f"{m} as shipped" for m in METRICS), *METRICS, "seeds", "images, CPU ms", "model, CPU ms"]
    lines = [columns]
    for arm, by_seed in scores.items():
        cells = [arm, *(f"{shipped[arm][metric]:.4f}" for metric in METRICS)]
        for metric in METRICS:
            values = [found[metric] for found in by_seed.values()]
            spread = f" ({min(values):.4f} to {max(values):.4f})" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.4f}{spread}")
        load_ms, model_ms = times[arm]
        lines.append([*cells, str(len(by_seed)), f"{load_ms:.1f}", f"{model_ms:.1f}"])
    return markdown(lines)


def main(arguments: Sequence[str] | None = None) -> Scores:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/lens_table"))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--from-scratch", action="store_true", help="from random weights, which takes hours")
    parser.add_argument("--iterations", type=int, default=300, help="of each training (default: %(default)s)")
    parser.add_argument("--every", type=int, default=150, help="iterations between scores (default: %(default)s)")
    parser.add_argument("--scenes", type=int, default=60, help=f"to train on, of {KEYFRAMES} keyframes")
    parser.add_argument("--rounds", type=int, default=20, help="frames timed in each arm (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    settings = {"keyframes_per_scene": KEYFRAMES, "image_width_px": 384, "labels": (), "workers": args.threads}
    for split, scenes, seed in (("train", args.scenes, 100), ("val", max(args.scenes // 5, 1), 7)):
        synthesize(args.out / split, split=split, num_scenes=scenes, seed=seed, rig="fisheye", **settings)
    times = frame_times(args, args.arms, args.rounds)
    shipped = {arm: shipped_scores(args, arm) for arm in args.arms}
    print(f"as shipped: {shipped}", flush=True)
    scores: dict[str, dict[int, dict[str, float]]] = {}
    for seed in args.seeds:  # all arms of one seed before the next seed: what is there can be compared
        for arm in args.arms:
            began = time.monotonic()
            scores.setdefault(arm, {})[seed] = found = run(args, arm, seed)
            shown = ", ".join(f"{metric} {value:.4f}" for metric, value in found.items())
            print(f"{arm}, seed {seed}: {shown} ({time.monotonic() - began:.0f} s)", flush=True)
            write_text(args.out / "table.md", table(scores, times, shipped))
            write_json(args.out / "table.json", {"as shipped": shipped, "scores": scores, "ms": times}, indent=1)
    print(table(scores, times, shipped), end="")
    return scores


if __name__ == "__main__":
    main()
