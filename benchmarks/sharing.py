"""What sharing one encoder pays: a model for three tasks against three models for one each, at the same sizes.

    python benchmarks/sharing.py
    python benchmarks/sharing.py --config perception_tiny_synthetic --rounds 20 --threads 2

"predict" is what `drivestack predict` runs: prepared for inference, freed memory kept. "step" is loss and gradients of
one clip in the precision of the config. Contenders take turns of three calls in one run, on the same clip of a
synthetic street; medians, and the shared model over the sum of the three: trust the ratios, not the milliseconds.
Memory is what a process of its own adds at its peak to what it held before the model was built. Parameters are those
that a task uses. The last lines are what adapters, and measuring the tasks' gradients (docs/sharing.md), add to the
shared model's passes.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import os
import re
import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from mmengine.config import Config
from models import in_turns, timed
from torch import nn

from drivestack.backbone import prepare_inference
from drivestack.bev.protocol import TASKS
from drivestack.cli.main import keep_freed_memory
from drivestack.core.batch import Batch
from drivestack.data_tools.clips.collate import collate_clips
from drivestack.data_tools.readers.nuscenes.reader import read_nuscenes
from drivestack.data_tools.synthetic import synthesize
from drivestack.engine.config import build_dataset, build_model, load_config
from drivestack.engine.precision import precision_context

SHARED = "+".join(TASKS)
PASSES = ("predict", "step")
VERSION, SPLIT = "v1.0-trainval", "val"


def model_of(config: Config, tasks: tuple[str, ...], **more: object) -> nn.Module:
    """The config's model for some of its tasks, without the parts that none of them uses; more: other settings."""
    settings = copy.deepcopy(config.model)
    settings.update(more)
    settings.tasks = tasks
    for task, head in (("boxes", "boxes"), ("occupancy", "occupancy_head"), ("lanes", "lane_head")):
        if task not in tasks:
            settings[head] = None
    torch.manual_seed(0)
    return build_model(Config({"model": settings}))


def clip_of(config: Config, root: Path) -> Batch:
    """The first keyframe of a set as the test pipeline gives it, with all labels."""
    frames = read_nuscenes(root, VERSION, SPLIT)
    settings = {**config.test_dataset, "frames": frames, "occupancy": True, "lanes": True}
    return collate_clips([build_dataset(settings)[0]])


def runs_of(
    config: Config, tasks: tuple[str, ...], batch: Batch, measures: bool = False, **more: object
) -> dict[str, Callable[[], object]]:
    """The two passes to time; measures: a step also measures the tasks' gradients."""
    model = model_of(config, tasks, **more)
    model.measures_gradients = measures
    prepared = prepare_inference(model)
    precision = config.optim_wrapper.get("precision", "fp32")

    def step() -> None:
        model.train().zero_grad(set_to_none=True)
        with precision_context(precision, torch.device("cpu")):
            total = sum(model.loss(batch).values())
        total.backward()

    return {"predict": lambda: prepared.predict(batch), "step": step}


def parameters_of(model: nn.Module) -> int:
    """Those that learn."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _kilobytes(name: str) -> int:
    return int(re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)[1])


def memory_mb(config_name: str, tasks: tuple[str, ...], name: str, root: Path, threads: int) -> float:
    """To be run in a process of its own."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    config = load_config(config_name)
    batch = clip_of(config, root)
    before = _kilobytes("VmRSS")
    run = runs_of(config, tasks, batch)[name]
    for _ in range(2):
        run()
    return (_kilobytes("VmHWM") - before) / 1024


def row(title: str, values: dict[str, float], digits: int = 0) -> str:
    """Shared, each alone, their sum, and the ratio."""
    alone = [values[task] for task in TASKS]
    cells = "".join(f"{value:12.{digits}f}" for value in (values[SHARED], *alone, sum(alone)))
    return f"{title:24}{cells}{values[SHARED] / sum(alone):9.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="perception_tiny_synthetic")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    config = load_config(args.config)
    contenders = {SHARED: TASKS} | {task: (task,) for task in TASKS}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch, "set")
        synthesize(root, split=SPLIT, num_scenes=1, keyframes_per_scene=1, workers=1, progress=False)
        batch = clip_of(config, root)
        load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
        shape = "x".join(map(str, batch.images.shape))
        print(f"{args.config}, images {shape}, torch {torch.__version__}, {args.threads} threads, load {load}")
        print(f"{'':24}{'shared':>12}" + "".join(f"{task:>12}" for task in TASKS) + f"{'sum':>12}{'ratio':>9}")
        with torch.device("meta"):
            million = {name: parameters_of(model_of(config, tasks)) / 1e6 for name, tasks in contenders.items()}
        print(row("parameters, million", million, 2))
        passes = {name: runs_of(config, tasks, batch) for name, tasks in contenders.items()}
        for which in PASSES:
            times = in_turns({name: timed(runs[which]) for name, runs in passes.items()}, args.rounds)
            print(row(f"{which}, ms", {name: statistics.median(taken) for name, taken in times.items()}), flush=True)
        ways = {"as it is": {}, "adapters": {"adapters": True}, "gradients measured": {"measures": True}}
        passes = {name: runs_of(config, TASKS, batch, **way) for name, way in ways.items()}
        for which in PASSES:
            times = in_turns({name: timed(runs[which]) for name, runs in passes.items()}, args.rounds)
            base = statistics.median(times["as it is"])
            ratios = ", ".join(f"{name} {statistics.median(taken) / base:.3f}" for name, taken in times.items())
            print(f"shared {which}: {ratios}", flush=True)
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool:
            for which in PASSES:
                taken = {
                    name: pool.submit(memory_mb, args.config, tasks, which, root, args.threads).result()
                    for name, tasks in contenders.items()
                }
                print(row(f"{which}, peak MB", taken), flush=True)


if __name__ == "__main__":
    main()
