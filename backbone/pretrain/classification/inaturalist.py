"""iNaturalist 2018: COCO-like JSON files, and for the variant with metadata when and where each image was taken.

The encoding of dates and places is MetaFormer's (arXiv 2203.02751), with which InternImage-H's released iNaturalist
weights were trained: the month as sine and cosine (the hour's two numbers are 0), the place as a unit vector.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ....core.archives import is_plain_name
from ....core.errors import DataError
from ..image_files import image_bytes
from .batch import UNLABELLED
from .sources import Source, check_unique, read_json

UNKNOWN_DATE, UNKNOWN_PLACE = (0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0)


class INaturalistSource(Source):
    """ROOT/{part}2018.json and, with ``metadata``, ROOT/{part}2018_locations.json; images in ROOT.

    part: "train", "val" or "test" (which has no classes). Classes are numbered in the order of the file's categories,
    as released; their names are ``classes``.

    Raises DataError for a file that is missing or not of this form, an image without a category, and locations that
    are not one per image.
    """

    def __init__(self, root: str | Path, part: str = "train", year: int = 2018, metadata: bool = False) -> None:
        self.root = Path(root)
        self.file = self.root / f"{part}{year}.json"
        content = read_json(self.file, "images, annotations and categories")
        try:
            images = [(image["id"], str(image["file_name"])) for image in content["images"]]
            number = {category["id"]: i for i, category in enumerate(content.get("categories", []))}
            names = [str(category.get("name", category["id"])) for category in content.get("categories", [])]
            found = {entry["image_id"]: entry["category_id"] for entry in content.get("annotations", [])}
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{self.file}: not of iNaturalist's form ({error!r}); fetch it again") from None
        if not images:
            raise DataError(f"{self.file}: lists no image; fetch it again")
        if found and (lost := next((name for key, name in images if found.get(key) not in number), None)):
            raise DataError(f"{self.file}: {lost} has no category that the file lists; fetch it again")
        if len(number) < len(names):
            raise DataError(f"{self.file}: two categories have one id; fetch it again")
        self.class_names = names or None
        self.tokens = [name for _, name in images]
        check_unique(self.tokens, str(self.file))
        labels = [number[found[key]] if found else UNLABELLED for key, _ in images]
        self.labels = np.array(labels, np.int64)
        self._metadata: list[tuple[Sequence[float], Sequence[float]]] | None = None
        if metadata:
            path = self.root / f"{part}{year}_locations.json"
            entries = read_json(path, "date and place of each image")
            if not isinstance(entries, list) or len(entries) != len(images):
                raise DataError(
                    f"{path}: must list one date and place for each of {len(images)} images; fetch it again"
                )
            self._metadata = [(_temporal(entry, i, path), _spatial(entry, i, path)) for i, entry in enumerate(entries)]

    def read(self, index: int) -> bytes:
        token = self.tokens[index]
        if not is_plain_name(token):
            raise DataError(f"{self.file}: {token!r} leads out of {self.root}; fetch the file again")
        return image_bytes(self.root / token)

    def place(self, index: int) -> str:
        return str(self.root / self.tokens[index])

    def metadata(self, index: int) -> tuple[Sequence[float], Sequence[float]] | None:
        return None if self._metadata is None else self._metadata[index]


def _temporal(entry: Any, index: int, path: Path) -> Sequence[float]:
    date = _entry(entry, index, path).get("date")
    if not date:
        return UNKNOWN_DATE
    match = re.match(r"\d+-(\d+)-\d+", str(date).strip())
    if not match or not 1 <= int(match[1]) <= 12:
        raise DataError(
            f"{path}, entry {index}: date {date!r} is not YEAR-MONTH-DAY; correct it, or leave it out (null)"
        )
    angle = 2 * math.pi * int(match[1]) / 12
    return (math.sin(angle), math.cos(angle), 0.0, 0.0)


def _spatial(entry: Any, index: int, path: Path) -> Sequence[float]:
    latitude, longitude = (_entry(entry, index, path).get(key) for key in ("lat", "lon"))
    if latitude is None or longitude is None:
        return UNKNOWN_PLACE
    try:
        north, east = math.radians(float(latitude)), math.radians(float(longitude))
    except (TypeError, ValueError):
        north = math.inf
        east = 0.0
    if not abs(north) <= math.pi / 2 + 1e-9 or not math.isfinite(east):
        raise DataError(f"{path}, entry {index}: {latitude!r}, {longitude!r} is no latitude and longitude in degrees")
    return (math.cos(north) * math.cos(east), math.cos(north) * math.sin(east), math.sin(north))


def _entry(entry: Any, index: int, path: Path) -> Mapping[str, Any]:
    if not isinstance(entry, Mapping):
        raise DataError(f"{path}, entry {index}: not an object with date, lat and lon; fetch the file again")
    return entry
