"""BDD100K's and nuImages' labels as COCO files that our detectors read."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from drivestack.backbone.pretrain.detection.coco import CocoImages
from drivestack.core.errors import DataError
from drivestack.core.rle import decode_rle, encode_rle
from drivestack.data_tools.coco_files import bdd100k, nuimages


def test_bdd100k(tmp_path: Path) -> None:
    box = {"x1": 10, "y1": 20, "x2": 29, "y2": 39}
    frames = [
        {"name": "a.jpg", "labels": [{"category": "person", "box2d": box}, {"category": "lane", "poly2d": []}]},
        {"name": "b.jpg", "labels": [{"category": "car", "box2d": box, "attributes": {"crowd": True}}]},
        {"name": "c.jpg"},
    ]
    (tmp_path / "det.json").write_text(json.dumps(frames))
    bdd100k.convert(tmp_path / "det.json", tmp_path / "coco.json")
    source = CocoImages(tmp_path / "coco.json", tmp_path, masks=False)
    assert source.class_names == bdd100k.CLASSES
    first, second = source.info(0)["instances"], source.info(1)["instances"]
    assert first == [{"bbox": [10, 20, 30, 40], "bbox_label": 0, "ignore_flag": 0}]
    assert second[0]["bbox_label"] == 2 and second[0]["ignore_flag"] == 1
    (tmp_path / "det.json").write_text("{}")
    with pytest.raises(DataError, match="must be a list"):
        bdd100k.convert(tmp_path / "det.json", tmp_path / "coco.json")


def test_nuimages(tmp_path: Path) -> None:
    mask = np.zeros((9, 16), bool)
    mask[2:5, 3:9] = True
    rle = encode_rle(mask)
    stored = {"size": rle["size"], "counts": base64.b64encode(rle["counts"].encode()).decode()}
    tables = {
        "category": [{"token": "c1", "name": "vehicle.car"}, {"token": "c2", "name": "animal"}],
        "sample_data": [
            {"token": "s1", "filename": "samples/a.jpg", "width": 16, "height": 9, "is_key_frame": True},
            {"token": "s2", "filename": "sweeps/b.jpg", "width": 16, "height": 9, "is_key_frame": False},
        ],
        "object_ann": [
            {"token": "o1", "sample_data_token": "s1", "category_token": "c1", "bbox": [3, 2, 9, 5], "mask": stored},
            {"token": "o2", "sample_data_token": "s1", "category_token": "c2", "bbox": [0, 0, 2, 2], "mask": None},
        ],
    }
    (tmp_path / "v1.0-mini").mkdir()
    for name, rows in tables.items():
        (tmp_path / "v1.0-mini" / f"{name}.json").write_text(json.dumps(rows))
    nuimages.convert(tmp_path, "v1.0-mini", tmp_path / "coco.json")
    source = CocoImages(tmp_path / "coco.json", tmp_path)
    assert source.tokens == ["samples/a.jpg"]
    (own,) = source.info(0)["instances"]
    assert source.class_names[own["bbox_label"]] == "car" and own["bbox"] == [3, 2, 9, 5]
    np.testing.assert_array_equal(decode_rle(own["mask"], ""), mask)
    (tmp_path / "v1.0-mini" / "object_ann.json").write_text('[{"token": "o1"}]')
    with pytest.raises(DataError, match="category_token"):
        nuimages.convert(tmp_path, "v1.0-mini", tmp_path / "coco.json")
