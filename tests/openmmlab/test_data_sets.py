"""Data sets that mmdet and mmseg know, in miniature: read, turned into samples, scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from drivestack.backbone.pretrain.mm_data import MMData
from drivestack.backbone.pretrain.reading import ReadImage, ReadPixelLabels
from drivestack.backbone.pretrain.segmentation.mapillary import CITYSCAPES
from drivestack.backbone.pretrain.toolbox_source import ToolboxData
from drivestack.core.errors import DataError, NoLabelsError
from drivestack.core.image_answers import ImageAnswer, Instances

WIDTH, HEIGHT = 40, 30
OBJECTS = [dict(type=ReadImage), dict(type="LoadAnnotations", with_bbox=True), dict(type="PackDetInputs")]
PIXELS = [dict(type=ReadImage), dict(type=ReadPixelLabels), dict(type="PackSegInputs")]


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), 90, np.uint8)).save(path)


def mask(path: Path, numbers: list[int]) -> np.ndarray:
    """Stripes of these numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = np.repeat(np.array(numbers, np.uint8), WIDTH // len(numbers))[None].repeat(HEIGHT, 0)
    Image.fromarray(stored).save(path)
    return stored


def segmentation(dataset: dict[str, Any], **options: Any) -> MMData:
    return MMData(PIXELS, dict(type=ToolboxData, task="segmentation", dataset=dataset, **options), task="segmentation")


def check_pixels(data: MMData, expected: list[int]) -> None:
    labels = data[0]["data_samples"].gt_sem_seg.data[0].numpy()
    np.testing.assert_array_equal(labels[0, :: WIDTH // len(expected)], expected)
    scorer = data.scorer()
    scorer.add([ImageAnswer(data.tokens[0], (WIDTH, HEIGHT), segmentation=labels.astype(np.uint8))])
    assert scorer.scores()["mIoU"] == 1.0


def test_ade20k_counts_from_one(tmp_path: Path) -> None:
    picture(tmp_path / "images/training/a.jpg")
    mask(tmp_path / "annotations/training/a.png", [0, 1, 150, 3])
    prefix = dict(img_path="images/training", seg_map_path="annotations/training")
    data = segmentation(dict(type="ADE20KDataset", data_root=str(tmp_path), data_prefix=prefix))
    assert len(data.class_names) == 150 and data.tokens == ["a.jpg"]
    check_pixels(data, [255, 0, 149, 2])


def test_cityscapes(tmp_path: Path) -> None:
    picture(tmp_path / "leftImg8bit/train/aachen/a_leftImg8bit.png")
    mask(tmp_path / "gtFine/train/aachen/a_gtFine_labelTrainIds.png", [0, 18, 255, 7])
    prefix = dict(img_path="leftImg8bit/train", seg_map_path="gtFine/train")
    data = segmentation(dict(type="CityscapesDataset", data_root=str(tmp_path), data_prefix=prefix))
    assert data.class_names == CITYSCAPES
    check_pixels(data, [0, 18, 255, 7])


def test_mapillary_with_the_classes_of_cityscapes(tmp_path: Path) -> None:
    parts = []
    for part in ("training", "validation"):
        picture(tmp_path / part / "images/a.jpg")
        mask(tmp_path / part / "v1.2/labels/a.png", [13, 55, 65, 20])
        prefix = dict(img_path=f"{part}/images", seg_map_path=f"{part}/v1.2/labels")
        parts.append(dict(type="MapillaryDataset_v1", data_root=str(tmp_path), data_prefix=prefix))
    both = dict(type="ConcatDataset", datasets=parts)
    data = segmentation(both, relabelled="mapillary_to_cityscapes")
    assert data.class_names == CITYSCAPES and len(data) == 2
    check_pixels(segmentation(parts[0], relabelled="mapillary_to_cityscapes"), [0, 13, 255, 12])


def test_voc(tmp_path: Path) -> None:
    picture(tmp_path / "VOC2007/JPEGImages/000001.jpg")
    (tmp_path / "VOC2007/ImageSets/Main").mkdir(parents=True)
    (tmp_path / "VOC2007/ImageSets/Main/test.txt").write_text("000001\n")
    (tmp_path / "VOC2007/Annotations").mkdir()
    box = "<bndbox><xmin>11</xmin><ymin>6</ymin><xmax>20</xmax><ymax>15</ymax></bndbox>"
    one = f"<object><name>dog</name><difficult>0</difficult>{box}</object>"
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    (tmp_path / "VOC2007/Annotations/000001.xml").write_text(f"<annotation>{size}{one}</annotation>")
    voc = dict(type="VOCDataset", data_root=str(tmp_path), ann_file="VOC2007/ImageSets/Main/test.txt")
    voc |= dict(data_prefix=dict(sub_data_root="VOC2007/"), test_mode=True)
    data = MMData(OBJECTS, dict(type=ToolboxData, dataset=voc))
    found = data[0]["data_samples"].gt_instances
    assert data.class_names[int(found.labels[0])] == "dog"
    boxes = found.bboxes.tensor.numpy()
    check_boxes(data, boxes, found.labels.numpy())


def check_boxes(data: MMData, boxes: np.ndarray, labels: np.ndarray) -> None:
    scorer = data.scorer()
    found = Instances(boxes, np.ones(len(boxes), np.float32), labels)
    scorer.add([ImageAnswer(data.tokens[0], (WIDTH, HEIGHT), instances=found)])
    assert scorer.scores()["box AP"] == pytest.approx(1.0)


def test_crowd_human(tmp_path: Path) -> None:
    picture(tmp_path / "Images/a.jpg")
    line = {
        "ID": "a",
        "gtboxes": [{"tag": "person", "fbox": [10, 5, 10, 20], "hbox": [1, 1, 2, 2], "vbox": [10, 5, 9, 9]}],
    }
    line["gtboxes"][0] |= {"extra": {}, "head_attr": {}}
    (tmp_path / "annotation_val.odgt").write_text(json.dumps(line) + "\n")
    (tmp_path / "id_hw_val.json").write_text(json.dumps({"a": [HEIGHT, WIDTH]}))
    people = dict(type="CrowdHumanDataset", data_root=f"{tmp_path}/", data_prefix=dict(img="Images/"), test_mode=True)
    people |= dict(ann_file="annotation_val.odgt")
    data = MMData(OBJECTS, dict(type=ToolboxData, dataset=people))
    found = data[0]["data_samples"].gt_instances
    assert found.bboxes.tensor.tolist() == [[10, 5, 20, 25]]
    check_boxes(data, found.bboxes.tensor.numpy(), found.labels.numpy())


def test_missing_data_is_one_line(tmp_path: Path) -> None:
    voc = dict(
        type="VOCDataset", data_root=str(tmp_path), ann_file="test.txt", data_prefix=dict(sub_data_root="VOC2007/")
    )
    with pytest.raises(DataError, match="data set VOCDataset") as error:
        MMData(OBJECTS, dict(type=ToolboxData, dataset=voc))
    assert "\n" not in str(error.value)
    prefix = dict(img_path="images")
    picture(tmp_path / "images/a.jpg")
    data = segmentation(dict(type="ADE20KDataset", data_root=str(tmp_path), data_prefix=prefix))
    with pytest.raises(NoLabelsError):
        data.scorer()
