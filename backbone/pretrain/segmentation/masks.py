"""A folder of images and one of PNG masks, with the names of the classes in a small file."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ....core.errors import DataError, NoLabelsError
from ....core.registries import DATASETS
from ..protocol import Scorer
from ..reading import IGNORED, ReadPixelLabels
from .scores import MeanIoU

logger = logging.getLogger("drivestack")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


@DATASETS.register_module()
class MaskFolder:
    """Images with a mask of the same name each (a Source of mm_data.py).

    Args:
        images: folder of images, with folders inside as you like.
        masks: folder of PNG masks: ``a/b.png`` for the image ``a/b.jpg``; None for images without labels.
        classes: the names in order, or a file of them: JSON (a list, or ``{"classes": [...]}``), or text, one a line.
        reduce_zero_label: 0 in masks means no class, and class k is written as k + 1.

    Raises DataError where a folder or file is missing or empty, or an image has no mask.
    """

    def __init__(
        self,
        images: str | Path,
        masks: str | Path | None,
        classes: str | Path | Sequence[str],
        reduce_zero_label: bool = False,
    ):
        self.folder = Path(images)
        self.class_names = read_names(classes)
        self.reduce_zero_label = reduce_zero_label
        if not self.folder.is_dir():
            raise DataError(f"{self.folder}: no such folder of images; check the data root")
        files = (path for path in self.folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        self.tokens = sorted(
            path.relative_to(self.folder).as_posix() for path in files if not path.name.startswith(".")
        )
        if not self.tokens:
            raise DataError(f"{self.folder}: holds no images ({', '.join(IMAGE_SUFFIXES)})")
        self.masks = None if masks is None else [Path(masks, token).with_suffix(".png") for token in self.tokens]
        missing = [path for path in self.masks or () if not path.is_file()]
        if missing:
            raise DataError(
                f"{missing[0]}: mask is missing, as those of {len(missing)} of {len(self.tokens)} images are; write "
                f"one for every image (all {IGNORED} where nothing is labelled)"
            )

    @staticmethod
    def stated_names(arguments: Mapping[str, Any]) -> Sequence[str]:
        """Names of the classes of a source that is not opened: those of its file, where it is there."""
        classes = arguments["classes"]
        return () if isinstance(classes, (str, Path)) and not Path(classes).is_file() else read_names(classes)

    def __len__(self) -> int:
        return len(self.tokens)

    def info(self, index: int) -> dict[str, Any]:
        found = {
            "img_path": str(self.folder / self.tokens[index]),
            "reduce_zero_label": self.reduce_zero_label,
            "seg_fields": [],
        }
        return found if self.masks is None else {**found, "seg_map_path": str(self.masks[index])}

    def scorer(self) -> Scorer:
        if self.masks is None:
            raise NoLabelsError(f"{self.folder}: images without masks; name a labelled set")
        read = ReadPixelLabels(len(self.class_names))
        return MeanIoU(self.class_names, self.tokens, lambda index, size: read.labels(self.info(index), size))


def read_names(classes: str | Path | Sequence[str]) -> tuple[str, ...]:
    """Names of classes, given or from a file. Raises DataError where there are none, or two are the same."""
    where = "classes"
    if isinstance(classes, (str, Path)):
        where = str(classes)
        try:
            text = Path(classes).read_text(encoding="utf-8")
            content: Any = json.loads(text) if Path(classes).suffix == ".json" else text.splitlines()
        except (OSError, ValueError) as error:
            raise DataError(f"{classes}: not a list of classes ({error}); write JSON, or one name a line") from None
        content = content.get("classes") if isinstance(content, Mapping) else content
        if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
            raise DataError(f'{classes}: must hold a list of names, or {{"classes": [...]}}')
        classes = [name.strip() for name in content if name.strip()]
    names = tuple(classes)
    if not names or len(set(names)) < len(names):
        raise DataError(f"{where}: {'two classes have one name' if names else 'has no classes'}; name each class once")
    if len(names) > IGNORED:
        raise DataError(f"{where}: {len(names)} classes, masks of 8 bits hold {IGNORED}")
    return names
