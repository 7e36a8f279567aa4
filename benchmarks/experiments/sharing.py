"""What sharing one encoder costs each task, and what keeps it from costing: against a model per task.

All start from the weights for boxes alone. The twins exist twice: with the iterations of the joint training, and with
as many as fit into its time (CPU time of a step, one thread; ``python benchmarks/sharing.py`` prints times).
"""

from __future__ import annotations

from collections.abc import Sequence

from experiments import UP_TO_BEV, Experiment

ITERATIONS = 500  # from random heads: far from the end of learning, but three seeds of all rows fit into two hours
HEADS_ONLY = 150
SHORT = {"ema.momentum": 0.01, "param_scheduler.0.end": 50, "param_scheduler.1.begin": 50}
STEPS_IN_THE_TIME = {"boxes": 1.53, "occupancy": 1.49, "lanes": 1.38}
"""Steps of each twin in the time of a joint step."""
BOXES = "bevformerv2_tiny_synthetic"
JOINT = "joint"


def shared(name: str, iterations: int = ITERATIONS, start: str = BOXES, **settings: object) -> Experiment:
    return Experiment(name, iterations, {**SHORT, **settings}, start=start, control=JOINT)


def alone(task: str, name: str, iterations: int) -> Experiment:
    labels = {f"train_dataloader.dataset.{own}": own == task for own in ("occupancy", "lanes")}
    return shared(name, iterations, **{"model.tasks": [task]}, **labels)


def twins(tasks: Sequence[str] = tuple(STEPS_IN_THE_TIME)) -> list[Experiment]:
    found = []
    for task in tasks:
        found.append(alone(task, f"{task} alone", ITERATIONS))
        found.append(alone(task, f"{task} alone, same time", round(ITERATIONS * STEPS_IN_THE_TIME[task])))
    return found


EXPERIMENTS = [
    shared(JOINT, gradient_log_interval=50),
    shared("equal voices", **{"model.loss_weights": {"occupancy": 2.5, "lanes": 1.0}}),
    shared("adapters", **{"model.adapters": True}),
    shared("joint, then heads alone", HEADS_ONLY, JOINT, **{"model.frozen": list(UP_TO_BEV)}),
    *twins(),
]
