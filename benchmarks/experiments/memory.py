"""What a past is worth to boxes, voxels and lanes: the map's memory and that of objects, from the shipped weights.

Everything up to the map of one frame is frozen, and all heads learn for the same iterations. "no past" has the memory's
parameters and reads the current map in the past's place. What remembered objects are worth without their content, from
another scene or from labels: ``python -m benchmarks.object_memory`` with the weights of a row. docs/memory.md.
"""

from __future__ import annotations

from typing import Any

from drivestack.bev.boxes.trails import TrailVelocity
from experiments import TINY, UP_TO_BEV, Experiment

ITERATIONS = 1200
MAP, OBJECTS = "perception_tiny_memory", "perception_tiny_objects"
HEADS = {"model.frozen": list(UP_TO_BEV)}
VELOCITY = {f"model.boxes.{part}.code_weights": [1.0] * 10 for part in ("head", "bev_proposals")}


def row(name: str, overrides: dict[str, Any] | None = None, config: str = MAP, **settings: Any) -> Experiment:
    settings = {"iterations": ITERATIONS, "stored_features": True, **settings}
    return Experiment(name, overrides=HEADS | (overrides or {}), config=config, **settings)


EXPERIMENTS = [
    row("no past", {"model.memory.past": False}),
    row("memory"),
    row("memory, one step of gradient", {"model.memory.unroll": 1}),
    row("memory, forgotten in the test", {"model.memory.forget": True}, iterations=0, start="memory"),
    row(
        "the frame before, encoded again",
        VELOCITY | {"model.bev_map.frames": (-1, 0)},
        TINY,
        adapt=True,
        stored_features=False,
    ),
    row("memory and objects", config=OBJECTS),
    row("memory, objects and their places", {"model.boxes.memory.velocity": dict(type=TrailVelocity)}, OBJECTS),
]
