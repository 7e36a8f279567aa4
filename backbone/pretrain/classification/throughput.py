"""Images per second of a classifier, measured as the InternImage release does: 50 batches to warm up, 30 timed."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .batch import UNLABELLED, ClassBatch
from .model import Classifier, network_of

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Throughput:
    """batches of batch_size images in ``seconds``."""

    batch_size: int
    batches: int
    seconds: float

    @property
    def images_per_s(self) -> float:
        return self.batch_size * self.batches / self.seconds


def throughput(
    model: nn.Module,
    size_px: int = 224,
    batch_size: int = 128,
    warmup: int = 50,
    timed: int = 30,
    precision: str = "fp32",
) -> Throughput:
    """Time of the forward pass alone, of images of noise, where the model is, in eval mode (its mode is put back).

    precision: "fp32", "bf16" or "fp16". Raises ValueError for another, or for counts below 1 (``warmup``: 0).
    """
    if precision not in DTYPES or min(batch_size, timed, size_px) < 1 or warmup < 0:
        raise ValueError(f"throughput: {precision=}, {batch_size=}, {timed=}, {size_px=}, {warmup=} cannot be measured")
    device, was_training = next(model.parameters()).device, model.training
    dtype = DTYPES[precision]
    context: Any = nullcontext() if dtype is None else torch.autocast(device.type, dtype)
    images = torch.randn(batch_size, 3, size_px, size_px, generator=torch.Generator().manual_seed(0)).to(device)
    labels = torch.full((batch_size,), UNLABELLED)
    batch = ClassBatch(images, labels, [""] * batch_size, [(size_px, size_px)] * batch_size, [0] * batch_size)
    run = (lambda: model.logits(batch)) if isinstance(model, Classifier) else (lambda: network_of(model)(images))
    model.eval()
    try:
        with torch.inference_mode(), context:
            for _ in range(warmup):
                run()
            _wait(device)
            start_s = time.perf_counter()
            for _ in range(timed):
                run()
            _wait(device)
            return Throughput(batch_size, timed, time.perf_counter() - start_s)
    finally:
        model.train(was_training)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
