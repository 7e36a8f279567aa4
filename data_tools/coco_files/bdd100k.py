"""BDD100K's detection labels in COCO's format.

    python -m drivestack.data_tools.coco_files.bdd100k det_train.json train.json

Source: the format page of BDD100K's documentation (Scalabel: name, labels with category and box2d x1, y1, x2, y2; the
last pixels are part of the box). Images are 1280 x 720.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ...core.errors import DataError
from ...core.files import write_json
from ...core.once import warn_once

CLASSES = (
    "pedestrian",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
    "traffic light",
    "traffic sign",
)
OLD_NAMES = {"person": "pedestrian", "motor": "motorcycle", "bike": "bicycle"}
"""Of the labels of 2018."""
SIZE_PX = (1280, 720)
CROWD = "crowd"


def convert(labels: Path, out: Path) -> None:
    """Write ``out`` from a file of BDD100K's labels. Raises DataError."""
    try:
        frames = msgspec.json.decode(labels.read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise DataError(f"{labels}: not BDD100K's labels ({error}); fetch det_20 of the set again") from None
    if not isinstance(frames, list) or not all(
        isinstance(f, Mapping) and isinstance(f.get("name"), str) for f in frames
    ):
        raise DataError(f"{labels}: must be a list of images with a name; fetch det_20 of the set again")
    write_json(out, as_coco(frames, labels))


def as_coco(frames: list[Mapping[str, Any]], where: Path) -> dict[str, Any]:
    """COCO's structure of Scalabel frames; categories 1 to 10 as in CLASSES, crowds as such."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    others = set()
    for number, frame in enumerate(frames):
        images.append({"id": number, "file_name": frame["name"], "width": SIZE_PX[0], "height": SIZE_PX[1]})
        for label in frame.get("labels") or ():
            name = OLD_NAMES.get(label.get("category"), label.get("category"))
            if name not in CLASSES or "box2d" not in label:
                others.add(str(name))
                continue
            try:
                x1, y1, x2, y2 = (float(label["box2d"][corner]) for corner in ("x1", "y1", "x2", "y2"))
            except (KeyError, TypeError, ValueError):
                raise DataError(f"{where}: image {frame['name']}: box2d must have x1, y1, x2, y2") from None
            box = [x1, y1, x2 - x1 + 1, y2 - y1 + 1]
            attributes = label.get("attributes") or {}
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": CLASSES.index(name) + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(bool(label.get(CROWD, attributes.get(CROWD, False)))),
                }
            )
    if others:
        warn_once(
            f"{where}: labels of other categories, or without a box, are left out: {', '.join(sorted(others)[:6])}"
        )
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    return {"images": images, "categories": categories, "annotations": annotations}


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
