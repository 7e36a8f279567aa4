"""What remembered objects and their places are worth: the box head alone, above a map with its memory.

All start from the weights of step 4 in docs/tiny_model.md, whose box head has learned with remembered objects but not
with their places: ``git show ca7b576:weights/perception_tiny_drive.safetensors > step4.safetensors``. docs/tracking.md
has the table.
"""

from __future__ import annotations

from typing import Any

from experiments import UP_TO_BEV, Experiment

START = "step4.safetensors"
BOXES_ALONE: dict[str, Any] = {
    "model.frozen": [*UP_TO_BEV, "memory."],
    "model.tasks": ["boxes"],
    "model.depth_teacher": None,
    **{f"train_dataloader.dataset.{label}": False for label in ("occupancy", "lanes", "depth")},
    "train_dataloader.batch_size": 2,
    "optim_wrapper.optimizer.lr": 3e-4,
}


def row(name: str, overrides: dict[str, Any] | None = None, **settings: Any) -> Experiment:
    settings = {"iterations": 1000, "start": START, "adapt": True, "stored_features": True, **settings}
    return Experiment(name, overrides=BOXES_ALONE | (overrides or {}), config="perception_tiny_drive", **settings)


EXPERIMENTS = [
    row("no objects", {"model.boxes.memory": None}),
    row("objects", {"model.boxes.memory.velocity": None}),
    row("objects and their places"),
    row("the same, map forgotten", {"model.memory.forget": True}, iterations=0, start="objects and their places"),
]
