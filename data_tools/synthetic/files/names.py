"""Tokens and category names of the tables."""

from __future__ import annotations

import hashlib

CATEGORY_OF_CLASS = {
    "car": "vehicle.car", "truck": "vehicle.truck", "bus": "vehicle.bus.rigid", "trailer": "vehicle.trailer",
    "construction_vehicle": "vehicle.construction", "pedestrian": "human.pedestrian.adult", "motorcycle":
    "vehicle.motorcycle", "bicycle": "vehicle.bicycle", "traffic_cone": "movable_object.trafficcone", "barrier":
    "movable_object.barrier",
}  # fmt: skip


def token(*parts: object) -> str:
    """A 32-digit token that depends only on the given parts."""
    return hashlib.md5("/".join(map(str, parts)).encode()).hexdigest()
