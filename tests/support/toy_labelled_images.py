"""Images of coloured rectangles on grey with COCO annotations and masks, as `drivestack synthesize` lays them out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from drivestack.core.files import write_json
from drivestack.core.rle import encode_rle

CLASSES = ("red", "green", "blue")
WIDTH_PX, HEIGHT_PX = 64, 48


def write_rectangles(root: Path, split: str, count: int, seed: int = 0) -> None:
    """``count`` images with one to three rectangles each; the class is the colour, background is class 3 of masks."""
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    for folder in (f"images/{split}", f"masks/{split}"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = rng.normal(110, 10, (HEIGHT_PX, WIDTH_PX, 3))
        classes = np.full((HEIGHT_PX, WIDTH_PX), len(CLASSES), np.uint8)
        for label in rng.permutation(len(CLASSES))[: rng.integers(1, 4)]:
            width, height = rng.integers(14, 26, 2)
            x, y = rng.integers(0, WIDTH_PX - width), rng.integers(0, HEIGHT_PX - height)
            mask = np.zeros((HEIGHT_PX, WIDTH_PX), bool)
            mask[y : y + height, x : x + width] = True
            pixels[mask] = 30
            pixels[mask, label] = 220
            classes[mask] = label
            for own in annotations:
                own["mask"] &= ~mask if own["image_id"] == number else True
            annotations.append({"image_id": number, "category_id": int(label) + 1, "mask": mask})
        name = f"{number:03d}"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / "images" / split / f"{name}.png")
        Image.fromarray(classes).save(root / "masks" / split / f"{name}.png")
        images.append({"id": number, "file_name": f"{name}.png", "width": WIDTH_PX, "height": HEIGHT_PX})
    rows = []
    for own in annotations:
        mask = own.pop("mask")
        if not mask.any():
            continue
        columns, lines = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
        box = [int(columns[0]), int(lines[0]), int(np.ptp(columns)) + 1, int(np.ptp(lines)) + 1]
        area = int(mask.sum())
        rows.append(
            {**own, "id": len(rows) + 1, "bbox": box, "area": area, "iscrowd": 0, "segmentation": encode_rle(mask)}
        )
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    coco = {"images": images, "categories": categories, "annotations": rows}
    write_json(root / "annotations" / f"instances_{split}.json", coco)
    write_json(root / "masks" / "classes.json", {"classes": [*CLASSES, "background"]})
