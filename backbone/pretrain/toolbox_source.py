"""Any data set of mmdet or mmseg as a source of images and labels (mm_data.Source).

Used for those that have classes of their own there: LVIS, VOC, OpenImages, CrowdHuman; ADE20K, Cityscapes, Mapillary,
COCO-Stuff, Pascal Context, and wrappers around them (ConcatDataset, RepeatDataset, ClassBalancedDataset).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.registry import DATASETS as ROOT_DATASETS

from ...core.errors import ConfigError, DataError, NoLabelsError, library_errors
from ...core.registries import DATASETS
from .detection.scores import CocoScorer
from .openmmlab import toolbox
from .protocol import Scorer
from .reading import ReadPixelLabels
from .segmentation.mapillary import CITYSCAPES, MAPILLARY_TO_CITYSCAPES
from .segmentation.scores import MeanIoU

RELABELLED = {"mapillary_to_cityscapes": (CITYSCAPES, MAPILLARY_TO_CITYSCAPES)}


@DATASETS.register_module()
class ToolboxData:
    """Images and labels of a data set of mmdet or mmseg.

    Args:
        dataset: its config, without a pipeline.
        task: "instances" or "segmentation".
        relabelled: "mapillary_to_cityscapes" gives Mapillary's masks the classes of Cityscapes.

    Raises DataError where the data set cannot be read.
    """

    def __init__(
        self,
        dataset: Mapping[str, Any],
        task: str = "instances",
        relabelled: str | None = None,
    ):
        self.task = task
        names, self.label_map = _relabelling(relabelled)
        kind = dataset["type"]
        with toolbox(task), library_errors(DataError, f"data set {kind}", "check data_root and its files"):
            try:
                self.inner = ROOT_DATASETS.build(_without_pipeline(dataset))
            except OSError as error:
                raise DataError(f"data set {kind}: {error}; check data_root and its files") from error
        self.class_names = tuple(names or self.inner.metainfo["classes"])
        paths = [Path(self.inner.get_data_info(i)["img_path"]) for i in range(len(self.inner))]
        if not paths:
            raise DataError(f"data set {kind}: holds no images; check data_root and its files")
        root = os.path.commonpath([path.parent for path in paths])
        self.tokens = [path.relative_to(root).as_posix() for path in paths]

    @staticmethod
    def stated_names(arguments: Mapping[str, Any]) -> Sequence[str]:
        """Names of the classes of a source that is not opened: the toolbox knows its data sets'."""
        if names := _relabelling(arguments.get("relabelled"))[0]:
            return names
        dataset = arguments["dataset"]
        while "dataset" in dataset or "datasets" in dataset:
            dataset = dataset["dataset"] if "dataset" in dataset else dataset["datasets"][0]
        stated = (dataset.get("metainfo") or {}).get("classes")
        if stated:
            return stated
        with toolbox(arguments.get("task", "instances")):
            kind = dataset["type"]
            kind = ROOT_DATASETS.get(kind) if isinstance(kind, str) else kind
            return getattr(kind, "METAINFO", {}).get("classes", ())

    def __len__(self) -> int:
        return len(self.tokens)

    def info(self, index: int) -> dict[str, Any]:
        found = self.inner.get_data_info(index)
        return found if self.label_map is None else {**found, "label_map": self.label_map}

    def scorer(self) -> Scorer:
        if self.task == "segmentation":
            if "seg_map_path" not in self.info(0):
                raise NoLabelsError(f"data set {type(self.inner).__name__}: has no masks; name a labelled set")
            read = ReadPixelLabels(len(self.class_names))
            return MeanIoU(self.class_names, self.tokens, lambda index, size: read.labels(self.info(index), size))
        infos = [self.info(i) for i in range(len(self))]
        masks = all("mask" in own for info in infos for own in info["instances"])
        return CocoScorer(self._truth(infos, masks), range(len(self.class_names)), self.tokens, masks=masks)

    def _truth(self, infos: Sequence[Mapping[str, Any]], masks: bool) -> dict[str, Any]:
        """COCO's structure of the labels; areas are those of boxes."""
        annotations = []
        for number, info in enumerate(infos):
            for own in info["instances"]:
                x0, y0, x1, y1 = np.asarray(own["bbox"], float).tolist()
                row = {
                    "image_id": number,
                    "category_id": int(own["bbox_label"]),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": int(own["ignore_flag"]),
                }
                annotations.append({**row, "segmentation": own["mask"]} if masks else row)
        sizes = [{"id": i, "width": info["width"], "height": info["height"]} for i, info in enumerate(infos)]
        categories = [{"id": i, "name": name} for i, name in enumerate(self.class_names)]
        return {"images": sizes, "categories": categories, "annotations": annotations}


def _relabelling(name: str | None) -> tuple[tuple[str, ...], Mapping[int, int] | None]:
    """Classes and table (stored number -> class) of a relabelling. Raises ConfigError for an unknown one."""
    if name is None:
        return (), None
    if name not in RELABELLED:
        raise ConfigError(f"source.relabelled={name!r}: choose {', '.join(RELABELLED)} or None")
    return RELABELLED[name]


def _without_pipeline(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """The config with an empty pipeline in every data set of it: preparing samples is mm_data's."""
    config = dict(dataset)
    if "dataset" in config:
        config["dataset"] = _without_pipeline(config["dataset"])
    elif "datasets" in config:
        config["datasets"] = [_without_pipeline(part) for part in config["datasets"]]
    else:
        config["pipeline"] = []
    return config
