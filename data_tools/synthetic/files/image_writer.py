"""Labels for image models beside the tables: what one keyframe adds, and the files of a whole split.

    images/<split>/<name>.jpg                   the camera images of samples/ (hard links where the disk has them)
    annotations/instances_<split>.json          COCO: boxes, masks, crowds ("coco")
    masks/<split>/<name>.png, masks/classes.json   a class for every pixel ("segmentation")
    crops/<split>/<class>/<name>__<object>.jpg, crops/classes.json   one folder per class ("classes")
    annotations/mono_<split>.json               3D boxes in camera coordinates, image by image ("mono")

Names of images are those of samples/, which hold the camera's name. Categories have the same numbers in both splits.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ....core.files import atomic_path, write_json
from ....core.rle import encode_rle
from ..labels.instances import split_crowds
from ..labels.segments import DETECTION_CLASSES, IGNORE, SEGMENT_CLASSES, STUFF_CLASSES, segment_classes
from ..labels.visible import VisibleObject, visible_objects
from ..sensing.observe import CameraPicture, Observation
from ..sensing.sensors import RigCamera
from ..world.world import WORLD_VERSION, World

IMAGE_LABELS = ("classes", "coco", "segmentation")
MIN_CROP_SIDE_PX = 20
MIN_CROP_VISIBLE, MIN_CROP_INSIDE = 0.6, 0.7
_CROP_MARGIN = 0.1  # of the box's sides, on each of them
_CROP_QUALITY = 95
_SUPERCATEGORY = {"pedestrian": "human", "barrier": "movable_object", "traffic_cone": "movable_object"}
"""All others are vehicles."""

Row = dict[str, Any]


def write_image_labels(
    world: World,
    time_s: float,
    root: Path,
    rig: Sequence[RigCamera],
    labels: Collection[str],
    seen: Observation,
    sensors: Sequence[Mapping[str, Any]],
    annotation_tokens: Mapping[int, str],
) -> list[Row]:
    """Write one keyframe's images, masks and crops below ``root``; return one row per image, not numbered yet.

    labels: of IMAGE_LABELS. sensors: the keyframe's rows of sample_data, cameras first. annotation_tokens: of the
    objects that have a 3D label at this keyframe, by instance number.
    """
    rows = []
    for picture, camera, sensor in zip(seen.pictures, rig, sensors):
        name = Path(sensor["filename"]).name
        objects = visible_objects(world, time_s, picture, camera, world.global_from_ego(time_s))
        single, crowds = split_crowds(objects, annotation_tokens, picture.image.shape[1])
        row: Row = {
            "file_name": name, "width": sensor["width"], "height": sensor["height"], "camera": picture.name,
            "sample_data_token": sensor["token"], "files": [],
        }  # fmt: skip
        if set(labels) - {"classes"}:
            row["files"].append(_link(root, sensor["filename"], f"images/{world.split}/{name}"))
        if "segmentation" in labels:
            row["files"].append(_write_mask(root, f"masks/{world.split}/{Path(name).stem}.png", picture))
        if "classes" in labels:
            row["files"] += _write_crops(root, f"crops/{world.split}", Path(name).stem, picture, single)
        if "coco" in labels:
            row["instances"] = [_instance(picture, v, annotation_tokens[v.thing.instance]) for v in single]
            row["instances"] += [_crowd(picture, members, annotation_tokens) for members in crowds]
        rows.append(row)
    return rows


def _link(root: Path, source: str, target: str) -> str:
    """The same file under a second name, without room on the disk where that can be."""
    path = root / target
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    try:
        os.link(root / source, path)
    except OSError:  # a file system without hard links
        with atomic_path(path, sync=False) as temporary:
            temporary.write_bytes((root / source).read_bytes())
    return target


def _write_mask(root: Path, target: str, picture: CameraPicture) -> str:
    with atomic_path(root / target, sync=False) as path:
        Image.fromarray(segment_classes(picture)).save(path)
    return target


def _write_crops(root: Path, folder: str, stem: str, picture: CameraPicture, seen: list[VisibleObject]) -> list[str]:
    """Pictures of the objects that are large and whole enough to be named, with a little of what is around them."""
    height_px, width_px = picture.image.shape[:2]
    written = []
    for v in seen:
        left, top, right, bottom = v.box_xyxy_px
        if (
            min(right - left, bottom - top) < MIN_CROP_SIDE_PX
            or v.visible_share < MIN_CROP_VISIBLE
            or v.inside_share < MIN_CROP_INSIDE
        ):
            continue
        across, down = round(_CROP_MARGIN * (right - left)), round(_CROP_MARGIN * (bottom - top))
        part = picture.image[
            max(top - down, 0) : min(bottom + down, height_px), max(left - across, 0) : min(right + across, width_px)
        ]
        target = f"{folder}/{v.thing.name}/{stem}__{v.thing.instance:03d}.jpg"
        with atomic_path(root / target, sync=False) as path:
            Image.fromarray(part).save(path, quality=_CROP_QUALITY)
        written.append(target)
    return written


def _entry(name: str, mask: np.ndarray, iscrowd: int) -> Row:
    """The part of COCO's annotation that follows from a mask."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    left, top = int(columns[0]), int(rows[0])
    return {
        "category_id": DETECTION_CLASSES.index(name) + 1,
        "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
        "area": int(mask.sum()),
        "iscrowd": iscrowd,
        "segmentation": encode_rle(mask),
    }


def _instance(picture: CameraPicture, v: VisibleObject, annotation_token: str) -> Row:
    entry = _entry(v.thing.name, picture.instance == v.thing.instance, 0)
    shares = {"visible_share": round(v.visible_share, 4), "inside_share": round(v.inside_share, 4)}
    return entry | {"sample_annotation_token": annotation_token} | shares


def _crowd(picture: CameraPicture, members: list[VisibleObject], annotation_tokens: Mapping[int, str]) -> Row:
    numbers = [v.thing.instance for v in members]
    entry = _entry(members[0].thing.name, np.isin(picture.instance, numbers), 1)
    return entry | {"sample_annotation_tokens": [annotation_tokens[n] for n in numbers if n in annotation_tokens]}


def finish_image_labels(root: Path, labels: Collection[str], seed: int, split: str, rows: Sequence[Row]) -> None:
    """Write the files that say something about a whole split. rows: of its images, in order."""
    if "segmentation" in labels:
        classes = {"classes": list(SEGMENT_CLASSES), "stuff": list(STUFF_CLASSES), "things": list(DETECTION_CLASSES)}
        write_json(root / "masks" / "classes.json", classes | {"ignore_index": IGNORE}, indent=1)
    if "classes" in labels:
        write_json(root / "crops" / "classes.json", {"classes": sorted(DETECTION_CLASSES)}, indent=1)
    if "coco" in labels:
        content = {"info": _info(seed, split), "licenses": []} | _coco(rows)
        write_json(root / "annotations" / f"instances_{split}.json", content)


def _info(seed: int, split: str) -> Row:
    return {
        "description": f"drivestack synthetic streets, seed {seed}, {split}", "version": str(WORLD_VERSION),
        "year": 2026, "contributor": "drivestack synthesize", "url": "", "date_created": "2026/01/01",
    }  # fmt: skip


def _coco(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Images and annotations with numbers from 1, and the categories."""
    images: list[Row] = []
    annotations: list[Row] = []
    for number, row in enumerate(rows, 1):
        images.append({"id": number} | {key: row[key] for key in row if key not in ("files", "instances")})
        for entry in row["instances"]:
            annotations.append({"id": len(annotations) + 1, "image_id": number} | entry)
    return {"images": images, "annotations": annotations, "categories": categories()}


def categories() -> list[Row]:
    """COCO's categories, numbered from 1 in the order of DETECTION_CLASSES."""
    return [
        {"id": i, "name": name, "supercategory": _SUPERCATEGORY.get(name, "vehicle")}
        for i, name in enumerate(DETECTION_CLASSES, 1)
    ]
