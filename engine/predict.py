"""Prediction over a dataset, scene by scene in time order, so that a model with history sees what a car would see."""

from __future__ import annotations

import ctypes
import logging
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.progress import track
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ..core.answers import Detections, SceneAnswer
from ..data_tools.clips.collate import collate_clips
from ..data_tools.clips.sampler import SceneOrderSampler

logger = logging.getLogger("drivestack")


@dataclass
class Predictions:
    """What a model found, and how long it took."""

    answers: dict[str, SceneAnswer] = field(default_factory=dict)
    """One entry per keyframe, by sample token."""
    timing: dict[str, float] = field(default_factory=dict)
    """``samples``, ``seconds`` in all, ``model_seconds_per_sample`` and ``data_seconds_per_sample``."""

    @property
    def detections(self) -> dict[str, Detections]:
        """The boxes, by sample token; empty for a model that was not asked for any."""
        return {token: answer.boxes for token, answer in self.answers.items() if answer.boxes is not None}


def predict(
    model: nn.Module,
    dataset: Dataset,
    *,
    batch_size: int = 1,
    num_workers: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
    keep: Callable[[SceneAnswer], SceneAnswer] = lambda answer: answer,
) -> Predictions:
    """Run ``model.predict`` on every clip of ``dataset``; the model is put into eval mode on ``device``.

    Each batch is given the history that the one before returned, so a dataset of current frames only is enough for a
    model over time (bev/bevformer_v2.py).
    keep: is given each answer as it comes and returns what to hold in memory, so that large parts (voxels) can go to
        disk at once. device: default where the model already is. A bar on a terminal, a line every tenth elsewhere.
    """
    device = next(model.parameters()).device if device is None else torch.device(device)
    model.eval().to(device)
    sampler = SceneOrderSampler(dataset, rank=0, world_size=1)
    loader = DataLoader(dataset, batch_size, sampler=sampler, num_workers=num_workers, collate_fn=collate_clips)
    found = Predictions()
    history: Any = None
    model_s = 0.0
    start = time.monotonic()
    on_terminal = progress and sys.stderr.isatty()
    batches = track(loader, "predict", total=len(loader), transient=True) if on_terminal else loader
    for number, batch in enumerate(batches, 1):
        batch = batch.to(device)
        began = time.monotonic()
        answers, history = model.predict(batch, history)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        model_s += time.monotonic() - began
        for answer in answers:
            whole = answer if isinstance(answer, SceneAnswer) else SceneAnswer(answer.token, boxes=answer)
            found.answers[whole.token] = keep(whole)
        if progress and not on_terminal and (number * 10 // len(loader)) > ((number - 1) * 10 // len(loader)):
            logger.info("predict %d/%d  %.2f s per sample", number, len(loader), model_s / len(found.answers))
    found.timing = _timing(len(found.answers), time.monotonic() - start, model_s)
    return found


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory in this process instead of returning it to the kernel; True if it will.

    By default every frame of a model gets the memory of its larger maps afresh, and the kernel clears it page by page:
    a fifth of the time of a small model on a CPU. Process-wide, so a matter of the program and not of a library call;
    the memory that the largest frame took is held until the end.
    """
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library
        return False
    return bool(
        (mallopt(mmap_threshold, 1 << 30) or mallopt(mmap_threshold, 1 << 25)) and mallopt(trim_threshold, 1 << 30)
    )


def _timing(samples: int, seconds: float, model_s: float) -> Mapping[str, float]:
    return {
        "samples": samples,
        "seconds": round(seconds, 3),
        "model_seconds_per_sample": round(model_s / max(samples, 1), 4),
        "data_seconds_per_sample": round((seconds - model_s) / max(samples, 1), 4),
    }
