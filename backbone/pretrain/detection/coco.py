"""Data sets in COCO's format: one JSON file of images, categories and annotations, read with checks.

Everything wrong with an annotation is named by its id, when the file is read, so that no training stops hours later.

Source: the format of the COCO annotations (cocodataset.org/#format-data). Boxes in files are x, y, width, height in
pixels from the image's upper left corner.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ....core.errors import DataError, NoLabelsError
from ....core.once import warn_once
from ....core.registries import DATASETS
from ..protocol import Scorer

logger = logging.getLogger("drivestack")
BORDER_PX = 1.0
"""Boxes may reach so far out of their image before that is reported: tools round differently."""
MIN_NUMBERS = 6
"""Of a polygon: three corners."""


class Image(msgspec.Struct):
    id: int | str
    file_name: str
    width: int
    height: int


class Category(msgspec.Struct):
    id: int
    name: str


class Annotation(msgspec.Struct):
    image_id: int | str
    category_id: int
    bbox: list[float]
    id: int | str = 0
    iscrowd: int = 0
    area: float | None = None
    segmentation: Any = None


class Content(msgspec.Struct):
    images: list[Image]
    categories: list[Category]
    annotations: list[Annotation] | None = None


@DATASETS.register_module()
class CocoImages:
    """The images of a COCO file (a Source of mm_data.py).

    Args:
        annotations: the JSON file.
        images: the folder that its file names are in.
        masks: whether every object must have a mask.
        only_annotated: leave out images without a single object, as training does; their number is logged.
        min_side_px: leave out images with a shorter side below this (released: 32 in training).
        classes: names to take, in this order, where the file has more or another order; None: all of the file's, in its
            order.

    Raises DataError for a file or entry that is wrong.
    """

    chooses_classes = True

    def __init__(
        self,
        annotations: str | Path,
        images: str | Path,
        masks: bool = True,
        only_annotated: bool = False,
        min_side_px: int = 0,
        classes: Sequence[str] | None = None,
    ):
        self.file, self.folder, self.masks = Path(annotations), Path(images), masks
        content = read_coco(self.file)
        if only_annotated and not content.annotations:
            raise DataError(f"{self.file}: has no annotations; name a file with labels to train on")
        self.has_labels = content.annotations is not None
        self.class_names = self._chosen(content.categories, classes)
        by_name = {category.name: category.id for category in content.categories}
        self.category_ids = [by_name[name] for name in self.class_names]
        labels = {category: label for label, category in enumerate(self.category_ids)}
        sizes = {image.id: (image.width, image.height) for image in content.images}
        self.objects: dict[int | str, list[Annotation]] = {image.id: [] for image in content.images}
        for annotation in content.annotations or ():
            if annotation.category_id in labels:
                self.objects[annotation.image_id].append(annotation)
        if masks:
            for annotation in self._all_objects():
                check_mask(annotation, sizes[annotation.image_id], self.file)
        self.boxes = _inside_boxes(self._all_objects(), sizes, self.file)
        self.images = self._used(content.images, only_annotated, min_side_px)
        self.tokens = [image.file_name for image in self.images]
        self.labels = labels

    def _chosen(self, categories: Sequence[Category], classes: Sequence[str] | None) -> tuple[str, ...]:
        names = tuple(category.name for category in categories)
        if classes is None:
            return names
        if missing := [name for name in classes if name not in names]:
            raise DataError(f"{self.file}: has no category {', '.join(missing[:5])}; it has {', '.join(names[:10])}")
        if others := [name for name in names if name not in classes]:
            warn_once(f"{self.file}: objects of {len(others)} other categories are left out, such as {others[0]}")
        return tuple(classes)

    def _all_objects(self) -> Iterator[Annotation]:
        for objects in self.objects.values():
            yield from objects

    def _used(self, images: Sequence[Image], only_annotated: bool, min_side_px: int) -> list[Image]:
        used = [image for image in images if min(image.width, image.height) >= min_side_px]
        if only_annotated:
            used = [
                image for image in used if any(id(o) in self.boxes and not o.iscrowd for o in self.objects[image.id])
            ]
        if left := len(images) - len(used):
            logger.info("%s: %d of %d images are left out, without objects or too small", self.file, left, len(images))
        if not used:
            raise DataError(f"{self.file}: none of its {len(images)} images can be used; look at its annotations")
        return used

    @staticmethod
    def stated_names(arguments: Mapping[str, Any]) -> Sequence[str]:
        """Names of the classes of a source that is not opened: those of its file, where it is there."""
        file = Path(arguments["annotations"])
        if arguments.get("classes") is not None or not file.is_file():
            return arguments.get("classes") or ()
        return [category.name for category in read_coco(file).categories]

    def __len__(self) -> int:
        return len(self.images)

    def info(self, index: int) -> dict[str, Any]:
        image = self.images[index]
        instances = [
            {
                "bbox": self.boxes[id(own)],
                "bbox_label": self.labels[own.category_id],
                "ignore_flag": int(own.iscrowd != 0),
                **({"mask": own.segmentation} if self.masks else {}),
            }
            for own in self.objects[image.id]
            if id(own) in self.boxes
        ]
        return {
            "img_path": str(self.folder / image.file_name),
            "img_id": image.id,
            "height": image.height,
            "width": image.width,
            "instances": instances,
        }

    def scorer(self) -> Scorer:
        """Average precision by pycocotools, over the images of this source."""
        from .scores import CocoScorer

        if not self.has_labels:
            raise NoLabelsError(f"{self.file}: has no annotations to compare with; name a labelled set")
        return CocoScorer(self.as_coco(), self.category_ids, self.tokens, masks=self.masks)

    def as_coco(self) -> dict[str, Any]:
        """COCO's structure of what this source holds, for evaluation: annotations as in the file."""
        return {
            "images": [{"id": i, "width": im.width, "height": im.height} for i, im in enumerate(self.images)],
            "categories": [{"id": number, "name": name} for number, name in zip(self.category_ids, self.class_names)],
            "annotations": [
                {
                    "image_id": i,
                    "category_id": own.category_id,
                    "bbox": own.bbox,
                    "iscrowd": own.iscrowd,
                    "area": own.bbox[2] * own.bbox[3] if own.area is None else own.area,
                    **({} if own.segmentation is None else {"segmentation": own.segmentation}),
                }
                for i, image in enumerate(self.images)
                for own in self.objects[image.id]
            ],
        }


def read_coco(file: Path) -> Content:
    """The file's content, whose ids refer to each other. Raises DataError naming the file and the entry."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{file}: no such annotation file; check the data root") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); check permissions and disk") from None
    if not data.strip():
        raise DataError(f"{file}: annotation file is empty (0 bytes); write or fetch it again")
    try:
        content = msgspec.json.decode(data, type=Content)
    except msgspec.DecodeError as error:  # validation, too
        raise DataError(f"{file}: not annotations in COCO's format ({error}); write or fetch it again") from None
    for kind, entries in (("images", content.images), ("categories", content.categories)):
        if not entries:
            raise DataError(f"{file}: has no {kind}; it must list images, categories and annotations")
        if len({entry.id for entry in entries}) < len(entries):
            raise DataError(f"{file}: two {kind} have one id; number them apart")
    if len({category.name for category in content.categories}) < len(content.categories):
        raise DataError(f"{file}: two categories have one name; name them apart")
    for image in content.images:
        _check_image(image, file)
    _check_annotations(content, file)
    return content


def _check_image(image: Image, file: Path) -> None:
    parts = Path(image.file_name).parts
    if not parts or Path(image.file_name).is_absolute() or ".." in parts or not image.file_name.isprintable():
        raise DataError(
            f"{file}: image {image.id}: file_name {image.file_name[:100]!r} leads out of the folder of images"
        )
    if image.width < 1 or image.height < 1:
        raise DataError(f"{file}: image {image.id}: size {image.width}x{image.height}; state the image's pixels")


def _check_annotations(content: Content, file: Path) -> None:
    images = {image.id for image in content.images}
    categories = {category.id for category in content.categories}
    for own in content.annotations or ():
        where = f"{file}: annotation {own.id}"
        if own.image_id not in images:
            raise DataError(f"{where}: its image_id {own.image_id} is none of the {len(images)} images'")
        if own.category_id not in categories:
            raise DataError(
                f"{where}: category_id {own.category_id} is out of range, the file has {len(categories)} categories "
                f"({min(categories)} to {max(categories)}); correct it, or add the category"
            )
        if len(own.bbox) != 4 or not all(map(math.isfinite, own.bbox)):
            raise DataError(f"{where}: bbox must be x, y, width, height in pixels, got {own.bbox}")


def check_mask(own: Annotation, size_px: tuple[int, int], file: Path) -> None:
    """Raises DataError for a mask that is none, or of another size. Masks are polygons, or runs (core/rle.py)."""
    where, mask = f"{file}: annotation {own.id}", own.segmentation
    if isinstance(mask, Mapping):
        if list(mask.get("size") or ()) != [size_px[1], size_px[0]] or not isinstance(mask.get("counts"), (str, list)):
            raise DataError(
                f"{where}: mask of size {mask.get('size')}, its image is [{size_px[1]}, {size_px[0]}] (height, width); "
                "write the mask at the image's size"
            )
    elif isinstance(mask, list) and mask and all(_is_polygon(polygon) for polygon in mask):
        return
    else:
        raise DataError(
            f"{where}: segmentation must be polygons (lists of at least {MIN_NUMBERS} numbers x, y, x, y, ...) or run "
            f"lengths, got {str(mask)[:60]}; correct it, or use masks=False"
        )


def _is_polygon(numbers: Any) -> bool:
    good = isinstance(numbers, list) and len(numbers) >= MIN_NUMBERS and len(numbers) % 2 == 0
    return good and all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers)


def _inside_boxes(
    objects: Iterator[Annotation], sizes: Mapping[int | str, tuple[int, int]], file: Path
) -> dict[int, list[float]]:
    """x0, y0, x1, y1 of each box within its image, by the annotation's id(); those of which nothing is left are out."""
    boxes, cut, lost = {}, [], []
    for own in objects:
        width, height = sizes[own.image_id]
        x0, y0, x1, y1 = own.bbox[0], own.bbox[1], own.bbox[0] + own.bbox[2], own.bbox[1] + own.bbox[3]
        box = [min(max(x0, 0.0), width), min(max(y0, 0.0), height), min(max(x1, 0.0), width), min(max(y1, 0.0), height)]
        if box[2] - box[0] < 1 or box[3] - box[1] < 1:
            lost.append(own.id)
            continue
        if max(-x0, -y0, x1 - width, y1 - height) > BORDER_PX:
            cut.append(own.id)
        boxes[id(own)] = box
    if cut:
        warn_once(f"{file}: {len(cut)} boxes reach out of their images and are cut there, such as annotation {cut[0]}")
    if lost:
        warn_once(
            f"{file}: {len(lost)} boxes have less than a pixel inside their images and are left out of training, such "
            f"as annotation {lost[0]}"
        )
    return boxes
