"""A long drive with streaming memory: what a frame costs with and without it, and whether time and memory stay flat.

    python benchmarks/memory_drive.py --data /path/of/a/val/set --frames 10000
    python benchmarks/memory_drive.py --data ... --rounds 60 --frames 0          # the ratio alone
    python benchmarks/memory_drive.py --data ... --frames 10000 --images-once    # image encoder and map run once
    python benchmarks/memory_drive.py --data ... --frames 10000 --images-once --tasks    # and no heads

The car drives on a circle of 60 m at 5 m/s, a frame each 0.5 s; images are those of the set's first frames, over and
over. First part (--rounds): the prepared model of the config and the same without its memory answer in turn, in one
process; printed are medians and the median of the rounds' ratios. Second part (--frames): the model with memory alone;
printed are the median seconds of a frame and the resident memory over the first and the last tenth. Weights are
the shipped ones where the config has none (the memory then is untrained, which takes the same time).
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import drivestack
from drivestack.backbone import prepare_inference
from drivestack.cli.main import keep_freed_memory
from drivestack.core.batch import Batch
from drivestack.core.checkpoint import load_checkpoint
from drivestack.core.weights.shipped import weights_file
from drivestack.data_tools.clips.collate import collate_clips
from drivestack.engine.config import build_model, load_config
from drivestack.geometry import pose, rotation_z
from drivestack.tasks.run import input_dataset

RADIUS_M, STEP_M = 60.0, 2.5


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def drive(batches: list[Batch]) -> Iterator[Batch]:
    """An endless drive on a circle with the images of ``batches``, each a single frame."""
    step = 0
    while True:
        angle = step * STEP_M / RADIUS_M
        here = pose(rotation_z(angle), [RADIUS_M * np.sin(angle), RADIUS_M * (1 - np.cos(angle)), 0.0])
        batch = batches[step % len(batches)]
        frame = replace(batch.frames[0], token=f"{step}", scene_token="drive", timestamp_us=500_000 * step)
        yield replace(batch, frames=[frame], global_from_ego=torch.from_numpy(here)[None, None], streams=["drive"])
        step += 1


def images_once(model: Any) -> None:
    """Encode each batch's images once, and take the maps from there afterwards."""
    encode, known = model.encode_frame_map, {}

    def look_up(batch: Batch) -> Any:
        if batch.images.data_ptr() not in known:
            known[batch.images.data_ptr()] = encode(batch)
        return known[batch.images.data_ptr()]

    model.encode_frame_map = look_up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="perception_tiny_memory")
    parser.add_argument("--weights", default="perception_tiny_synthetic")
    parser.add_argument("--data", required=True, help="a nuScenes-like set: its first scene's images are used")
    parser.add_argument("--version", default="v1.0-trainval")
    parser.add_argument("--split", default="val")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--images-once", action="store_true")
    parser.add_argument("--tasks", nargs="*", help="answer only these in the long drive; none: the memory alone")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    config = load_config(options.config)
    model = build_model(config)
    load_checkpoint(model, weights_file(options.weights), may_lack=(*model.teachers, "memory."))
    frames = drivestack.read(options.data, version=options.version, split=options.split)
    dataset = input_dataset(
        config, model, [frame for frame in frames if frame.scene_token == frames[0].scene_token][:4]
    )
    batches = [collate_clips([dataset[i]]) for i in range(len(dataset))]

    plain = copy.deepcopy(model)
    plain.memory = None
    with_memory, without = prepare_inference(model), prepare_inference(plain)
    road, memory = drive(batches), None
    times: dict[str, list[float]] = {"with memory": [], "without": []}
    with torch.inference_mode():
        for turn in range(options.rounds + 3):
            batch, took = next(road), {}
            for name in list(times)[:: 1 if turn % 2 else -1]:
                start = time.perf_counter()
                if name == "without":
                    without.predict(batch)
                else:
                    _, memory = with_memory.predict(batch, memory)
                took[name] = time.perf_counter() - start
            if turn >= 3:
                for name, value in took.items():
                    times[name].append(value)
        if options.rounds:
            ratio = statistics.median(a / b for a, b in zip(times["with memory"], times["without"]))
            for name, values in times.items():
                print(f"{name:12} {1e3 * statistics.median(values):8.1f} ms a frame")
            print(f"with memory / without: {ratio:.3f} (median of {options.rounds} rounds)")
        if options.images_once:
            images_once(with_memory)
        took_s, held_mb, size = [], [], 0.0
        for _ in range(options.frames):
            batch, start = next(road), time.perf_counter()
            _, memory = with_memory.predict(batch, memory, options.tasks)
            took_s.append(time.perf_counter() - start)
            held_mb.append(resident_mb())
            size = max(size, float(memory["drive"].bev.abs().max()))
    if options.frames:
        tenth = max(options.frames // 10, 1)
        first, last = slice(0, tenth), slice(-tenth, None)
        for name, values, unit in (("time", [1e3 * s for s in took_s], "ms"), ("resident memory", held_mb, "MiB")):
            a, b = statistics.median(values[first]), statistics.median(values[last])
            print(f"{name}: first {tenth} frames {a:.1f} {unit}, last {tenth} {b:.1f} {unit}, ratio {b / a:.4f}")
        print(f"largest number in the state: {size:.1f}; states held: {len(memory)}")


if __name__ == "__main__":
    main()
