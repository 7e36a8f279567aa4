"""A recurrent regression that trains in a second: its memory is a running sum of each scene.

Run as a program, alone or under torchrun, it trains without a stop and with one: ``python toy_memory.py FOLDER``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.utils.data import Dataset

from drivestack.data_tools.clips.sampler import StreamingSampler
from drivestack.engine.train import train
from support.toy_training import toy_config


class Batch:
    def __init__(self, inputs: Tensor, tokens: list[str], streams: list[str]) -> None:
        self.inputs, self.tokens, self.streams = inputs, tokens, streams

    def to(self, device: torch.device) -> Batch:
        return self


class Scenes(Dataset):
    """Seven scenes of 3 to 6 frames; the noise of a frame is that of its pass through the scene."""

    scene_tokens = tuple(f"scene{i}" for i in range(7) for _ in range(3 + i % 4))

    def __init__(self) -> None:
        self.inputs = torch.randn(len(self), 4, generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self.scene_tokens)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, str, str]:
        index, draw = item
        noise = torch.randn(4, generator=torch.Generator().manual_seed(draw)) * 0.1
        return self.inputs[index] + noise, f"sample{index}", f"{self.scene_tokens[index]} {draw}"


def collate(samples: list[tuple[Tensor, str, str]]) -> Batch:
    inputs, tokens, streams = zip(*samples)
    return Batch(torch.stack(inputs), list(tokens), list(streams))


def test_batch(index: int = 0) -> Batch:
    return collate([Scenes()[index, 0]])


test_batch.__test__ = False  # type: ignore[attr-defined]  # no test


class Recurrent(BaseModel):
    """Predicts the mean of a scene so far; ``calls`` of other modes than "stream" would be a mistake of the loop."""

    streams = True

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.drop = nn.Linear(8, 4), nn.Dropout(0.1)

    def stream_loss(self, batch: Batch, memory: Any) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
        past = [(memory or {}).get(key, {}).get("value", torch.zeros(4)) for key in batch.streams]
        now = self.mix(torch.cat([batch.inputs, torch.stack(past)], 1))
        loss = (self.drop(now) - batch.inputs.cumsum(1)).square().mean()
        return {"loss": loss}, {key: {"value": own.detach()} for key, own in zip(batch.streams, now)}

    def forward(self, batch: Batch, mode: str = "loss", memory: Any = None) -> Any:
        assert mode == "stream"
        return self.stream_loss(batch, memory)

    def pack_memory(self, memory: Any) -> dict[str, Any]:
        return dict(memory or {})

    def unpack_memory(self, packed: dict[str, Any]) -> Any:
        return {key: {"value": own["value"]} for key, own in packed.items()}


class StopAt(Hook):
    """Sends this process a signal in an iteration."""

    def __init__(self, iteration: int, number: int) -> None:
        self.iteration, self.number = iteration, number

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if runner.iter + 1 == self.iteration:
            os.kill(os.getpid(), self.number)


def config(max_iters: int, batch_size: int = 2, interleave: int = 2) -> Config:
    found = toy_config(max_iters, batch_size=batch_size)
    found.model = dict(type=Recurrent)
    loader = found.train_dataloader
    found.train_dataloader = {**loader, "dataset": dict(type=Scenes), "collate_fn": collate}
    found.train_dataloader.sampler = dict(type=StreamingSampler, interleave=interleave)
    found.param_scheduler, found.custom_hooks = None, []
    return found


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    train(config(20), folder / "whole")
    train(config(9), folder / "parts")
    train(config(20), folder / "parts", resume=True)


if __name__ == "__main__":
    main()
