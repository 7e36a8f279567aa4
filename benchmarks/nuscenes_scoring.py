"""Our nuScenes scores against nuscenes-devkit's, on one made-up split: equal numbers, and the time of each.

    python benchmarks/nuscenes_scoring.py                 # 200 samples of 300 boxes, a minute
    python benchmarks/nuscenes_scoring.py --samples 6019  # the size of nuScenes' val split; some GB, many minutes

Writes tables, and a submission that finds most objects more or less well, into a temporary folder. Each side starts in
a process of its own with nothing but those files; times are CPU seconds of one thread, beside the wall.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from drivestack.bev.evaluation.nuscenes_metrics import DETECTION_CVPR_2019, evaluate_submission
from drivestack.bev.evaluation.nuscenes_official import evaluate_official, require_devkit
from drivestack.bev.evaluation.nuscenes_rules import CLASS_ATTRIBUTES
from drivestack.bev.evaluation.nuscenes_submission import CAMERA_META
from drivestack.core.files import write_json
from drivestack.data_tools.readers.nuscenes.reader import DETECTION_CLASS, read_nuscenes
from drivestack.data_tools.readers.nuscenes.splits import official_splits
from drivestack.data_tools.readers.nuscenes.tables import split_tokens

VERSION, SPLIT = "v1.0-trainval", "val"
CATEGORY = {name: category for category, name in DETECTION_CLASS.items()}
CLASSES = list(CLASS_ATTRIBUTES)
SHARES = [0.42, 0.08, 0.02, 0.03, 0.02, 0.22, 0.02, 0.02, 0.07, 0.10]  # about as on nuScenes, in the order of CLASSES
LABELS_PER_SAMPLE = 34
SAMPLES_PER_SCENE = 40


def write_set(root: Path, num_samples: int, num_boxes: int, seed: int) -> Path:
    """Tables of a split below ``root``, and a submission; the path of the latter."""
    rng = np.random.default_rng(seed)
    scenes = official_splits()[SPLIT]
    length = max(SAMPLES_PER_SCENE, -(-num_samples // len(scenes)))
    mount = {"translation": [0.9, 0.0, 1.8], "rotation": [1.0, 0.0, 0.0, 0.0]}
    camera = {"camera_intrinsic": [[800.0, 0.0, 800.0], [0.0, 800.0, 450.0], [0.0, 0.0, 1.0]]}
    attributes = sorted({name for names in CLASS_ATTRIBUTES.values() for name in names})
    tables: dict[str, list[dict]] = {
        "category": [{"token": name, "name": name} for name in CATEGORY.values()],
        "attribute": [{"token": name, "name": name} for name in attributes],
        "visibility": [{"token": "4", "level": "v80-100"}],
        "log": [{"token": "log"}],
        "map": [{"token": "map", "log_tokens": ["log"], "filename": "map.png"}],
        "sensor": [
            {"token": "lidar", "channel": "LIDAR_TOP", "modality": "lidar"},
            {"token": "camera", "channel": "CAM_FRONT", "modality": "camera"},
        ],
        "calibrated_sensor": [
            {"token": "lidar", "sensor_token": "lidar", "camera_intrinsic": [], **mount},
            {"token": "camera", "sensor_token": "camera", **mount, **camera},
        ],
        "instance": [{"token": name, "category_token": category} for name, category in CATEGORY.items()],
    }
    tables |= {name: [] for name in ("scene", "sample", "sample_data", "ego_pose", "sample_annotation")}
    results = {}
    for i in range(num_samples):
        token, scene, last = f"sample{i}", i // length, i + 1 == num_samples or (i + 1) % length == 0
        time_us = 1_500_000_000_000_000 + 500_000 * i
        if i % length == 0:
            row = {"token": f"scene{scene}", "name": scenes[scene], "log_token": "log", "first_sample_token": token}
            tables["scene"].append(row)
        links = {"prev": "" if i % length == 0 else f"sample{i - 1}", "next": "" if last else f"sample{i + 1}"}
        tables["sample"].append({"token": token, "scene_token": f"scene{scene}", "timestamp": time_us, **links})
        ego = np.array([1000.0 + 5 * i, 600.0, 0.0])
        tables["ego_pose"].append({"token": token, "translation": ego.tolist(), "rotation": [1.0, 0.0, 0.0, 0.0]})
        for sensor, folder in (("lidar", "LIDAR_TOP"), ("camera", "CAM_FRONT")):
            row = {"token": f"{token}{sensor}", "sample_token": token, "ego_pose_token": token, "timestamp": time_us}
            row |= {"calibrated_sensor_token": sensor, "is_key_frame": True, "width": 1600, "height": 900}
            tables["sample_data"].append(row | {"filename": f"samples/{folder}/{i}", "prev": "", "next": ""})
        labels, boxes = _sample(rng, token, ego, num_boxes)
        tables["sample_annotation"] += labels
        results[token] = boxes
    for name, rows in tables.items():
        write_json(root / VERSION / f"{name}.json", rows)
    from PIL import Image

    Image.new("L", (4, 4)).save(root / "map.png")  # the devkit opens it
    write_json(root / "submission.json", {"meta": dict(CAMERA_META), "results": results})
    return root / "submission.json"


def _sample(rng: np.random.Generator, token: str, ego: np.ndarray, num_boxes: int) -> tuple[list[dict], list[dict]]:
    """Annotation rows and predicted boxes of one sample."""
    n = LABELS_PER_SAMPLE
    kinds = rng.choice(len(CLASSES), n, p=SHARES)
    centre = ego + rng.normal(0, 20, (n, 3)) * [1, 1, 0]
    size, half_yaw = rng.uniform(0.5, 5, (n, 3)), rng.uniform(0, np.pi, n)
    names = [CLASSES[kind] for kind in kinds]
    held = [CLASS_ATTRIBUTES[name] for name in names]
    labels = [
        {
            "token": f"{token}/{k}",
            "sample_token": token,
            "instance_token": names[k],
            "attribute_tokens": [held[k][0]] if held[k] else [],
            "translation": centre[k].tolist(),
            "size": size[k].tolist(),
            "rotation": [np.cos(half_yaw[k]), 0.0, 0.0, np.sin(half_yaw[k])],
            "num_lidar_pts": int(rng.integers(0, 20)),
            "num_radar_pts": 0,
            "prev": "",
            "next": "",
        }
        for k in range(n)
    ]
    of = rng.integers(0, n, num_boxes)
    found = rng.random(num_boxes) < 0.4
    place = np.where(
        found[:, None], centre[of] + rng.normal(0, 0.7, (num_boxes, 3)), ego + rng.normal(0, 25, (num_boxes, 3))
    )
    wlh = size[of] * rng.uniform(0.8, 1.25, (num_boxes, 3))
    turn = half_yaw[of] + rng.normal(0, 0.1, num_boxes)
    score = np.round(np.where(found, rng.beta(3, 2, num_boxes), rng.beta(1, 4, num_boxes)), 4)
    boxes = [
        {
            "sample_token": token,
            "translation": place[k].tolist(),
            "size": wlh[k].tolist(),
            "rotation": [np.cos(turn[k]), 0.0, 0.0, np.sin(turn[k])],
            "velocity": rng.normal(0, 2, 2).tolist(),
            "detection_name": names[of[k]],
            "detection_score": float(score[k]),
            "attribute_name": str(rng.choice(held[of[k]])) if held[of[k]] else "",
        }
        for k in range(num_boxes)
    ]
    return labels, boxes


def run_side(side: str, root: Path) -> dict:
    """Scores of one side from the files, with its seconds and peak memory."""
    begin = time.perf_counter(), time.process_time()
    if side == "ours":
        found = evaluate_submission(root / "submission.json", read_nuscenes(root, VERSION, SPLIT), DETECTION_CVPR_2019)
        scores = {key: value for key, value in found.items() if not key.endswith("_occurring")}  # what the devkit has
    else:
        require_devkit()
        begin = time.perf_counter(), time.process_time()  # matplotlib's import is not the devkit's fault
        tokens = split_tokens(root, VERSION, SPLIT)
        scores = evaluate_official(root / "submission.json", root, VERSION, SPLIT, tokens)
    wall_s, cpu_s = time.perf_counter() - begin[0], time.process_time() - begin[1]
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"scores": scores, "wall_s": wall_s, "cpu_s": cpu_s, "peak_gb": peak_gb}


def largest_difference(a: object, b: object) -> float:
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return max(largest_difference(a[key], b[key]) for key in a)
    if a is None and b is None:
        return 0.0
    return abs(a - b) if isinstance(a, (int, float)) and isinstance(b, (int, float)) else float("inf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--boxes", type=int, default=300, help="per sample")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", choices=("ours", "devkit"), help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(run_side(options.side, options.root)))
        return
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        size = write_set(Path(folder), options.samples, options.boxes, options.seed).stat().st_size
        print(f"{options.samples} samples of {options.boxes} boxes, submission of {size / 1e6:.0f} MB")
        for side in ("ours", "devkit"):
            command = [sys.executable, __file__, "--side", side, "--root", folder]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                raise SystemExit(f"error: {side}: {done.stderr.strip().splitlines()[-1]}")
            found[side] = json.loads(done.stdout.splitlines()[-1])
            own = found[side]
            print(
                f"{side:<8} NDS {own['scores']['nds']:.6f}   tables and scores {own['cpu_s']:.1f} CPU s"
                f" ({own['wall_s']:.1f} s wall), peak {own['peak_gb']:.2f} GB",
                flush=True,
            )
    print(f"ratio    {found['devkit']['cpu_s'] / found['ours']['cpu_s']:.1f}x less CPU time")
    print(f"largest difference of any number: {largest_difference(*(own['scores'] for own in found.values())):.1e}")


if __name__ == "__main__":
    main()
