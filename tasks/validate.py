"""Scores during training: the config's test data answered and scored, as a function that the engine calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, cast

from .base import GroundTruth, Task, labelled
from .lanes import Lanes
from .occupancy import Occupancy
from .run import box_task, score_frames, source_of

if TYPE_CHECKING:
    from mmengine.config import Config
    from torch import nn

    from ..bev.protocol import PerceptionModel


def validator(config: Config) -> Callable[[nn.Module, int], Mapping[str, float]]:
    """A function (model, iteration) -> the summary scores of all tasks that the test data are labelled for.

    The data are read when it is made, so that what is missing is said before training starts.
    Raises ConfigError where the config names no test data, DataError where they have no labels.
    """
    truth = GroundTruth(source_of(config))
    tasks: dict[str, Task] = {"boxes": box_task(config), "occupancy": Occupancy(), "lanes": Lanes()}
    usable = labelled(tasks, truth)

    def evaluate(model: nn.Module, iteration: int) -> dict[str, float]:
        perception = cast("PerceptionModel", model)
        chosen = {name: task for name, task in usable.items() if name in perception.tasks}
        device = str(next(model.parameters()).device)
        scores = score_frames(config, perception, truth, chosen, device=device, progress=False)
        summary: dict[str, float] = {}
        for name, task in chosen.items():
            summary |= task.summary(scores[name])
        return summary

    return evaluate
