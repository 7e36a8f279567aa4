"""Trainings of the toy problem one after another: ``python sharded_runs.py RUNS.json``, alone or under torchrun.

RUNS.json lists dicts: ``work_dir``, ``max_iters``, optionally ``resume`` (True or a checkpoint), ``encoder`` (an
InternImage instead of two layers), ``optimizer`` (a class of torch.optim), ``error`` (the beginning of the message to
be raised), and ``set``, changes of the config by dotted key. One program for many trainings, for starting several processes takes longer than training.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from drivestack.backbone.internimage.model import InternImage
from drivestack.core.errors import DrivestackError
from drivestack.engine.config import override
from drivestack.engine.layer_decay import LayerDecayOptimizerConstructor  # noqa: F401 (a config names it)
from drivestack.engine.train import train
from support.toy_training import ToyBatch, ToyModel, toy_config

IMAGE_PX = 32


class ToyEncoder(ToyModel):
    """A tiny InternImage on pictures made of the toy problem's numbers."""

    def __init__(self, recompute: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.backbone = InternImage(
            channels=8, depths=(1, 1, 2, 1), groups=(1, 1, 2, 2), drop_path_rate=0.0, activation_checkpointing=recompute
        )
        self.net = nn.Sequential(nn.Linear(64, 2))
        basis = torch.randn(6, 3 * IMAGE_PX**2, generator=torch.Generator().manual_seed(5))
        self.register_buffer("basis", basis)

    def forward(self, batch: ToyBatch, mode: str = "loss") -> dict[str, Tensor]:
        images = (batch.inputs @ self.basis).view(-1, 3, IMAGE_PX, IMAGE_PX)
        pooled = self.backbone(images)[-1].float().mean((2, 3))
        return super().forward(ToyBatch(pooled, batch.targets, batch.tokens), mode)


class Scores:
    """The model's weights, added up, and how often they were asked for."""

    def __call__(self, model: nn.Module, iteration: int) -> dict[str, float]:
        batch = ToyBatch(torch.ones(1, 6), torch.ones(1, 2), ["validation"])
        return {"score": float(model(batch)["loss_square"])}


def config_of(run: dict[str, Any]) -> Any:
    config = toy_config(run["max_iters"], batch_size=run.get("batch_size", 2), dropout=0.0)
    config.custom_hooks = []
    config.log_interval = 1
    if run.get("encoder"):
        config.model.type = ToyEncoder
    for key, value in run.get("set", {}).items():
        override(config, key, value)
    if "optimizer" in run:
        config.optim_wrapper.optimizer = dict(type=getattr(torch.optim, run["optimizer"]), lr=0.01)
    return config


def main(runs: Path) -> None:
    torch.set_num_threads(1)
    for run in json.loads(runs.read_text()):
        began = time.monotonic()
        try:
            train(config_of(run), run["work_dir"], resume=run.get("resume", False), evaluate=Scores())
        except DrivestackError as error:
            if "error" not in run or not str(error).startswith(run["error"]):
                raise
        else:
            assert "error" not in run, run
        sys.stderr.write(f"{Path(run['work_dir']).name} {time.monotonic() - began:.2f} s\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
