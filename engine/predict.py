"""Prediction over a dataset, scene by scene in time order, so that a model with memory sees what a car would see."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.data import DataLoader

from ..backbone.pretrain.protocol import ImageDataset, ImageModel
from ..core.answers import SceneAnswer
from ..core.batch import Batch
from ..core.errors import ModelError
from ..core.image_answers import ImageAnswer
from ..core.progress import ProgressDisplay
from ..data_tools.clips.clip_dataset import ClipDataset
from ..data_tools.clips.collate import collate_clips
from ..data_tools.clips.sampler import SceneOrderSampler
from .failures import computing, end_workers, reading, workers_die_quietly
from .precision import precision_context


@dataclass
class Answered:
    """What a model answered, and how long it took."""

    answers: dict[str, SceneAnswer] = field(default_factory=dict)
    """One entry per keyframe, by sample token."""
    timing: dict[str, float] = field(default_factory=dict)
    """``samples``, ``seconds`` in all, ``model_seconds_per_sample`` and ``data_seconds_per_sample``."""


class Predictor(Protocol):
    """What ``predict`` needs of a model: a module with this method (bev/protocol.py)."""

    def predict(self, batch: Batch, memory: Any, tasks: Sequence[str] | None) -> tuple[list[SceneAnswer], Any]: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def eval(self) -> nn.Module: ...


def check_inputs(model: Any, dataset: Any) -> None:
    """Compare a dataset's cameras and range with the model's, where both state them; see PerceptionModel.check_inputs.

    The range counts where there are boxes to learn or to find.
    """
    check, names = getattr(model, "check_inputs", None), getattr(dataset, "camera_names", None)
    if check is not None and names:
        tasks: tuple[str, ...] = getattr(model, "tasks", ())
        check(names, dataset.pc_range if "boxes" in tasks and dataset.classes else None)


def predict(
    model: Predictor,
    dataset: ClipDataset,
    *,
    batch_size: int = 1,
    num_workers: int = 0,
    device: torch.device | str | None = None,
    precision: str = "fp32",
    tasks: Sequence[str] | None = None,
    progress: bool = True,
    keep: Callable[[SceneAnswer], SceneAnswer] = lambda answer: answer,
) -> Answered:
    """Run ``model.predict`` on every clip of ``dataset``; the model is put into eval mode on ``device``.

    Each batch is given the memory that the one before returned, so a dataset of current frames only is enough for a
    model over time (bev/protocol.py).
    tasks: answer only these; default all. keep: is given each answer as it comes and returns what to hold in memory, so
    that large parts (voxels) can go to disk at once. device: default where the model already is. precision: fp32, bf16
    or fp16. A bar on a terminal, a line every tenth elsewhere.

    Raises DataError for samples that cannot be read and for loader workers that were killed, ModelError where the model
    fails on a batch (memory, shapes).
    """
    memory: Any = None

    def answer(batch: Batch) -> list[SceneAnswer]:
        nonlocal memory
        answers, memory = model.predict(batch, memory, tasks)
        return answers

    run = _Run(dataset, collate_clips, batch_size, num_workers, "samples", progress)
    found = Answered()
    for own in run.answers(model, answer, device, precision):
        found.answers[own.token] = keep(own)
    found.timing = run.timing()
    return found


def predict_images(
    model: ImageModel,
    dataset: ImageDataset,
    *,
    batch_size: int = 1,
    num_workers: int = 0,
    device: torch.device | str | None = None,
    precision: str = "fp32",
    progress: bool = True,
) -> Iterator[ImageAnswer]:
    """An image model's answer to every image of ``dataset``, in its order, as they come; arguments, errors and progress
    as in ``predict``."""
    run = _Run(dataset, dataset.collate, batch_size, num_workers, "images", progress)
    yield from run.answers(model, model.predict, device, precision)


class _Run:
    """One pass over a dataset in scene order. collate: makes a batch of samples; unit: what is counted, in words."""

    def __init__(
        self, dataset: Any, collate: Callable[..., Any], batch_size: int, num_workers: int, unit: str, progress: bool
    ) -> None:
        self.dataset, self.batch_size, self.unit, self.progress = dataset, batch_size, unit, progress
        self.sampler = SceneOrderSampler(dataset, rank=0, world_size=1)
        self.loader = DataLoader(dataset, batch_size, sampler=self.sampler, num_workers=num_workers, collate_fn=collate)
        self.done, self.model_s, self.start_s = 0, 0.0, time.monotonic()

    def answers(
        self, model: Any, answer: Callable[[Any], list[Any]], device: torch.device | str | None, precision: str
    ) -> Iterator[Any]:
        device = next(model.parameters()).device if device is None else torch.device(device)
        model.eval().to(device)
        with reading(lambda: f"the first {self.unit}", "--workers", "then run it again"):
            batches = iter(self.loader)
        with (
            ProgressDisplay("predict", len(self.dataset), unit=self.unit, shown=self.progress) as display,
            workers_die_quietly(),
        ):
            for batch in _batches(batches, self.dataset, self.sampler, self.batch_size):
                began_s = time.monotonic()
                where = partial(_named, batch.tokens, self.unit)
                with computing(where, "--batch-size", "then run it again", ModelError):
                    batch = batch.to(device)
                    with torch.no_grad(), precision_context(precision, device):
                        found = answer(batch)
                    if device.type == "cuda":
                        torch.cuda.synchronize(device)
                self.model_s += time.monotonic() - began_s
                self.done += len(found)
                yield from found
                display.advance(len(found), f"{self.model_s / self.done:.2f} s per {self.unit.rstrip('s')}")

    def timing(self) -> dict[str, float]:
        seconds, count = time.monotonic() - self.start_s, max(self.done, 1)
        return {
            "samples": self.done,
            "seconds": round(seconds, 3),
            "model_seconds_per_sample": round(self.model_s / count, 4),
            "data_seconds_per_sample": round((seconds - self.model_s) / count, 4),
        }


def _batches(batches: Iterator[Any], dataset: Any, sampler: SceneOrderSampler, size: int) -> Iterator[Any]:
    """All batches; a DataError names the samples that cannot be read, and the option for loader workers."""
    done = 0
    tokens = getattr(dataset, "tokens", None)

    def samples() -> str:
        places = sampler.indices[done : done + size].tolist()
        return _named([tokens[place] if tokens else place for place in places])

    try:
        while done < len(sampler):
            with reading(samples, "--workers", "then run it again"):
                batch = next(batches)
            yield batch
            done += size
    finally:
        end_workers(batches)


def _named(tokens: Sequence[Any], unit: str = "samples") -> str:
    return f"{unit} {', '.join(map(str, tokens[:4]))}{', ...' if len(tokens) > 4 else ''}"
