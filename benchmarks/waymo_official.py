"""Our Waymo scores beside those of Waymo's own operator, on files that we write: ``make waymo-official``.

The official package needs TensorFlow 2.13 and numpy 1.23, so it lives in an environment of its own, ``.venv-waymo``
(Python 3.8 to 3.11), which the Makefile's target makes. It gets a submission, the .tar.gz of shards that
`drivestack predict` writes, and the labels that count as a message Objects, parses both with its own classes and scores
them (waymo_judge.py). Every breakdown of LET-3D and standard AP, APH and APL is compared.

Without options the boxes are made up: objects all around, found with errors in depth, to the side and in heading, some
missed, some invented, labels of both levels. With --submission and --reader, a real file and its labels.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from drivestack.bev.evaluation.waymo_metrics import WaymoGroundTruths, WaymoPredictions, evaluate_waymo
from drivestack.bev.evaluation.waymo_rules import read_submission
from drivestack.bev.evaluation.waymo_scores import ground_truths
from drivestack.bev.evaluation.waymo_submission import as_submitted, write_submission
from drivestack.bev.evaluation.waymo_wire import WaymoObjects, encode_objects
from drivestack.core.errors import DrivestackError
from drivestack.data_tools.readers.registry import DataSource

TOLERANCE = 2e-6  # their operator computes in single precision
JUDGE = Path(__file__).with_name("waymo_judge.py")


def made_up(num_frames: int, seed: int) -> tuple[WaymoObjects, WaymoObjects]:
    """(predictions, ground truths)"""
    rng = np.random.default_rng(seed)
    keys = [(f"{10**18 + i // 20}_000_000_020_000", 1_550_083_467_000_000 + 100_000 * i) for i in range(num_frames)]
    count = 40 * num_frames
    types = rng.choice([1, 2, 3, 4], count, p=[0.5, 0.25, 0.1, 0.15])
    size = np.array([[4.7, 2.1, 1.7], [0.9, 0.85, 1.75], [0.1, 0.6, 0.6], [1.8, 0.8, 1.75]])[types - 1]
    away, angle = rng.uniform(4, 80, count), rng.uniform(-2.0, 2.0, count)
    centre = np.stack([away * np.cos(angle), away * np.sin(angle), rng.normal(0.9, 0.2, count)], 1)
    boxes = np.concatenate([centre, size, rng.uniform(-np.pi, np.pi, (count, 1))], 1)
    frame, level = rng.integers(0, num_frames, count), rng.integers(1, 3, count)
    none = np.full(count, np.nan, np.float32)
    truths = WaymoObjects(boxes, types, none, frame, keys, difficulties=level)
    kept = rng.random(count) < 0.8
    found = boxes[kept].copy()
    found[:, :3] *= 1 + rng.normal(0, 0.03, (len(found), 1))
    found[:, :2] += rng.normal(0, 0.15, (len(found), 2))
    found[:, 6] += rng.normal(0, 0.4, len(found)) + np.pi * (rng.random(len(found)) < 0.1)
    invented = found + rng.normal(0, 6, found.shape) * ([1, 1] + [0] * 5)
    scores = np.concatenate([rng.uniform(0.2, 1, len(found)), rng.uniform(0, 0.6, len(found))])
    every = WaymoObjects(
        np.concatenate([found, invented]),
        np.tile(types[kept], 2),
        scores.astype(np.float32),
        np.tile(frame[kept], 2),
        keys,
    )
    return as_submitted(every), truths


def ours(found: WaymoObjects, truths: WaymoObjects) -> dict[str, dict[str, list[float]]]:
    """{"let", "standard"} -> breakdown -> [AP, APH, APL]"""
    frames = np.array(found.tokens)[found.frame]
    pd = WaymoPredictions(found.boxes, found.types, found.scores, frames, found.in_no_label_zone)
    gt = WaymoGroundTruths(truths.boxes, truths.types, truths.difficulties, np.array(truths.tokens)[truths.frame])
    return {
        name: {key: [own.ap, own.aph, own.apl] for key, own in evaluate_waymo(pd, gt, tolerant).items()}
        for name, tolerant in (("let", True), ("standard", False))
    }


def judged(python: str, submission: Path, truths: WaymoObjects, folder: Path) -> dict[str, Any]:
    """The same by the official package, which ``python`` has."""
    labels, out = folder / "gt.bin", folder / "official.json"
    labels.write_bytes(b"".join(encode_objects(truths)))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    subprocess.run([python, str(JUDGE), str(submission), str(labels), str(out)], check=True, env=environment)
    return json.loads(out.read_text())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", default=".venv-waymo/bin/python", help="of the official package's environment")
    parser.add_argument("--frames", type=int, default=60, help="of made-up boxes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--submission", help="a .tar.gz instead of made-up boxes")
    parser.add_argument("--reader", default="waymo")
    parser.add_argument("--dataroot")
    parser.add_argument("--split", default="val")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            if options.submission:
                frames = DataSource(options.reader, options.dataroot or "", {"split": options.split}).read()
                submission = Path(options.submission)
                truths = ground_truths(frames)
                found = read_submission(submission, frames)
            else:
                made, truths = made_up(options.frames, options.seed)
                submission = folder / "made.tar.gz"
                write_submission(submission, made, class_names=("vehicle", "pedestrian", "sign", "cyclist"))
                found = read_submission(submission)
        except DrivestackError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        own, official = ours(found, truths), judged(options.python, submission, truths, folder)
    worst = 0.0
    for name in own:
        if own[name].keys() != official[name].keys():
            apart = sorted(own[name].keys() ^ official[name].keys())
            print(f"error: {name}: other breakdowns: {apart}", file=sys.stderr)
            return 1
        # without LET their APL means nothing: compared are AP and APH
        parts = 3 if name == "let" else 2
        gaps = {key: np.abs(np.subtract(own[name][key], official[name][key]))[:parts].max() for key in own[name]}
        key = max(gaps, key=lambda breakdown: gaps[breakdown])
        worst = max(worst, gaps[key])
        print(f"{name:<9} {len(gaps)} breakdowns, largest difference {gaps[key]:.1e} ({key})")
        for kind in ("VEHICLE", "PEDESTRIAN", "SIGN", "CYCLIST"):
            key = f"OBJECT_TYPE_TYPE_{kind}_LEVEL_2"
            values = zip(("AP", "APH", "APL")[:parts], own[name][key], official[name][key])
            shown = "  ".join(f"{part} {a:.6f} / {b:.6f}" for part, a, b in values)
            print(f"  {kind.lower():<10} ours / official  {shown}")
    verdict = "equal" if worst <= TOLERANCE else f"DIFFERENT by {worst:.1e}"
    print(f"{len(found)} boxes, {len(truths)} labels: {verdict}")
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    raise SystemExit(main())
