"""Recipes of the speedrun: the trainings that lead from random weights to a model for the demo's scenes, as data.

A stage is one `drivestack train`: its config, what it sets otherwise, and how it starts. Edit or add recipes here; the
program is speedrun.py, the rules and the table of records are in docs/speedrun.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from experiments import UP_TO_BEV

THREE, BOXES = "perception_tiny_synthetic", "bevformerv2_tiny_synthetic"
TEACHERS = "perception_tiny_teachers"
LAST = "perception_tiny_speedrun"
VOICES = {"model.loss_weights": {"occupancy": 5.0, "lanes": 1.0}}
HEIGHTS = "train_dataloader.dataset.image.train_heights_px"
ON_STORED = {"cache_features": "{out}/features", "train_dataloader.dataset.mirror": False}
"""Without the mirror there is half as much to store."""
CENTRES = {"model.boxes.bev_proposals.cls_weight": 3.0, "model.boxes.bev_proposals.bbox_weight": 0.75}
"""The centres on the map count three times as much as usual."""
MAP_FIRST = {
    **CENTRES,
    "model.tasks": ["boxes", "occupancy"],
    "train_dataloader.dataset.lanes": False,
    "model.boxes.ray_denoising": None,
    "model.boxes.head.quality_weight": 0.0,
    "model.boxes.head.num_layers": 1,
    "model.boxes.head.num_groups": 1,
}
"""What a stage learns whose purpose is the BEV map; of the teachers depth alone."""


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


def warm_up(until: int) -> list[dict[str, Any]]:
    """Without decay: the next stage goes on."""
    return [{"type": "LinearLR", "start_factor": 0.05, "by_epoch": False, "begin": 0, "end": until}]


def cosine(iterations: int) -> list[dict[str, Any]]:
    """Warm-up and decay to a hundredth over a whole stage."""
    span = {"by_epoch": False, "begin": 200, "end": iterations}
    return [*warm_up(200), {"type": "CosineAnnealingLR", "eta_min_ratio": 0.01, **span}]


def linear(iterations: int, last: float = 0.0) -> list[dict[str, Any]]:
    """A short warm-up and decay over a whole stage, to ``last`` of the rate."""
    span = {"by_epoch": False, "begin": 50, "end": iterations}
    return [*warm_up(50), {"type": "LinearLR", "start_factor": 1.0, "end_factor": last, **span}]


SMALL_IMAGES = (
    Stage(
        "small",
        TEACHERS,
        2200,
        {**MAP_FIRST, HEIGHTS: (64,), "optim_wrapper.optimizer.lr": 1.2e-3, "param_scheduler": warm_up(200)},
    ),
    Stage(
        "middle",
        TEACHERS,
        2600,
        {**MAP_FIRST, HEIGHTS: (96,), "optim_wrapper.optimizer.lr": 1e-3, "param_scheduler": warm_up(100)},
    ),
)
"""The map first, from all that is dense (voxels, depth, centres) with small images and the least decoder."""


def large(iterations: int) -> Stage:
    """All three tasks, frame by frame."""
    rates = {"optim_wrapper.optimizer.lr": 7e-4, "param_scheduler": linear(iterations)}
    return Stage("large", THREE, iterations, {**VOICES, **CENTRES, **rates}, start="fine_tune")  # a deeper decoder


def on_stored(name: str, iterations: int, frozen: tuple[str, ...] = (), last: float = 0.0, **more: Any) -> Stage:
    """The model with its memories above stored maps; stages that follow one another share the store."""
    rates = {"optim_wrapper.optimizer.lr": 4e-4, "param_scheduler": linear(iterations, last)}
    fixed = {"model.frozen": [*UP_TO_BEV, *frozen]}
    return Stage(name, LAST, iterations, {**ON_STORED, **VOICES, **fixed, **rates, **more})


THREE_SETS = ("train100", "train101", "train102")
NO_VOXELS = {"train_dataloader.dataset.occupancy": False}

RECIPES = {
    # How the weights of 2026-11-20 came about (docs/tiny_model.md): 80 + 53 + 12 minutes.
    "2026-11-20": Recipe(
        sets=THREE_SETS,
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
                    "param_scheduler": cosine(4000),
                },
            ),
        ),
    ),
    # Plain streets: the map, all three tasks, the same with memories, and lanes above a memory that stays.
    "dense": Recipe(
        sets=THREE_SETS,
        stages=(
            *SMALL_IMAGES,
            large(1500),
            on_stored("memory", 2000),
            on_stored("lanes", 1200, ("memory.",), **{"model.tasks": ["lanes"]}, **NO_VOXELS),
        ),
    ),
    # The same with less for voxels, which are learned early, and more for boxes and lanes.
    "late": Recipe(
        sets=THREE_SETS,
        stages=(
            *SMALL_IMAGES,
            large(1400),
            on_stored("memory", 900, last=0.3, **CENTRES),
            on_stored("heads", 2600, ("memory.",), **{"model.tasks": ["boxes", "lanes"]}, **NO_VOXELS, **CENTRES),
        ),
    ),
}
DEFAULT = "dense"
