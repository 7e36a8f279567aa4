"""A regression small enough to train in a second, with everything that makes resuming hard: dropout, EMA, schedules.

Run as a program it trains once: ``python toy.py WORK_DIR MAX_ITERS [--resume] [--sleep S] [--batch-size N] ...``
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import CosineAnnealingLR, LinearLR
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import Dataset

from drivestack.core.signals import terminate_as_exception
from drivestack.data_tools.clips.sampler import ResumableSampler
from drivestack.engine.optim import PrecisionOptimWrapper
from drivestack.engine.train import train


@dataclass
class ToyBatch:
    inputs: Tensor
    targets: Tensor
    tokens: list[str]

    def to(self, device: torch.device) -> ToyBatch:
        return ToyBatch(self.inputs.to(device), self.targets.to(device), self.tokens)


class ToyDataset(Dataset):
    """40 samples; augmentation noise is a function of the sampler's draw."""

    scene_tokens = tuple(f"scene{i // 10}" for i in range(40))

    def __init__(self, noise: float = 0.1) -> None:
        self.noise = noise
        self.inputs = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return 40

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, Tensor, str]:
        index, draw = item
        noise = torch.randn(6, generator=torch.Generator().manual_seed(draw)) * self.noise
        return self.inputs[index] + noise, self.inputs[index, :2].sin(), f"sample{index}"


def collate(samples: list[tuple[Tensor, Tensor, str]]) -> ToyBatch:
    inputs, targets, tokens = zip(*samples)
    return ToyBatch(torch.stack(inputs), torch.stack(targets), list(tokens))


class ToyModel(BaseModel):
    """``nan_at``: that many forward passes give a good loss, the next a NaN term; ``sleep_s`` per pass."""

    def __init__(self, dropout: float = 0.2, nan_at: int = -1, sleep_s: float = 0.0, hidden: int = 16) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, 2))
        self.nan_at = nan_at
        self.sleep_s = sleep_s
        self.passes = 0

    def forward(self, batch: ToyBatch, mode: str = "loss") -> dict[str, Tensor]:
        time.sleep(self.sleep_s)
        residual = self.net(batch.inputs).float() - batch.targets
        losses = {"loss_square": residual.square().mean(), "loss_edge": residual.abs().mean(), "mean": residual.mean()}
        if self.passes == self.nan_at:
            losses["loss_edge"] = losses["loss_edge"] * float("nan")
        self.passes += 1
        return losses


class DumpWeights(Hook):
    """Every rank's own weights, to compare them."""

    def after_train(self, runner: Runner) -> None:
        torch.save(runner.bare_model.state_dict(), Path(runner.work_dir) / f"rank{runner.rank}.pt")


class RecordSamples(Hook):
    """Each rank's samples, a line per iteration, across restarts."""

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        with (Path(runner.work_dir) / f"samples{runner.rank}.txt").open("a") as file:
            file.write(" ".join(data_batch.tokens) + "\n")


def toy_config(
    max_iters: int, batch_size: int = 4, precision: str = "fp32", noise: float = 0.1, **model: object
) -> Config:
    return Config(
        dict(
            model=dict(type=ToyModel, **model),
            train_dataloader=dict(
                dataset=dict(type=ToyDataset, noise=noise),
                sampler=dict(type=ResumableSampler),
                batch_size=batch_size,
                num_workers=0,
                collate_fn=collate,
            ),
            train_cfg=dict(max_iters=max_iters),
            optim_wrapper=dict(
                type=PrecisionOptimWrapper,
                precision=precision,
                optimizer=dict(type=torch.optim.AdamW, lr=1e-2, weight_decay=0.01),
                clip_grad=dict(max_norm=1.0),
            ),
            param_scheduler=[
                dict(type=LinearLR, start_factor=0.1, by_epoch=False, end=5),
                dict(type=CosineAnnealingLR, by_epoch=False, begin=5, T_max=40, end=45),
            ],
            ema=dict(momentum=0.1),
            checkpoint=dict(interval=5, keep=2),
            log_interval=5,
            custom_hooks=[dict(type=DumpWeights)],
            seed=3,
        )
    )


def score_on_rank_0(model: nn.Module, iteration: int) -> dict[str, float]:
    assert os.environ.get("RANK", "0") == "0"
    return {"score": float(iteration) + torch.rand(1).item()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work_dir")
    parser.add_argument("max_iters", type=int)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--sleep", type=float, default=0.0)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--interval", type=int, default=5)
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--flat", action="store_true", help="no schedule, and each rank's samples recorded")
    parser.add_argument("--also", nargs=2, metavar=("WORK_DIR", "MAX_ITERS"), help="train once more, from its start")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = toy_config(
        options.max_iters, batch_size=options.batch_size, dropout=options.dropout, sleep_s=options.sleep
    )
    config.checkpoint.interval = options.interval
    if options.validate:
        config.validation = dict(interval=4, metric="score")
    config.train_dataloader.num_workers = options.workers
    if options.flat:
        config.param_scheduler = None
        config.custom_hooks.append(dict(type=RecordSamples))
    with terminate_as_exception():
        path = train(config, options.work_dir, resume=options.resume, evaluate=score_on_rank_0)
        if options.also:
            config.train_cfg.max_iters = int(options.also[1])
            train(config, options.also[0], evaluate=score_on_rank_0)
    sys.stdout.write(f"{os.environ.get('RANK', '0')} {path}\n")


if __name__ == "__main__":
    main()
