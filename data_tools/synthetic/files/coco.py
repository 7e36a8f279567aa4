"""COCO's files of the synthetic images: instances and crowds with masks, and 3D boxes in camera coordinates.

``annotations/instances_<split>.json`` is plain COCO. Beside its keys an instance names its ``sample_annotation_token``
(a crowd ``sample_annotation_tokens``, of those members that have one), and an image its ``sample_data_token``.

``annotations/mono_<split>.json`` has the same images and categories, each image with its ``camera_intrinsic`` (and the
lens, as readers/lenses.py reads it), and one annotation for each labelled object that has a visible pixel and no corner
behind the camera:

    bbox              2D box [x, y, width, height] that spans the 3D box, clipped to the image
    inside_share      of that box before it was clipped
    visible_bbox, area, visible_share   of the visible pixels; the share is of those it would have with nothing in front
    centre_camera_m   [3] centre of the 3D box, x right, y down, z ahead
    rotation_camera   [4] quaternion (w, x, y, z), camera from box, whose x is the heading
    size_lwh_m        [3]
    speed_mps, attribute ('' where a class has none), num_lidar_pts, sample_annotation_token

Pixel (0, 0) has its centre at the projection (0, 0), so a box of pixels begins half a pixel before its first centre.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ....core.files import write_json
from ....core.rle import encode_rle
from ....geometry.poses import matrix_to_quaternion
from ..labels.segments import DETECTION_CLASSES
from ..labels.visible import PixelBox, VisibleObject
from ..sensing.observe import CameraPicture
from ..world.world import WORLD_VERSION

Row = dict[str, Any]

_SUPERCATEGORY = {"pedestrian": "human", "barrier": "movable_object", "traffic_cone": "movable_object"}
"""All others are vehicles."""


def instance_entry(picture: CameraPicture, v: VisibleObject, annotation_token: str) -> Row:
    """The annotation of one object; ids follow when a split is whole."""
    entry = _entry(v.thing.name, picture.instance == v.thing.instance, 0)
    shares = {"visible_share": round(v.visible_share, 4), "inside_share": round(v.inside_share, 4)}
    return entry | {"sample_annotation_token": annotation_token} | shares


def crowd_entry(picture: CameraPicture, members: Sequence[VisibleObject], annotation_tokens: Mapping[int, str]) -> Row:
    """The annotation of one crowd region."""
    numbers = [v.thing.instance for v in members]
    entry = _entry(members[0].thing.name, np.isin(picture.instance, numbers), 1)
    return entry | {"sample_annotation_tokens": [annotation_tokens[n] for n in numbers if n in annotation_tokens]}


def _entry(name: str, mask: np.ndarray, iscrowd: int) -> Row:
    """The part of COCO's annotation that follows from a mask."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return {
        "category_id": _category_id(name),
        "bbox": _xywh((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)),
        "area": int(mask.sum()),
        "iscrowd": iscrowd,
        "segmentation": encode_rle(mask),
    }


def mono_entry(v: VisibleObject, annotation_token: str, num_lidar_points: int) -> Row | None:
    """The 3D box of one object in camera coordinates; None where a corner is behind the camera."""
    if v.projected_xyxy_px is None:
        return None
    left, top, right, bottom = (round(float(value), 3) for value in v.projected_xyxy_px)
    return {
        "category_id": _category_id(v.thing.name),
        "bbox": [left, top, round(right - left, 3), round(bottom - top, 3)],
        "iscrowd": 0,
        "inside_share": round(v.inside_share, 4),
        "visible_bbox": _xywh(v.box_xyxy_px),
        "area": v.area_px,
        "visible_share": round(v.visible_share, 4),
        "centre_camera_m": v.centre_camera_m.tolist(),
        "rotation_camera": matrix_to_quaternion(v.rotation_camera).tolist(),
        "size_lwh_m": list(v.thing.size_lwh),
        "speed_mps": v.thing.motion.speed_at(v.time_s),
        "attribute": v.thing.attribute_at(v.time_s),
        "num_lidar_pts": num_lidar_points,
        "sample_annotation_token": annotation_token,
    }


def _category_id(name: str) -> int:
    return DETECTION_CLASSES.index(name) + 1


def _xywh(box: PixelBox) -> list[int]:
    left, top, right, bottom = box
    return [left, top, right - left, bottom - top]


def write_coco(
    path: Path, seed: int, split: str, rows: Sequence[Row], entries: str, leave_out: Collection[str]
) -> None:
    """One file of a split. rows: of its images; entries: the key with their annotations; leave_out: keys that do not
    belong to COCO's images."""
    images: list[Row] = []
    annotations: list[Row] = []
    for number, row in enumerate(rows, 1):
        images.append({"id": number} | {key: row[key] for key in row if key not in leave_out})
        for entry in row[entries]:
            annotations.append({"id": len(annotations) + 1, "image_id": number} | entry)
    info = {
        "description": f"drivestack synthetic streets, seed {seed}, {split}", "version": str(WORLD_VERSION),
        "year": 2026, "contributor": "drivestack synthesize", "url": "", "date_created": "2026/01/01",
    }  # fmt: skip
    content = {"info": info, "licenses": [], "images": images, "annotations": annotations, "categories": categories()}
    write_json(path, content)


def categories() -> list[Row]:
    """COCO's categories, numbered from 1 in the order of DETECTION_CLASSES, the same in all sets."""
    return [
        {"id": _category_id(name), "name": name, "supercategory": _SUPERCATEGORY.get(name, "vehicle")}
        for name in DETECTION_CLASSES
    ]
