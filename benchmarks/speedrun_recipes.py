"""Recipes of the speedrun: the trainings that lead from random weights to the demo's model, as data.

A stage is one `drivestack train`: its config, what it sets otherwise, and how it starts. Edit or add recipes here; the
program is speedrun.py, the rules and the table of records are in docs/speedrun.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

THREE, BOXES = "perception_tiny_synthetic", "bevformerv2_tiny_synthetic"
START, DRIVE = "perception_tiny_drive_start", "perception_tiny_drive"
ENCODER = ("img_backbone.", "img_neck.", "bev_map.")
"""Names of the parts up to the BEV map: what a stage of heads freezes."""
FEATURES = "{out}/features"


@dataclass(frozen=True)
class Stage:
    """One training. ``changes``: entries of the config by dotted key; ``{out}`` in a text is the speedrun's folder."""

    name: str
    config: str
    iterations: int
    changes: Mapping[str, Any] = field(default_factory=dict)
    start: str | None = "load_from"
    """How it takes the weights of the stage before, if there is one: "load_from" (the same model but for the config's
    ``new_parts``), "fine_tune" (what fits), or None: from random weights."""
    processes: int = 2
    """Of one thread each."""


@dataclass(frozen=True)
class Recipe:
    """sets: synthetic ones to train on, by the names in ``synthesize --recipe``; stages: in their order."""

    stages: tuple[Stage, ...]
    sets: tuple[str, ...] = ("train100", "train101")


def schedule(iterations: int, warm_up: int = 200, shape: str = "cosine") -> list[dict[str, Any]]:
    """Warm-up and decay over a whole stage. shape: "cosine" to a hundredth, or "linear" to zero."""
    first = {"type": "LinearLR", "start_factor": 0.05, "by_epoch": False, "begin": 0, "end": warm_up}
    span = {"by_epoch": False, "begin": warm_up, "end": iterations}
    if shape == "linear":
        return [first, {"type": "LinearLR", "start_factor": 1.0, "end_factor": 0.0, **span}]
    return [first, {"type": "CosineAnnealingLR", "eta_min_ratio": 0.01, **span}]


RECIPES = {
    # How the weights of 2026-11-20 came about (docs/tiny_model.md): 80 + 53 + 12 minutes.
    "2026-11-20": Recipe(
        sets=("train100", "train101", "train102"),
        stages=(
            Stage("boxes", BOXES, 10800),
            Stage("three", THREE, 6000),
            Stage(
                "lanes",
                THREE,
                4000,
                {
                    "model.tasks": ["lanes"],
                    "model.frozen": ["img_backbone.", "img_neck.", "pts_bbox_head."],
                    "model.loss_weights": {"lanes": 1.0},
                    "train_dataloader.dataset.occupancy": False,
                    "param_scheduler": schedule(4000),
                },
            ),
        ),
    ),
    # Boxes and depth with small images, then all tasks, frame by frame; then all heads and memories on stored maps.
    "drives": Recipe(
        sets=("train_drives",),
        stages=(
            Stage(
                "small",
                START,
                2400,
                {
                    "model.tasks": ["boxes"],
                    "train_dataloader.dataset.image.train_heights_px": (64,),
                    "train_dataloader.dataset.occupancy": False,
                    "train_dataloader.dataset.lanes": False,
                    "optim_wrapper.optimizer.lr": 7e-4,
                    "param_scheduler": schedule(2400)[:1],  # no decay: the next stage goes on
                },
            ),
            Stage("large", START, 2800, {"param_scheduler": schedule(2800, shape="linear")}),
            Stage(
                "heads",
                DRIVE,
                2200,
                {
                    "model.frozen": [*ENCODER],
                    "model.depth_teacher": None,
                    "train_dataloader.dataset.depth": False,
                    "train_dataloader.dataset.mirror": False,  # half as much to store
                    "cache_features": FEATURES,
                    "model.loss_weights": {"occupancy": 5.0, "lanes": 1.0},
                    "optim_wrapper.optimizer.lr": 6e-4,
                    "param_scheduler": schedule(2200, shape="linear"),
                },
                start="fine_tune",
            ),
        ),
    ),
}
DEFAULT = "drives"
