"""Trainings of the toy problem one after another: ``python sharded_runs.py RUNS.json``, alone or under torchrun.

RUNS.json lists dicts (`train_once`). One program runs many, for starting processes takes longer than such a training.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from drivestack.backbone.internimage.model import InternImage
from drivestack.core.errors import DrivestackError
from drivestack.engine.config import override
from drivestack.engine.train import train
from support.toy_training import ToyBatch, ToyModel, toy_config

IMAGE_PX = 32


class ToyEncoder(ToyModel):
    """A tiny InternImage on pictures made of the toy problem's numbers."""

    def __init__(self, recompute: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.backbone = InternImage(
            channels=8, depths=(1, 1, 2, 1), groups=(1, 1, 2, 2), drop_path_rate=0.5, activation_checkpointing=recompute
        )
        self.net = nn.Sequential(nn.Linear(64, 2))
        self.register_buffer("basis", torch.randn(6, 3 * IMAGE_PX**2, generator=torch.Generator().manual_seed(5)))

    def forward(self, batch: ToyBatch, mode: str = "loss") -> dict[str, Tensor]:
        images = (batch.inputs @ self.basis).view(-1, 3, IMAGE_PX, IMAGE_PX)
        pooled = self.backbone(images)[-1].float().mean((2, 3))
        return super().forward(ToyBatch(pooled, batch.targets, batch.tokens), mode)


class SometimesUnused(ToyModel):
    """Has a second head, which the second process does not use."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.more = nn.Linear(6, 2)

    def forward(self, batch: ToyBatch, mode: str = "loss") -> dict[str, Tensor]:
        losses = super().forward(batch, mode)
        if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
            losses["loss_more"] = self.more(batch.inputs).square().mean()
        return losses


MODELS = {kind.__name__: kind for kind in (ToyModel, ToyEncoder, SometimesUnused)}


def score(model: nn.Module, iteration: int) -> dict[str, float]:
    return {"score": float(model(ToyBatch(torch.ones(1, 6), torch.ones(1, 2), ["one"]))["loss_square"])}


def train_once(
    work_dir: str | Path,
    max_iters: int = 12,
    *,
    model: str = "ToyModel",
    optimizer: str = "",
    batch_size: int = 2,
    changes: dict[str, Any] | None = None,
    error: str = "",
    **options: Any,
) -> None:
    """optimizer: a class of torch.optim; changes: by dotted key of the config; error: how the message must begin;
    options: of `train`."""
    config = toy_config(max_iters, batch_size=batch_size, dropout=0.0)
    config.custom_hooks = []
    config.log_interval = 1
    config.model.type = MODELS[model]
    if optimizer:
        config.optim_wrapper.optimizer = dict(type=getattr(torch.optim, optimizer), lr=0.01)
    for key, value in (changes or {}).items():
        override(config, key, value)
    try:
        train(config, work_dir, evaluate=score, **options)
    except DrivestackError as raised:
        if not error or not str(raised).startswith(error):
            raise
    else:
        assert not error, f"{work_dir}: no error that begins with {error!r}"


def main() -> None:
    torch.set_num_threads(1)
    for run in json.loads(Path(sys.argv[1]).read_text()):
        train_once(**run)


if __name__ == "__main__":
    main()
