"""What teachers that vanish at inference are worth: depth of pixels, ray denoising, quality. docs/teachers.md.

All start from the boxes' shipped weights with voxels and lanes at random, as the shipped model was trained, at equal
iterations. "depth of other images" is the control of depth: the same head and loss with labels that say nothing of the
image.
"""

from __future__ import annotations

from typing import Any

from drivestack.bev.boxes.denoising import RayDenoising
from drivestack.bev.perspective.depth import DepthTeacher
from experiments import Experiment

ITERATIONS = 2000
BOXES = "bevformerv2_tiny_synthetic"
NEW = ("occupancy_head.", "lane_head.", "depth_teacher.", "pts_bbox_head.quality_branch.")
RAYS = {"model.boxes.ray_denoising": dict(type=RayDenoising)}
QUALITY = {"model.boxes.head.quality_weight": 1.0}


def depth(**settings: Any) -> dict[str, Any]:
    return {"model.depth_teacher": dict(type=DepthTeacher, **settings), "train_dataloader.dataset.depth": True}


def experiment(name: str, overrides: dict[str, Any], **settings: Any) -> Experiment:
    return Experiment(name, ITERATIONS, {"new_parts": NEW, **overrides}, start=BOXES, **settings)


EXPERIMENTS = [
    experiment("control", {}),
    experiment("depth 0.5", depth(weight=0.5)),
    experiment("depth 1.2", depth(weight=1.2)),
    experiment("depth of other images", depth(weight=1.2, shuffled=True)),
    experiment("rays", RAYS),
    experiment("quality", QUALITY),
    # the same weights (no step is taken), ranked by score times centerness
    Experiment(
        "quality, rescored",
        1,
        {**QUALITY, "model.boxes.head.rescore": True, "optim_wrapper.optimizer.lr": 0.0},
        start="quality",
        control="quality",
    ),
    experiment("all", {**depth(weight=1.2), **RAYS, **QUALITY}),
]
