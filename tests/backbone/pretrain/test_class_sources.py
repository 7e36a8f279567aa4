"""Folders, lists, archives, shards and iNaturalist: what is listed, and one clear line for what is wrong."""

from __future__ import annotations

import io
import json
import math
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from drivestack.backbone.pretrain.classification.dataset import ClassDataset
from drivestack.backbone.pretrain.classification.inaturalist import INaturalistSource
from drivestack.backbone.pretrain.classification.shards import ShardSource
from drivestack.backbone.pretrain.classification.sources import FolderSource, ListSource
from drivestack.backbone.pretrain.protocol import ImageDataset
from drivestack.core.errors import DataError, NoLabelsError
from support.class_folders import CLASSES, square, write_folders

SMALL = {"size_px": 32}


def png(label: int, seed: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(square(label, seed)).save(stream, "PNG")
    return stream.getvalue()


# ------------------------------------------------------------------------------------------------------------- folders


def test_a_folder_of_classes_gives_names_numbers_and_images(tmp_path: Path) -> None:
    root = write_folders(tmp_path, train=2, val=1)
    (root / "train" / "red" / "deep").mkdir()
    (root / "train" / "red" / "deep" / "x.PNG").write_bytes(png(2))
    (root / "train" / "red" / "._0.png").write_bytes(b"a Mac's shadow")
    source = FolderSource(root, "train")
    assert source.class_names == list(CLASSES)
    assert source.tokens[:2] == ["blue/0.png", "blue/1.png"] and source.tokens[-1] == "red/deep/x.PNG"
    assert source.labels.tolist() == [0, 0, 1, 1, 2, 2, 2]
    dataset = ClassDataset(dict(type="FolderSource", root=root, part="val"), SMALL)
    sample = dataset[2]
    assert isinstance(dataset, ImageDataset)
    assert (sample.label, sample.token, sample.size_px) == (2, "red/0.png", (50, 40))
    assert sample.image.shape == (3, 32, 32)
    np.testing.assert_array_equal(dataset.image(2), square(2, 100))


def test_classes_are_numbered_as_the_config_says(tmp_path: Path) -> None:
    root = write_folders(tmp_path, train=1, val=1)
    source = FolderSource(root, "val", classes=["red", "yellow", "green", "blue"])
    assert source.labels.tolist() == [3, 2, 0]
    with pytest.raises(DataError, match=r"class folder 'blue' is none of the 2 classes \(red, green\)"):
        FolderSource(root, "val", classes=["red", "green"])


def test_a_folder_without_parts_holds_out_one_image_in_ten(tmp_path: Path) -> None:
    root = write_folders(tmp_path, train=60, val=1) / "train"
    train, val = FolderSource(root, "train"), FolderSource(root, "val")
    assert sorted([*train.tokens, *val.tokens]) == sorted(FolderSource(root).tokens)
    assert 5 < len(val.tokens) < 35
    (root / "red" / "another.png").write_bytes(png(2))
    assert set(val.tokens) <= set(FolderSource(root, "val").tokens)


def test_bad_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        FolderSource(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds no folder of a class"):
        FolderSource(tmp_path)
    root = write_folders(tmp_path / "x", train=1, val=1)
    (root / "train" / "white").mkdir()
    with pytest.raises(DataError, match=r"train/white: a class without images"):
        FolderSource(root, "train")
    (root / "train" / "white" / "notes.txt").write_text("none")
    with pytest.raises(DataError, match=r"train/white: a class without images"):
        FolderSource(root, "train")


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"", "is empty"), (png(0)[:300], "truncated|readable"), (b"GIF89a??", "readable"), (b"x" * 99, "readable")],
)
def test_a_corrupt_image_is_named(tmp_path: Path, content: bytes, problem: str) -> None:
    root = write_folders(tmp_path, train=1, val=1)
    (root / "val" / "green" / "0.png").write_bytes(content)
    dataset = ClassDataset(FolderSource(root, "val"), SMALL)
    assert dataset[0].label == 0
    with pytest.raises(DataError, match=rf"val/green/0\.png: image .*({problem})"):
        dataset[1]


def test_an_image_is_shown_upright(tmp_path: Path) -> None:
    picture = Image.fromarray(square(0, 0))
    exif = picture.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    picture.save(tmp_path / "a.png", exif=exif)
    dataset = ClassDataset(images=[tmp_path / "a.png"], image=SMALL)
    assert dataset[0].size_px == (40, 50)


# --------------------------------------------------------------------------------------------------------------- lists


def test_list_files_plain_and_zipped(tmp_path: Path) -> None:
    root = write_folders(tmp_path, train=1, val=1)
    lines = "blue/0.png 0\ngreen/0.png 4\n\nred/0.png\t2\n"
    (tmp_path / "val.txt").write_text(lines)
    with zipfile.ZipFile(tmp_path / "val.txt.zip", "w") as archive:
        archive.writestr("val.txt", lines)
    for name in ("val.txt", "val.txt.zip"):
        dataset = ClassDataset(ListSource(tmp_path / name, root / "val"), SMALL)
        assert [dataset[i].label for i in range(3)] == [0, 4, 2]
        assert dataset.class_names == ("0", "1", "2", "3", "4")
    with pytest.raises(DataError, match=r"val\.txt, line 2: class 4 of green/0\.png, but there are 3 classes"):
        ClassDataset(dict(type="ListSource", list_file=tmp_path / "val.txt", root=root / "val"), num_classes=3)


def test_images_in_a_zip_archive_are_read_in_every_process(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        for label in range(3):
            archive.writestr(f"images/{CLASSES[label]}.png", png(label))
    (tmp_path / "train.txt").write_text("blue.png 0\nred.png 2\n")
    options: dict[str, Any] = {"root": "images", "images_zip": tmp_path / "train.zip"}
    source = ListSource(tmp_path / "train.txt", **options)
    for own in (source, pickle.loads(pickle.dumps(source))):
        np.testing.assert_array_equal(ClassDataset(own, SMALL).image(1), square(2, 0))
    (tmp_path / "train.txt").write_text("blue.png 0\nwhite.png 1\n")
    with pytest.raises(DataError, match=r"train\.zip: lacks images/white\.png, which .*train\.txt names"):
        ListSource(tmp_path / "train.txt", **options)


def test_bad_lists_are_named(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    for text, problem in (
        ("a.png\n", r"line 1: 'a\.png' is no image and a number"),
        ("a.png red\n", "line 1"),
        ("a.png -1\n", "line 1"),
        ("a.png 0\na.png 1\n", r"a\.png comes twice"),
        ("\n", "lists no image"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=rf"list\.txt.*{problem}"):
            ListSource(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not a text file"):
        ListSource(path)
    path.write_text("gone.png 0\n../outside.png 1\n")
    source = ListSource(path, tmp_path)
    with pytest.raises(DataError, match=r"gone\.png: image is missing"):
        source.read(0)
    with pytest.raises(DataError, match=r"outside\.png' leads out of"):
        source.read(1)


def test_classes_by_name_as_in_imagenet_22k(tmp_path: Path) -> None:
    (tmp_path / "numbers.json").write_text(json.dumps({"n02": 1, "n01": 0}))
    (tmp_path / "list.txt").write_text("n02/a.png n02\nn01/a.png n01\n")
    source = ListSource(tmp_path / "list.txt", class_numbers=tmp_path / "numbers.json")
    assert source.labels.tolist() == [1, 0] and source.class_names == ["n01", "n02"]
    (tmp_path / "list.txt").write_text("n03/a.png n03\n")
    with pytest.raises(DataError, match=r"line 1: .* is no image and a class of .*numbers\.json"):
        ListSource(tmp_path / "list.txt", class_numbers=tmp_path / "numbers.json")
    (tmp_path / "numbers.json").write_text(json.dumps({"n02": 2, "n01": 0}))
    with pytest.raises(DataError, match="not a map of classes"):
        ListSource(tmp_path / "list.txt", class_numbers=tmp_path / "numbers.json")


# -------------------------------------------------------------------------------------------------------------- shards


def write_shard(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_shards_are_read_in_natural_order_and_from_their_place(tmp_path: Path) -> None:
    write_shard(
        tmp_path / "s-2.tar", {"a/1.png": png(1), "a/1.cls": b"1\n", "a/2.json": b'{"label": 2}', "a/2.png": png(2)}
    )
    write_shard(tmp_path / "s-10.tar", {"b.png": png(0, 5), "b.cls": b"blue", "b.txt": b"a note"})
    dataset = ClassDataset(dict(type="ShardSource", shards=tmp_path), SMALL, classes=CLASSES)
    assert dataset.tokens == ["a/1.png", "a/2.png", "b.png"]
    assert dataset.scene_tokens == ["s-2.tar", "s-2.tar", "s-10.tar"]
    assert [dataset[i].label for i in range(3)] == [1, 2, 0]
    np.testing.assert_array_equal(dataset.image(2), square(0, 5))


def test_bad_shards_are_named(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    for members, problem in (
        ({"a.png": png(0)}, r"a has no class"),
        ({"a.cls": b"0"}, r"a has no image"),
        ({"a.png": png(0), "a.cls": b"red"}, r"a\.cls: holds no class"),
        ({"a.png": png(0), "a.json": b"{}"}, r"a\.json: holds no class"),
        ({"a.png": png(0), "a.jpg": png(0), "a.cls": b"0"}, r"a has two images"),
        ({}, "holds no samples"),
    ):
        write_shard(path, members)
        with pytest.raises(DataError, match=rf"s\.tar: {problem}"):
            ShardSource(path)
    write_shard(path, {"a.png": png(0), "a.cls": b"0"})
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"s\.tar: "):
        ShardSource(path)
    path.write_bytes(b"no tar" * 200)
    with pytest.raises(DataError, match="not a readable, uncompressed tar file"):
        ShardSource(path)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"no \.tar files"):
        ShardSource(empty)


# --------------------------------------------------------------------------------------------------------- iNaturalist


def inaturalist(root: Path, locations: list[Any] | None = None, category: int = 7) -> Path:
    (root / "images").mkdir(parents=True, exist_ok=True)
    (root / "images" / "a.png").write_bytes(png(0))
    content = {
        "images": [{"id": 3, "file_name": "images/a.png"}, {"id": 5, "file_name": "images/b.png"}],
        "annotations": [{"image_id": 5, "category_id": 9}, {"image_id": 3, "category_id": category}],
        "categories": [{"id": 9, "name": "wren"}, {"id": 7, "name": "moss"}],
    }
    (root / "val2018.json").write_text(json.dumps(content))
    if locations is not None:
        (root / "val2018_locations.json").write_text(json.dumps(locations))
    return root


def test_inaturalist_with_date_and_place(tmp_path: Path) -> None:
    places = [{"date": "2017-03-09 12:01:02", "lat": 0.0, "lon": 90.0}, {"date": None, "lat": None, "lon": None}]
    dataset = ClassDataset(INaturalistSource(inaturalist(tmp_path, places), "val", metadata=True), SMALL)
    assert dataset.class_names == ("wren", "moss") and dataset.source.labels.tolist() == [1, 0]
    batch = dataset.collate([dataset[0]])
    np.testing.assert_allclose(batch.temporal, [[1, math.cos(math.pi / 2), 0, 0]], atol=1e-6)
    np.testing.assert_allclose(batch.spatial, [[0, 1, 0]], atol=1e-6)
    assert dataset.source.metadata(1) == ((0, 0, 0, 0), (0, 0, 0))
    assert ClassDataset(INaturalistSource(tmp_path, "val"), SMALL)[0].temporal is None


@pytest.mark.parametrize(
    ("locations", "problem"),
    [
        ([{}], "one date and place for each of 2 images"),
        ([{"date": "March"}, {}], "entry 0: date 'March'"),
        ([{}, {"lat": 91, "lon": 0}], "entry 1: 91, 0 is no latitude"),
        ([{}, {"lat": "x", "lon": 0}], "entry 1: 'x', 0 is no latitude"),
        ([{}, 3], "entry 1: not an object"),
    ],
)
def test_bad_locations_are_named(tmp_path: Path, locations: list[Any], problem: str) -> None:
    with pytest.raises(DataError, match=rf"val2018_locations\.json.*{problem}"):
        INaturalistSource(inaturalist(tmp_path, locations), "val", metadata=True)


def test_bad_inaturalist_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"val2018\.json: no such file"):
        INaturalistSource(tmp_path, "val")
    with pytest.raises(DataError, match=r"images/a\.png has no category"):
        INaturalistSource(inaturalist(tmp_path, category=8), "val")
    for text in ("{}", "[]", '{"images": 3}', "{", '{"images": []}'):
        (tmp_path / "val2018.json").write_text(text)
        with pytest.raises(DataError, match=r"val2018\.json"):
            INaturalistSource(tmp_path, "val")


# -------------------------------------------------------------------------------------------------------------- memory


def test_images_in_memory_and_by_path(tmp_path: Path) -> None:
    write_folders(tmp_path, train=1, val=1)
    path = tmp_path / "val" / "red" / "0.png"
    dataset = ClassDataset(image=SMALL, images=[square(0, 0), path], classes=CLASSES)
    assert list(dataset.tokens) == ["0", str(path)] and dataset.class_names == CLASSES
    assert dataset[1].label == -1
    with pytest.raises(NoLabelsError, match="has no class"):
        dataset.scorer()
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(DataError, match=r"image 0: image is .*; give uint8"):
            ClassDataset(image=SMALL, images=[wrong])[0]
    with pytest.raises(DataError, match="give at least one"):
        ClassDataset(images=[])
    (tmp_path / "w.jpg").write_bytes(b"PK\x03\x04zip")
    with pytest.raises(DataError, match=r"w\.jpg: is a zip archive, no image"):
        ClassDataset(images=[tmp_path / "w.jpg"])[0]
