"""The synthetic images in the schema of nuImages v1.0: one sample per image, 2D box and mask of every visible object.

Unlike COCO's file there are no crowds: nuImages labels each object by itself, down to one pixel here. ``bbox`` is
amodal, around all that would be visible with nothing in front. The surface is flat.driveable_surface. No image shows
the own car, so vehicle.ego has no mask. There are no sweeps. Source: docs/schema_nuimages.md of nuscenes-devkit.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ....core.rle import encode_rle
from ..labels.visible import VisibleObject
from ..sensing.observe import CameraPicture
from ..world.mesh import Semantic
from ..world.world import World
from .names import CATEGORY_OF_CLASS, token

Row = dict[str, Any]

_ROAD = "flat.driveable_surface"
_MORE_CATEGORIES = (_ROAD, "vehicle.ego")  # beside those of nuScenes
_STEP_S = 0.05  # of the differences that give speeds
_GRAVITY_MPS2 = 9.81


def object_rows(picture: CameraPicture, seen: Sequence[VisibleObject], image_token: str) -> list[Row]:
    """Rows of object_ann of one image. image_token: of its sample_data."""
    return [
        {
            "token": token("object_ann", image_token, v.thing.instance),
            "sample_data_token": image_token,
            "category_token": token("category", CATEGORY_OF_CLASS[v.thing.name]),
            "attribute_tokens": [token("attribute", a)] if (a := v.thing.attribute_at(v.time_s)) else [],
            "bbox": list(v.whole_xyxy_px),
            "mask": _mask(picture.instance == v.thing.instance),
        }
        for v in seen
    ]


def surface_rows(picture: CameraPicture, image_token: str) -> list[Row]:
    """Rows of surface_ann of one image."""
    road = picture.semantic == Semantic.DRIVEABLE_SURFACE
    if not road.any():
        return []
    row = {"token": token("surface_ann", image_token), "sample_data_token": image_token}
    return [row | {"category_token": token("category", _ROAD), "mask": _mask(road)}]


def _mask(mask: np.ndarray) -> Row:
    rle = encode_rle(mask)
    return rle | {"counts": base64.b64encode(rle["counts"].encode()).decode()}


def motion_row(world: World, time_s: float) -> Row:
    """What nuImages' ego_pose has beside that of nuScenes."""
    around = time_s + np.array([-_STEP_S, 0.0, _STEP_S])
    s = world.ego.arc_length(around)
    yaw = np.unwrap(world.ego.poses(around)[1])
    speed, yaw_rate = (s[2] - s[0]) / (2 * _STEP_S), (yaw[2] - yaw[0]) / (2 * _STEP_S)
    ahead = (s[2] - 2 * s[1] + s[0]) / _STEP_S**2
    return {
        "rotation_rate": [0.0, 0.0, float(yaw_rate)],
        "acceleration": [float(ahead), float(speed * yaw_rate), _GRAVITY_MPS2],
        "speed": float(speed),
    }


def nuimages_tables(
    tables: Mapping[str, Sequence[Row]], motions: Mapping[str, Row], images: Sequence[Row]
) -> dict[str, list[Row]]:
    """The ten tables of one split.

    tables: those of nuScenes. motions: by ego_pose token. images: the split's rows, with object_ann and surface_ann.
    """
    used = {row["sample_data_token"] for row in images}
    cameras = [row for row in tables["sample_data"] if row["token"] in used]
    scans = {row["sample_token"]: row for row in tables["sample_data"] if row["fileformat"] == "pcd"}
    scene_of = {row["token"]: row["scene_token"] for row in tables["sample"]}
    log_of = {row["token"]: row["log_token"] for row in tables["scene"]}
    out: dict[str, list[Row]] = {"sample": [], "sample_data": []}
    for camera in cameras:
        sample, scan = token("nuimages", camera["token"]), token("nuimages lidar", camera["token"])
        out["sample"].append(
            {
                "token": sample,
                "timestamp": camera["timestamp"],
                "log_token": log_of[scene_of[camera["sample_token"]]],
                "key_camera_token": camera["token"],
                "key_lidar_token": scan,
            }
        )
        alone = {"sample_token": sample, "prev": "", "next": ""}
        out["sample_data"] += [camera | alone, scans[camera["sample_token"]] | {"token": scan} | alone]
    poses = {row["ego_pose_token"] for row in cameras}
    logs = {row["log_token"] for row in out["sample"]}
    more = [{"token": token("category", n), "name": n, "description": "synthetic"} for n in _MORE_CATEGORIES]
    return out | {
        "attribute": list(tables["attribute"]),
        "sensor": list(tables["sensor"]),
        "calibrated_sensor": [
            row | {"camera_distortion": row.get("camera_distortion", [0.0] * 5 if row["camera_intrinsic"] else [])}
            for row in tables["calibrated_sensor"]
        ],
        "category": [{key: row[key] for key in ("token", "name", "description")} for row in tables["category"]] + more,
        "ego_pose": [row | motions[row["token"]] for row in tables["ego_pose"] if row["token"] in poses],
        "log": [row for row in tables["log"] if row["token"] in logs],
        "object_ann": [row for image in images for row in image["object_ann"]],
        "surface_ann": [row for image in images for row in image["surface_ann"]],
    }
