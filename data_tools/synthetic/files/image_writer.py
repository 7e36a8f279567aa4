"""Labels for image models beside the tables: what one keyframe adds, and the files of a whole split.

    images/<split>/<name>.jpg             the camera images of samples/ (hard links where the disk has them)
    annotations/instances_<split>.json    COCO: boxes, masks, crowds ("coco")
    annotations/mono_<split>.json         3D boxes in camera coordinates, image by image ("mono")
    masks/<split>/<name>.png              a class for every pixel, named in masks/classes.json ("segmentation")
    crops/<split>/<class>/<name>__<n>.jpg one folder per class, named in crops/classes.json ("classes")
    v1.0-<split>/*.json                   tables of the nuImages schema, for the images in samples/ ("nuimages")

Names of images are those in samples/, which hold the camera's name; n is the object's number in its scene. Classes have
the same numbers in all sets.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ....core.files import atomic_path, write_json
from ...readers.lenses import lens_fields
from ..labels.instances import split_crowds
from ..labels.segments import DETECTION_CLASSES, IGNORE, SEGMENT_CLASSES, STUFF_CLASSES, segment_classes
from ..labels.visible import VisibleObject, visible_objects
from ..sensing.observe import CameraPicture, Observation
from ..sensing.sensors import RigCamera
from ..world.world import World
from .coco import Row, crowd_entry, instance_entry, mono_entry, write_coco
from .nuimages import object_rows, surface_rows

IMAGE_LABELS = ("classes", "coco", "mono", "nuimages", "segmentation")
MIN_CROP_SIDE_PX = 20
MIN_CROP_VISIBLE, MIN_CROP_INSIDE = 0.6, 0.7
_CROP_MARGIN = 0.1  # of the box's sides, on each of them
_CROP_QUALITY = 95
_NEED_IMAGES = {"coco", "mono", "segmentation"}
_NOT_OF_IMAGES = ("files", "instances", "boxes3d", "object_ann", "surface_ann")  # keys of a row


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
        objects: list[VisibleObject] = []
        if set(labels) != {"segmentation"}:
            objects = visible_objects(world, time_s, picture, camera, world.global_from_ego(time_s))
        single, crowds = split_crowds(objects, annotation_tokens, picture.image.shape[1])
        row: Row = {
            "file_name": name, "width": sensor["width"], "height": sensor["height"], "camera": picture.name,
            "camera_intrinsic": camera.camera.intrinsics.tolist(), "sample_data_token": sensor["token"], "files": [],
            **lens_fields(camera.camera),
        }  # fmt: skip
        if _NEED_IMAGES & set(labels):
            row["files"].append(_link(root, sensor["filename"], f"images/{world.split}/{name}"))
        if "segmentation" in labels:
            row["files"].append(_write_mask(root, f"masks/{world.split}/{Path(name).stem}.png", picture))
        if "classes" in labels:
            row["files"] += _write_crops(root, f"crops/{world.split}", Path(name).stem, picture, single)
        if "coco" in labels:
            row["instances"] = [instance_entry(picture, v, annotation_tokens[v.thing.instance]) for v in single]
            row["instances"] += [crowd_entry(picture, members, annotation_tokens) for members in crowds]
        if "mono" in labels:
            row["boxes3d"] = [
                entry
                for v in objects
                if (token := annotation_tokens.get(v.thing.instance))
                and (entry := mono_entry(v, token, int(seen.lidar_counts[v.thing.instance])))
            ]
        if "nuimages" in labels:
            row["object_ann"] = object_rows(picture, objects, sensor["token"])
            row["surface_ann"] = surface_rows(picture, sensor["token"])
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


def finish_image_labels(root: Path, labels: Collection[str], seed: int, split: str, rows: Sequence[Row]) -> None:
    """Write the files that say something about a whole split, but for nuImages'. rows: of its images, in order."""
    if "segmentation" in labels:
        classes = {"classes": list(SEGMENT_CLASSES), "stuff": list(STUFF_CLASSES), "things": list(DETECTION_CLASSES)}
        write_json(root / "masks" / "classes.json", classes | {"ignore_index": IGNORE}, indent=1)
    if "classes" in labels:
        write_json(root / "crops" / "classes.json", {"classes": sorted(DETECTION_CLASSES)}, indent=1)
    for label, name, entries in (("coco", "instances", "instances"), ("mono", "mono", "boxes3d")):
        if label in labels:
            path = root / "annotations" / f"{name}_{split}.json"
            write_coco(path, seed, split, rows, entries, _NOT_OF_IMAGES)
