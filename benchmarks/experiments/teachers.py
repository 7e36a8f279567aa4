"""What teachers that vanish at inference are worth: depth of pixels, ray denoising, quality. docs/teachers.md.

Boxes alone, on from the shipped weights of plain streets to drives that turn and a map to 51 m. "depth of other images"
is the control of depth: the same head and loss with labels that say nothing of the image.
"""

from __future__ import annotations

from typing import Any

from drivestack.bev.boxes.denoising import RayDenoising
from drivestack.bev.perspective.depth import DepthTeacher
from experiments import Experiment

ITERATIONS = 500
BOXES = "bevformerv2_tiny_synthetic"
BOXES_ALONE: dict[str, Any] = {
    "model.tasks": ["boxes"],
    "model.depth_teacher": None,
    **{f"train_dataloader.dataset.{label}": False for label in ("occupancy", "lanes", "depth")},
    "optim_wrapper.optimizer.lr": 4e-4,
    "ema.momentum": 0.01,
    "param_scheduler.0.end": 50,
    "param_scheduler.1.begin": 50,
}
RAYS = {"model.boxes.ray_denoising": dict(type=RayDenoising)}
QUALITY = {"model.boxes.head.quality_weight": 1.0}


def depth(**settings: Any) -> dict[str, Any]:
    return {"model.depth_teacher": dict(type=DepthTeacher, **settings), "train_dataloader.dataset.depth": True}


def experiment(name: str, overrides: dict[str, Any], **settings: Any) -> Experiment:
    settings = {"config": "perception_tiny_drive_start", "start": BOXES, "adapt": True, **settings}
    return Experiment(name, settings.pop("iterations", ITERATIONS), {**BOXES_ALONE, **overrides}, **settings)


EXPERIMENTS = [
    experiment("control", {}),
    experiment("depth", depth(weight=1.2)),
    experiment("depth of other images", depth(weight=1.2, shuffled=True)),
    experiment("rays", RAYS),
    experiment("quality", QUALITY),
    # the same weights, ranked by score times centerness
    experiment(
        "quality, rescored",
        {**QUALITY, "model.boxes.head.rescore": True},
        iterations=0,
        start="quality",
        control="quality",
    ),
    experiment("all", {**depth(weight=1.2), **RAYS, **QUALITY}),
]
