"""nuImages' tables in COCO's format, with the ten classes of nuScenes' detection task.

    python -m drivestack.data_tools.coco_files.nuimages data/nuimages v1.0-train train.json

Images are the keyframes; file names are relative to the root. Source: docs/schema_nuimages.md of nuscenes-devkit; masks
are COCO's run lengths, their letters in base64.
"""

from __future__ import annotations

import base64
import binascii
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ...core.errors import DataError
from ...core.files import write_json
from ..readers.nuscenes.reader import DETECTION_CLASS

CLASSES = tuple(dict.fromkeys(DETECTION_CLASS.values()))
Rows = Sequence[Mapping[str, Any]]


def convert(root: Path, version: str, out: Path) -> None:
    """Write ``out`` from the tables in ROOT/VERSION. Raises DataError."""
    names = ("sample_data", "object_ann", "category")
    write_json(out, as_coco(*(_table(root / version / f"{name}.json") for name in names)))


def _table(file: Path) -> Rows:
    try:
        rows = msgspec.json.decode(file.read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise DataError(f"{file}: not a table of nuImages ({error}); fetch the set's metadata again") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{file}: must be a list of rows; fetch the set's metadata again")
    return rows


def as_coco(sample_data: Rows, object_ann: Rows, category: Rows) -> dict[str, Any]:
    """COCO's structure; categories 1 to 10 as in CLASSES. Raises DataError for a row without what it must have."""
    try:
        names = {row["token"]: DETECTION_CLASS.get(row["name"]) for row in category}
        keyframes = [row for row in sample_data if row["is_key_frame"]]
        numbers = {row["token"]: i for i, row in enumerate(keyframes)}
        images = [
            {"id": i, "file_name": row["filename"], "width": row["width"], "height": row["height"]}
            for i, row in enumerate(keyframes)
        ]
        annotations: list[dict[str, Any]] = []
        for row in object_ann:
            name = names[row["category_token"]]
            if name is None or row["sample_data_token"] not in numbers:
                continue
            x0, y0, x1, y1 = row["bbox"]
            mask = _runs(row)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": numbers[row["sample_data_token"]],
                    "category_id": CLASSES.index(name) + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                    **({} if mask is None else {"segmentation": mask}),
                }
            )
    except (LookupError, TypeError, ValueError) as error:
        raise DataError(f"nuImages: a row lacks or spoils a field ({error}); fetch the set's metadata again") from None
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    return {"images": images, "categories": categories, "annotations": annotations}


def _runs(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """The mask with its letters as they are in COCO's files."""
    mask = row.get("mask")
    if mask is None:
        return None
    try:
        return {"size": mask["size"], "counts": base64.b64decode(mask["counts"], validate=True).decode("ascii")}
    except (binascii.Error, UnicodeDecodeError) as error:
        raise DataError(f"nuImages: object_ann {row.get('token')}: mask is not base64 ({error})") from None


if __name__ == "__main__":
    convert(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
