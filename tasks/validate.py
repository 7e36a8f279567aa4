"""Scores during training: the config's test data answered and scored, as a function that the engine calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from .base import GroundTruth, Task, labelled
from .lanes import Lanes
from .occupancy import Occupancy
from .run import box_task, score_frames, source_of

if TYPE_CHECKING:
    from mmengine.config import Config
    from torch import nn

    from ..bev.protocol import PerceptionModel


class Validator:
    """(model, iteration) -> the summary scores of all tasks of the model that the test data are labelled for.

    The data are read when it is made, so that what is missing is said before training starts.
    Raises ConfigError where the config names no test data, DataError where they have no labels.
    """

    def __init__(self, config: Config) -> None:
        self.config, self.truth = config, GroundTruth(source_of(config))
        tasks: dict[str, Task] = {"boxes": box_task(config), "occupancy": Occupancy(), "lanes": Lanes()}
        wanted = config.get("model", {}).get("tasks") or tuple(tasks)
        self.tasks = labelled({name: task for name, task in tasks.items() if name in wanted}, self.truth)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the scores, as far as the model has the tasks."""
        return tuple(name for task in self.tasks.values() for name in task.summary_names)

    def __call__(self, model: nn.Module, iteration: int) -> dict[str, float]:
        perception = cast("PerceptionModel", model)
        chosen = {name: task for name, task in self.tasks.items() if name in perception.tasks}
        device = str(next(model.parameters()).device)
        scores = score_frames(self.config, perception, self.truth, chosen, device=device, progress=False)
        return {name: score for key, task in chosen.items() for name, score in task.summary(scores[key]).items()}
