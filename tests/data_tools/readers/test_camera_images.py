"""Single images with boxes in camera coordinates: the targets of the tables they were made with, and clear errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from drivestack.core.errors import DataError
from drivestack.data_tools.clips.clip_dataset import ClipDataset
from drivestack.data_tools.readers.camera_images import read_camera_images
from drivestack.data_tools.readers.nuscenes.reader import DETECTION_CLASS
from drivestack.data_tools.synthetic import synthesize

CLASSES = sorted(set(DETECTION_CLASS.values()))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = dict(num_scenes=1, keyframes_per_scene=1, image_width_px=192, workers=1, progress=False)
    return synthesize(tmp_path_factory.mktemp("set") / "s", split="train", labels=("mono",), seed=3, **sizes)


def test_targets_are_those_of_the_tables(root: Path) -> None:
    """Camera by camera the perspective head learns the same boxes, whether they come from tables or single images."""
    image = {"crop": (0, 0, 1, 1), "train_heights_px": (96,), "test_height_px": 96}
    settings = {"classes": CLASSES, "mono": True, "image": image, "pc_range": (-99, -99, -9, 99, 99, 9)}
    source = {"reader": "nuscenes", "root": str(root), "version": "v1.0-trainval", "split": "train"}
    (whole,) = ClipDataset(source=source, **settings)
    single = ClipDataset(source={"reader": "camera_images", "root": str(root), "split": "train"}, **settings)
    assert len(single) == 6 and single.camera_names == ("CAMERA",)
    by_file = {Path(s.frame.cameras[0].image_path).name: s for s in single}
    compared = 0
    for n, name in enumerate(whole.camera_names):
        view = next(view for view in whole.frame.cameras if view.name == name)
        sample = by_file[Path(view.image_path).name]
        np.testing.assert_array_equal(sample.images[0][0], whole.images[0][n])
        (own,), theirs = sample.mono, whole.mono[n]
        if own is None or theirs is None:
            assert own is theirs
            continue
        # boxes that are hidden altogether are in the tables only
        for i in range(len(own.labels)):
            distance = (theirs.boxes3d_camera[:, 4:7] - own.boxes3d_camera[i, 4:7]).norm(dim=1)
            j = int(distance.argmin())
            for field, tolerance in (("boxes3d_camera", 2e-3), ("boxes_xyxy_px", 0.1), ("labels", 0)):
                torch.testing.assert_close(getattr(own, field)[i], getattr(theirs, field)[j], rtol=0, atol=tolerance)
            assert own.attributes[i] == theirs.attributes[j]
            compared += 1
    assert compared >= 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["annotations"][0].pop("centre_camera_m"), r"image .*centre_camera_m"),
        (lambda c: c["annotations"][0].update(rotation_camera=[1, 0]), r"image .*rotation_camera"),
        (lambda c: c["annotations"][0].update(category_id=99), r"annotation 1 names an image or a category"),
        (lambda c: c["images"][0].update(camera_intrinsic=[[1, 0], [0, 1]]), r"image .*camera_intrinsic"),
        (lambda c: c["images"][1].update(id=c["images"][0]["id"]), "two images have one id"),
        (lambda c: c.pop("categories"), "must be lists as in COCO"),
    ],
)
def test_damaged_files_are_one_line(root: Path, tmp_path: Path, change, words: str) -> None:
    content = json.loads((root / "annotations" / "mono_train.json").read_text())
    change(content)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "mono_train.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=words) as caught:
        read_camera_images(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"mono_val\.json: no such file"):
        read_camera_images(tmp_path, "val")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "mono_val.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        read_camera_images(tmp_path, "val")
