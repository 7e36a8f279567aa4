"""What the voxel head can learn from, with everything up to the BEV map frozen: masks, rays, counted classes.

The BEV maps are computed once (--features).
"""

from __future__ import annotations

from experiments import UP_TO_BEV, Experiment

ITERATIONS = 600
HEAD = "model.occupancy_head"
COUNTED = {"counts_by_class": [f"{HEAD}.class_frequency"]}
MIXED = {f"{HEAD}.mask": "mixed"}
RAYS = {f"{HEAD}.ray_loss": {"weight": 0.2}}
BIAS = {f"{HEAD}.free_bias": 1.5}
COLUMNS = {f"{HEAD}.column_weights": "frequency", **COUNTED}


def voxels_alone(name: str, **settings: object) -> Experiment:
    """The occupancy head learns, nothing else."""
    frozen = {
        "model.tasks": ["occupancy"],
        "model.frozen": list(UP_TO_BEV),
        "train_dataloader.dataset.lanes": False,
    }
    return Experiment(name, ITERATIONS, {**frozen, **settings}, stored_features=True)


EXPERIMENTS = [
    voxels_alone("control"),
    voxels_alone("mixed mask", **MIXED),
    voxels_alone("rays", **RAYS),
    voxels_alone("rays from 15 m along the drive", **{f"{HEAD}.ray_loss": {"weight": 0.2, "spread_m": 15.0}}),
    voxels_alone("columns by frequency", **COLUMNS),
    voxels_alone("class weights", **{f"{HEAD}.class_weights": "log_frequency"}, **COUNTED),
    voxels_alone("mixed mask, rays, columns", **MIXED, **RAYS, **COLUMNS),
    voxels_alone("mixed mask, rays, bias for free", **MIXED, **RAYS, **BIAS),
    Experiment("as shipped", 0),
    Experiment("as shipped, bias for free", 0, BIAS),
]
