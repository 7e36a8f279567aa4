"""What the map's memory is worth to voxels: the voxel head and the memory alone, everything up to the map frozen.

"no past" has the memory's parameters and reads the current map in the past's place. Both start from the weights of
objects.py without those of the memory: a copy of the file without ``memory.``, step4_without_memory.safetensors.
docs/memory.md says what is known so far.
"""

from __future__ import annotations

from typing import Any

from experiments import UP_TO_BEV, Experiment

START = "step4_without_memory.safetensors"
VOXELS_ALONE: dict[str, Any] = {
    "model.frozen": list(UP_TO_BEV),
    "model.tasks": ["occupancy"],
    "model.boxes.memory": None,
    "model.depth_teacher": None,
    **{f"train_dataloader.dataset.{label}": False for label in ("lanes", "depth")},
    "train_dataloader.batch_size": 2,
}


def row(name: str, overrides: dict[str, Any] | None = None, **settings: Any) -> Experiment:
    settings = {"iterations": 1000, "start": START, "adapt": True, "stored_features": True, **settings}
    return Experiment(name, overrides=VOXELS_ALONE | (overrides or {}), config="perception_tiny_drive", **settings)


EXPERIMENTS = [
    row("no past", {"model.memory.past": False}),
    row("memory"),
    row("memory, forgotten in the test", {"model.memory.forget": True}, iterations=0, start="memory"),
]
