"""COCO files: what is right comes through unchanged, what is wrong ends in one line that names the entry."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from drivestack.backbone.pretrain.detection.coco import CocoImages
from drivestack.core.errors import DataError, NoLabelsError
from drivestack.core.image_answers import ImageAnswer, Instances
from drivestack.core.once import forget_warnings
from drivestack.core.rle import encode_rle

WIDTH, HEIGHT = 40, 30
SQUARE = [10, 5, 20, 5, 20, 15, 10, 15]


def square() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[5:15, 10:20] = True
    return mask


def content() -> dict[str, Any]:
    """Two images, one with a polygon and a crowd of run lengths, one without objects; categories 3 and 7."""
    return {
        "images": [
            {"id": 5, "file_name": "a.png", "width": WIDTH, "height": HEIGHT},
            {"id": 9, "file_name": "sub/b.png", "width": WIDTH, "height": HEIGHT},
        ],
        "categories": [{"id": 3, "name": "car"}, {"id": 7, "name": "bus"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 5,
                "category_id": 7,
                "bbox": [10, 5, 10, 10],
                "area": 100,
                "iscrowd": 0,
                "segmentation": [SQUARE],
            },
            {
                "id": 2,
                "image_id": 5,
                "category_id": 3,
                "bbox": [10, 5, 10, 10],
                "area": 100,
                "iscrowd": 1,
                "segmentation": encode_rle(square()),
            },
        ],
    }


def written(folder: Path, value: Any) -> Path:
    for name in ("a.png", "sub/b.png"):
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 90, np.uint8)).save(folder / "images" / name)
    path = folder / "labels.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_classes_come_from_the_file_and_labels_count_from_zero(tmp_path: Path) -> None:
    source = CocoImages(written(tmp_path, content()), tmp_path / "images")
    assert source.class_names == ("car", "bus")
    assert source.tokens == ["a.png", "sub/b.png"]
    first = source.info(0)
    assert [own["bbox_label"] for own in first["instances"]] == [1, 0]
    assert [own["ignore_flag"] for own in first["instances"]] == [0, 1]
    assert first["instances"][0]["bbox"] == [10, 5, 20, 15]
    assert source.info(1)["instances"] == []
    assert CocoImages(source.file, source.folder, only_annotated=True).tokens == ["a.png"]
    assert CocoImages(source.file, source.folder, classes=["bus", "car"]).info(0)["instances"][0]["bbox_label"] == 0


def test_boxes_are_cut_at_the_border_and_those_outside_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    forget_warnings()
    value = content()
    value["annotations"][0]["bbox"] = [35, 5, 20, 10]
    value["annotations"][1]["bbox"] = [50, 5, 10, 10]
    source = CocoImages(written(tmp_path, value), tmp_path / "images")
    assert [own["bbox"] for own in source.info(0)["instances"]] == [[35, 5, 40, 15]]
    text = caplog.text
    assert "1 boxes reach out of their images and are cut there, such as annotation 1" in text
    assert "1 boxes have less than a pixel inside their images" in text


def _set(value: dict[str, Any], path: str, to: Any) -> dict[str, Any]:
    value = copy.deepcopy(value)
    *parents, last = path.split(".")
    node: Any = value
    for part in parents:
        node = node[int(part)] if part.isdigit() else node[part]
    node[int(last) if last.isdigit() else last] = to
    return value


@pytest.mark.parametrize(
    ("path", "to", "words"),
    [
        ("annotations.0.category_id", 90, "annotation 1: category_id 90 is out of range, the file has 2 categories"),
        ("annotations.0.image_id", 1, "annotation 1: its image_id 1 is none of the 2 images'"),
        ("annotations.0.bbox", [1, 2, 3], "annotation 1: bbox must be x, y, width, height"),
        ("annotations.0.bbox", "x", "not annotations in COCO's format"),
        ("annotations.0.segmentation", [[1, 2, 3]], "annotation 1: segmentation must be polygons"),
        ("annotations.0.segmentation", None, "annotation 1: segmentation must be polygons"),
        (
            "annotations.1.segmentation.size",
            [HEIGHT, WIDTH + 1],
            "annotation 2: mask of size [30, 41], its image is [30",
        ),
        ("images.0.file_name", "../a.png", "image 5: file_name '../a.png' leads out of the folder"),
        ("images.0.width", 0, "image 5: size 0x30"),
        ("images.0.id", 9, "two images have one id"),
        ("categories.0.name", "bus", "two categories have one name"),
        ("categories", [], "has no categories"),
        ("images", [], "has no images"),
    ],
)
def test_wrong_entries_are_named(tmp_path: Path, path: str, to: Any, words: str) -> None:
    file = written(tmp_path, _set(content(), path, to))
    with pytest.raises(DataError) as error:
        CocoImages(file, tmp_path / "images")
    assert words in str(error.value) and str(file) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"), [("", "is empty (0 bytes)"), ("{", "COCO's format"), ("[]", "COCO's format")]
)
def test_files_that_are_none(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError, match=r"labels\.json") as error:
        CocoImages(written(tmp_path, text), tmp_path / "images")
    assert words in str(error.value)


def test_a_file_without_annotations_can_be_used_but_neither_trained_nor_scored_on(tmp_path: Path) -> None:
    value = content()
    del value["annotations"]
    file = written(tmp_path, value)
    source = CocoImages(file, tmp_path / "images")
    with pytest.raises(NoLabelsError, match="no annotations"):
        source.scorer()
    with pytest.raises(DataError, match="has no annotations"):
        CocoImages(file, tmp_path / "images", only_annotated=True)


def answer(token: str, score: float = 0.9, shift: int = 0, label: int = 1) -> ImageAnswer:
    mask = np.roll(square(), shift, 1)[None]
    box = np.array([[10 + shift, 5, 20 + shift, 15]], np.float32)
    found = Instances(box, np.array([score], np.float32), np.array([label]), mask)
    return ImageAnswer(token, (WIDTH, HEIGHT), instances=found)


def test_average_precision(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    source = CocoImages(written(tmp_path, content()), tmp_path / "images")
    scorer = source.scorer()
    nothing = Instances(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), None)
    scorer.add([answer("a.png"), ImageAnswer("sub/b.png", (WIDTH, HEIGHT), instances=nothing)])
    scores = scorer.scores()
    assert next(iter(scores)) == "box AP"
    assert scores["box AP"] == scores["mask AP"] == pytest.approx(1.0)
    half = source.scorer()
    half.add([answer("a.png", shift=3), answer("sub/b.png", 0.1)])  # IoU 7 / 13
    assert half.scores()["box AP50"] == pytest.approx(1.0)
    assert half.scores()["mask AP75"] == 0.0


def test_the_scorer_refuses_what_does_not_belong_together(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    scorer = CocoImages(written(tmp_path, content()), tmp_path / "images").scorer()
    with pytest.raises(DataError, match="not of the set"):
        scorer.add([answer("c.png")])
    with pytest.raises(DataError, match="class 2, the set has 2 classes"):
        scorer.add([answer("sub/b.png", label=2)])
    scorer.add([answer("a.png")])
    with pytest.raises(DataError, match="answered twice"):
        scorer.add([answer("a.png")])
