"""Memory of each process of a training, by `sharding` and with activation checkpointing, on CPU processes over gloo.

    python benchmarks/sharding_memory.py
    python benchmarks/sharding_memory.py --variant S --processes 4 --size-px 224 --batch-size 4

A classifier around an InternImage learns random pictures with AdamW in fp32, each contender in processes of its own.
"held" is what a process keeps between two steps (weights, the optimiser's state), counted by the sizes of tensors;
"peak" is the most that the system counted (resident memory) beyond what there was before the model was built. Both are
those of the process with most. Ratios are to sharding=None; time says little on CPUs that processes share.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from torch import Tensor, nn

from drivestack.backbone.internimage.model import InternImage
from drivestack.backbone.internimage.variants import VARIANTS
from drivestack.core.weights.shards import own_part
from drivestack.data_tools.clips.sampler import ResumableSampler
from drivestack.engine.optim import PrecisionOptimWrapper
from drivestack.engine.train import train

CONTENDERS: dict[str, dict[str, Any]] = {
    "none (DDP)": dict(sharding=None),
    "zero1": dict(sharding="zero1"),
    "fsdp2": dict(sharding="fsdp2"),
    "none, recomputed": dict(sharding=None, recompute=True),
    "fsdp2, recomputed": dict(sharding="fsdp2", recompute=True),
}
MIB = 2**20
STATUS = Path("/proc/self/status")


@dataclass
class Pictures:
    images: Tensor
    classes: Tensor
    tokens: list[str]

    def to(self, device: torch.device) -> Pictures:
        return Pictures(self.images.to(device), self.classes.to(device), self.tokens)


class RandomPictures(torch.utils.data.Dataset):
    scene_tokens = tuple(map(str, range(64)))

    def __init__(self, size_px: int) -> None:
        self.size_px = size_px

    def __len__(self) -> int:
        return len(self.scene_tokens)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int]:
        index, _ = item
        generator = torch.Generator().manual_seed(index)
        return torch.rand(3, self.size_px, self.size_px, generator=generator), index % 10


def collate(samples: list[tuple[Tensor, int]]) -> Pictures:
    images, classes = zip(*samples)
    return Pictures(torch.stack(images), torch.tensor(classes), ["random"] * len(images))


class Classifier(BaseModel):
    def __init__(self, variant: str, recompute: bool) -> None:
        super().__init__()
        self.backbone = InternImage(**VARIANTS[variant].trunk_options(), activation_checkpointing=recompute)
        self.head = nn.Linear(self.backbone.feature_info[-1].channels, 10)

    def forward(self, batch: Pictures, mode: str = "loss") -> dict[str, Tensor]:
        scores = self.head(self.backbone(batch.images)[-1].mean((2, 3)))
        return {"loss": nn.functional.cross_entropy(scores, batch.classes)}


class Measure(Hook):
    """Prints one line of JSON, each process its own, after the last iteration and before anything is saved."""

    priority = "HIGHEST"

    def __init__(self, before_kib: int, iterations: int) -> None:
        self.before_kib, self.iterations = before_kib, iterations

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if runner.iter == 0:
            self.since = time.monotonic()
        if runner.iter + 1 < self.iterations:
            return
        optimizer = runner.optim_wrapper.optimizer
        state = getattr(optimizer, "optim", optimizer).state  # of ZeRO: this process's share
        weights = list(runner.bare_model.parameters())
        values = [*weights, *(v for entries in state.values() for v in entries.values() if isinstance(v, Tensor))]
        record = {
            "held_mib": sum(own_part(value).nbytes for value in values) / MIB,
            "peak_mib": (memory_kib("VmHWM") - self.before_kib) / 1024,
            "parameters": sum(value.numel() for value in weights),
            "seconds": (time.monotonic() - self.since) / (self.iterations - 1),
        }
        sys.stdout.write(f"MEASURED {json.dumps(record)}\n")
        sys.stdout.flush()


def memory_kib(name: str) -> int:
    """VmRSS (now) or VmHWM (the most so far) of this process."""
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(name))


def work(options: argparse.Namespace) -> None:
    """One process of one contender, under torchrun."""
    torch.set_num_threads(1)
    contender = CONTENDERS[options.contender]
    with tempfile.TemporaryDirectory() as folder:
        work_dir = Path(os.environ.get("SHARDING_WORK_DIR", folder))
        train(
            Config(
                dict(
                    model=dict(type=Classifier, variant=options.variant, recompute=contender.get("recompute", False)),
                    train_dataloader=dict(
                        dataset=dict(type=RandomPictures, size_px=options.size_px),
                        sampler=dict(type=ResumableSampler),
                        batch_size=options.batch_size,
                        num_workers=0,
                        collate_fn=collate,
                    ),
                    train_cfg=dict(max_iters=options.iterations),
                    optim_wrapper=dict(type=PrecisionOptimWrapper, optimizer=dict(type=torch.optim.AdamW, lr=1e-4)),
                    find_unused_parameters=False,
                    sharding=contender["sharding"],
                    custom_hooks=[Measure(memory_kib("VmRSS"), options.iterations)],
                )
            ),
            work_dir,
        )


def measured(options: argparse.Namespace, contender: str) -> dict[str, float]:
    """The most of all processes."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={options.processes}"]
    sizes = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in ("variant", "size_px", "batch_size")]
    sizes.append(f"--iterations={options.iterations}")
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [*launch, __file__, *sizes, "--contender", contender],
            # freed blocks go back to the system at once, so that resident memory is what tensors take
            env=os.environ
            | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "SHARDING_WORK_DIR": f"{folder}/run"},
            capture_output=True,
            text=True,
        )
    records = [json.loads(line.split(None, 1)[1]) for line in done.stdout.splitlines() if line.startswith("MEASURED")]
    if done.returncode or len(records) != options.processes:
        raise SystemExit(f"error: {contender}: {done.stderr}")
    return {name: max(record[name] for record in records) for name in records[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="T", choices=sorted(VARIANTS))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--size-px", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=2, help="of one process")
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        work(options)
        return
    write = sys.stdout.write
    first: dict[str, float] = {}
    for contender in CONTENDERS:
        found = measured(options, contender)
        if not first:
            first = found
            count = found["parameters"] / 1e6
            write(
                f"InternImage-{options.variant}, {count:.1f} M parameters, {options.processes} processes, "
                f"{options.batch_size} images of {options.size_px} px each\n"
                f"{'':20}{'held MiB':>10}{'ratio':>7}{'peak MiB':>10}{'ratio':>7}{'s/it':>7}\n"
            )
        held, peak = found["held_mib"], found["peak_mib"]
        write(
            f"{contender:20}{held:10.0f}{held / first['held_mib']:7.2f}{peak:10.0f}{peak / first['peak_mib']:7.2f}"
            f"{found['seconds']:7.2f}\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
