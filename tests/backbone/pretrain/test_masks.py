"""Folders of images and masks: classes of pixels as they are stored, and one line for every wrong mask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from drivestack.backbone.pretrain.reading import ReadImage, ReadPixelLabels
from drivestack.backbone.pretrain.segmentation.mapillary import MAPILLARY_TO_CITYSCAPES
from drivestack.backbone.pretrain.segmentation.masks import MaskFolder, read_names
from drivestack.core.errors import DataError, NoLabelsError
from drivestack.core.image_answers import ImageAnswer

SIZE_HW = (6, 8)


def labels() -> np.ndarray:
    stored = np.zeros(SIZE_HW, np.uint8)
    stored[:, 4:] = 1
    stored[0] = 255
    return stored


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part in ("images/a", "masks/a"):
        (tmp_path / part).mkdir(parents=True)
    Image.fromarray(np.zeros((*SIZE_HW, 3), np.uint8)).save(tmp_path / "images/a/one.jpg")
    Image.fromarray(labels()).save(tmp_path / "masks/a/one.png")
    (tmp_path / "classes.json").write_text(json.dumps({"classes": ["road", "car"]}))
    return tmp_path


def source(folder: Path, **options: Any) -> MaskFolder:
    return MaskFolder(folder / "images", folder / "masks", folder / "classes.json", **options)


def read(folder: Path, **options: Any) -> np.ndarray:
    results = ReadImage()(source(folder, **options).info(0))
    return ReadPixelLabels(2)(results)["gt_seg_map"]


def test_masks_are_found_by_name_and_read_as_stored(folder: Path) -> None:
    assert source(folder).tokens == ["a/one.jpg"]
    assert source(folder).class_names == ("road", "car")
    np.testing.assert_array_equal(read(folder), labels())


def test_palettes_sixteen_bits_and_a_class_less(folder: Path) -> None:
    picture = Image.fromarray(labels()).convert("P")
    picture.putpalette([i % 7 for i in range(768)])
    file = folder / "masks/a/one.png"
    indexed = np.asarray(picture)
    picture.save(file)
    np.testing.assert_array_equal(read_numbers(folder), indexed)
    Image.fromarray(labels().astype(np.uint16)).save(file)
    np.testing.assert_array_equal(read(folder), labels())
    Image.fromarray(np.array([[0, 1, 2, 255]], np.uint8).repeat(6, 0).repeat(2, 1)).save(file)
    np.testing.assert_array_equal(read(folder, reduce_zero_label=True)[0], [255, 255, 0, 0, 1, 1, 255, 255])


def read_numbers(folder: Path) -> np.ndarray:
    return ReadPixelLabels()(ReadImage()(source(folder).info(0)))["gt_seg_map"]


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.zeros((6, 7), np.uint8), "mask is 7x6 pixels, its image 8x6"),
        (np.full(SIZE_HW, 2, np.uint8), "class 2 in the mask, there are 2 classes"),
        (np.full(SIZE_HW, 300, np.uint16), "numbers 300..300"),
        (np.zeros((*SIZE_HW, 3), np.uint8), "picture of mode RGB"),
    ],
)
def test_wrong_masks_are_named(folder: Path, mask: np.ndarray, words: str) -> None:
    Image.fromarray(mask).save(folder / "masks/a/one.png")
    with pytest.raises(DataError, match=r"one\.png") as error:
        read(folder)
    assert words in str(error.value)


def test_damaged_files_are_named(folder: Path) -> None:
    file = folder / "masks/a/one.png"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(DataError, match=r"one\.png: mask cannot be read"):
        read(folder)
    file = folder / "images/a/one.jpg"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DataError, match=r"one\.jpg: image is"):
        read(folder)
    (folder / "masks/a/one.png").unlink()
    with pytest.raises(DataError, match="mask is missing"):
        source(folder)


def test_an_image_of_another_size_than_its_labels_say(folder: Path) -> None:
    info = {**source(folder).info(0), "height": 6, "width": 9}
    with pytest.raises(DataError, match="image is 8x6 pixels but its labels are for 9x6"):
        ReadImage()(info)


@pytest.mark.parametrize(
    ("text", "words"), [("[]", "has no classes"), ('["a", "a"]', "two classes have one name"), ("{", "not a list")]
)
def test_lists_of_classes(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "names.json"
    file.write_text(text)
    with pytest.raises(DataError, match=words):
        read_names(file)
    plain = tmp_path / "names.txt"
    plain.write_text("road\ncar\n")
    assert read_names(plain) == ("road", "car")


def test_mean_iou_by_hand(folder: Path) -> None:
    scorer = source(folder).scorer()
    found = np.zeros(SIZE_HW, np.uint8)
    found[:, 5:] = 1
    found[1, 0] = 7  # no class of the set: wrong
    with pytest.raises(DataError, match="were not answered"):
        scorer.scores()
    scorer.add([ImageAnswer("a/one.jpg", (8, 6), segmentation=found)])
    scores = scorer.scores()  # road 19 right of 20, car 15 of 20, 5 cars called road
    assert scores["IoU road"] == pytest.approx(19 / 25)
    assert scores["IoU car"] == pytest.approx(15 / 20)
    assert scores["mIoU"] == pytest.approx((19 / 25 + 15 / 20) / 2)
    assert scores["accuracy"] == pytest.approx(34 / 40)


def test_images_without_masks_have_no_scores(folder: Path) -> None:
    with pytest.raises(NoLabelsError):
        MaskFolder(folder / "images", None, ["road", "car"]).scorer()


def test_mapillary_has_all_nineteen_classes_and_no_more() -> None:
    assert len(MAPILLARY_TO_CITYSCAPES) == 66
    assert set(MAPILLARY_TO_CITYSCAPES.values()) == {*range(19), 255}
