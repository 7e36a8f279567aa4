"""What the switches of the lane head are worth: the lane head alone on stored features, from the weights
of one frame.

The street map's rows need sets with maps (``synthesize --labels occupancy lanes street_map``); with other maps, or
none, the same weights are scored again. docs/lane_topology.md.
"""

from __future__ import annotations

from typing import Any

from experiments import TINY, UP_TO_BEV, Experiment

ITERATIONS = 1000  # of two clips
HEAD = "model.lane_head."
LANES_ALONE: dict[str, Any] = {
    "model.tasks": ["lanes"],
    "model.frozen": list(UP_TO_BEV),
    "model.loss_weights": {"lanes": 1.0},
    "train_dataloader.dataset.occupancy": False,
    "train_dataloader.batch_size": 2,
}
END_MAP = {HEAD + "end_map": {"sigma_cells": 2.0}}
MANY = {HEAD + "one_to_many": {}}
STREETS = {HEAD + "street_map": {}, "train_dataloader.dataset.street_map": True}
WIDE = "perception_tiny_wide_synthetic"


def _row(name: str, *overrides: dict[str, Any], **arguments: Any) -> Experiment:
    merged = {key: value for own in (LANES_ALONE, *overrides) for key, value in own.items()}
    return Experiment(name, overrides=merged, **{"iterations": ITERATIONS, "stored_features": True} | arguments)


def _snapped(falloff_m: float) -> Experiment:
    far = {HEAD + "snap_radius_m": 3.0, HEAD + "snap_falloff_m": falloff_m}
    return _row(f"end map, snapped {falloff_m:g} m", END_MAP, far, iterations=0, start="end map")


def _told(name: str, **street_map: Any) -> Experiment:
    shown = {"test_dataset.street_map": street_map or True}
    return _row(f"street map: {name}", STREETS, shown, iterations=0, start="street map")


EXPERIMENTS = [
    _row("control"),
    _row("end map", END_MAP),
    *(_snapped(falloff_m) for falloff_m in (1.0, 2.0, 3.0)),
    _row("one to many", MANY),
    _row("map to 51 m", config=WIDE, start=TINY, adapt=True),
    _row("street map", STREETS),
    _told("own"),
    _told("off by 2 m", test_jitter_m=2.0),
    _told("off by 5 m", test_jitter_m=5.0),
    _told("other scene's", shown="other_scene"),
]
