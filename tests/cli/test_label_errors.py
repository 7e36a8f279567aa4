"""Labels that cannot be used stop a verb with one line that names file or sample, field and fix, and exit code 2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from drivestack.cli.border import line_of
from drivestack.cli.main import main
from drivestack.core.errors import DataError
from drivestack.data_tools.labels.files import occupancy_file
from drivestack.data_tools.readers.nuscenes import read_nuscenes
from drivestack.data_tools.readers.openlane_files import write_frame

SMALL = {
    "model.img_backbone.variant": "T",
    "model.lane_head.num_layers": 1,
    "model.bev_map.bev_size": (10, 20),
    "train_dataloader.num_workers": 1,
}


def failure(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of error that the arguments give."""
    capsys.readouterr()
    assert main(arguments) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    return line


@pytest.fixture
def broken(root: Path, tmp_path: Path) -> Path:
    """A copy of the set to break."""
    return shutil.copytree(root, tmp_path / "set", symlinks=True)


def changed(path: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change an array of an .npz file."""
    with np.load(path) as stored:
        arrays = dict(stored)
    arrays[name] = change(arrays[name])
    np.savez(path, **arrays)


def with_255(semantics: np.ndarray) -> np.ndarray:
    semantics[3, 4, 5] = 255
    return semantics


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_255, "semantics holds 255, but classes are 0..17: say in the masks what is unknown"),
        (lambda s: s[:, :, :8], "semantics is uint8 [200, 200, 8], it must be uint8 [200, 200, 16]"),
        (lambda s: s.astype(np.int64), "semantics is int64 [200, 200, 16], it must be uint8"),
    ],
    ids=["255", "shape", "dtype"],
)
def test_voxel_labels(broken, config_of_three, weights, source, capsys, tmp_path, change, message):
    frame = read_nuscenes(broken, "v1.0-trainval", "val")[1]
    path = occupancy_file(broken, frame.scene_name, frame.token)
    changed(path, "semantics", change)
    options = ["--tasks", "occupancy", "--out", str(tmp_path / "out")]
    line = failure(["evaluate", str(config_of_three), str(weights), *source(broken), *options], capsys)
    assert line.startswith(f"error: {path}: ") and message in line


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("points_per_lane", lambda n: np.concatenate([[1], n[:1] - 1, n[1:]]), "lane 0 has points [1, 3]; a centre"),
        ("lane_lane", lambda m: m[:-1], "make the label again"),
        ("points", lambda p: p * np.float32("nan"), "lane 0 has points that are not finite; make the label again"),
        ("points", lambda p: p[:-1], "points_per_lane adds up to"),
    ],
    ids=["one point", "topology", "not finite", "count"],
)  # fmt: skip
def test_lane_labels(broken, config_of_three, weights, source, capsys, name, change, message):
    path = sorted((broken / "lanes").rglob("*.npz"))[0]
    changed(path, name, change)
    line = failure(["predict", str(config_of_three), str(weights), *source(broken)], capsys)
    assert line.startswith(f"error: {path}: ") and message in line


def test_training_on_openlane_files(root, tmp_path, capsys):
    """Broken labels are found before the first step, a missing image in the process that loads it."""
    frame = read_nuscenes(root, "v1.0-trainval", "val")[0]
    key = write_frame(tmp_path, "train", frame)
    path = tmp_path.joinpath(*key[:2], "info", f"{key[2]}.json")
    content = json.loads(path.read_text())
    overrides = SMALL | {"train_dataloader.dataset.source.root": str(tmp_path)}
    words = [word for name, value in overrides.items() for word in ("--set", f"{name}={value!r}")]
    command = ["train", "openlanev2_subset_b", "--work-dir", str(tmp_path / "run"), *words]

    broken = json.loads(path.read_text())
    broken["annotation"]["topology_lclc"] = [[0, 1]]
    path.write_text(json.dumps(broken))
    line = failure(command, capsys)
    assert line.startswith(f"error: {path}, frame {'/'.join(key)}: lane_lane (topology_lclc) is [1, 2]; ")

    content["sensor"]["CAM_BACK"]["image_path"] = "nowhere.jpg"
    path.write_text(json.dumps(content))
    line = failure(command, capsys)
    assert line.startswith(f"error: sample {'/'.join(key)}, camera CAM_BACK: {tmp_path}/nowhere.jpg: image is missing;")


class Broken(Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> torch.Tensor:
        raise DataError("sample x: a problem:\n  in two lines; a fix")


def test_an_error_in_a_loader_process_is_the_line_it_was():
    with pytest.raises(DataError) as caught:
        next(iter(DataLoader(Broken(), num_workers=1)))
    assert line_of(caught.value) == "sample x: a problem: in two lines; a fix"
