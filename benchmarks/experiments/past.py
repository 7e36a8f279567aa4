"""What the past of the map is worth to boxes and voxels: one head and the memory alone, all up to the map frozen.

"no past" has the memory's parameters and reads the current map in the past's place. All start from the weights of
objects.py without those of the memory, in the folder where the program is started:

    from safetensors.torch import load_file, save_file
    kept = {name: value for name, value in load_file("step4.safetensors").items() if not name.startswith("memory.")}
    save_file(kept, "step4_without_memory.safetensors")

docs/memory.md has the tables.
"""

from __future__ import annotations

from typing import Any

from experiments import UP_TO_BEV, Experiment

START = "step4_without_memory.safetensors"
LABELS = ("occupancy", "lanes", "depth")


def row(task: str, name: str, overrides: dict[str, Any] | None = None, **settings: Any) -> Experiment:
    alone = {
        "model.frozen": list(UP_TO_BEV),
        "model.tasks": [task],
        "model.boxes.memory": None,
        "model.depth_teacher": None,
        **{f"train_dataloader.dataset.{label}": label == task for label in LABELS},
        "train_dataloader.batch_size": 2,
    }
    settings = {"iterations": 1000, "start": START, "adapt": True, "stored_features": True, **settings}
    return Experiment(
        f"{task}, {name}",
        overrides=alone | (overrides or {}),
        config="perception_tiny_drive",
        control=f"{task}, no past",
        **settings,
    )


def rows(task: str) -> list[Experiment]:
    forgotten = dict(iterations=0, start=f"{task}, memory")
    return [
        row(task, "no past", {"model.memory.past": False}),
        row(task, "memory"),
        row(task, "memory, forgotten in the test", {"model.memory.forget": True}, **forgotten),
    ]


EXPERIMENTS = [*rows("boxes"), *rows("occupancy")]
