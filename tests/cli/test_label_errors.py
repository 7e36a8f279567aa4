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
from drivestack.data_tools.readers.nuscenes.reader import read_nuscenes
from drivestack.data_tools.readers.openlane.files import write_frame

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
        (lambda s: s[:, :, :8], "semantics is uint8 [200, 200, 8]; it must be uint8 [200, 200, 16]"),
        (lambda s: s.astype(np.float32), "semantics is float32 [200, 200, 16]; it must be uint8"),
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


@pytest.fixture
def judged(root: Path, submission: Path, tmp_path: Path) -> Callable[..., str]:
    """The one line with which ``score`` refuses the boxes on a changed copy of the set; nothing may be predicted."""

    def refused(capsys, change: Callable[[Path], None], *options: str, version: str = "v1.0-trainval") -> str:
        folder = shutil.copytree(root, tmp_path / "judged", symlinks=True)
        tables = folder / "v1.0-trainval"
        change(tables)
        tables.rename(folder / version)
        source = ["--dataroot", str(folder), "--version", version, "--split", "val"]
        return failure(["score", str(submission), *source, *options], capsys)

    return refused


def rewrite(tables: Path, name: str, change: Callable[[dict], object]) -> None:
    path = tables / f"{name}.json"
    rows = json.loads(path.read_text())
    for row in rows:
        change(row)
    path.write_text(json.dumps(rows))


def test_categories_of_ones_own_are_named(judged, capsys):
    own = lambda row: row.update(name=row["name"].split(".")[-1])
    line = judged(capsys, lambda tables: rewrite(tables, "category", own))
    assert "no label is of the classes that are scored (car, truck, bus," in line
    assert "of the categories " in line and "name the categories as nuScenes does (vehicle.car," in line


def test_versions_that_the_devkit_does_not_score_are_named(judged, capsys):
    pytest.importorskip("nuscenes", reason="nuscenes-devkit is not installed")
    line = judged(capsys, lambda tables: None, "--official", version="v1.0-mine")
    assert "nuscenes-devkit does not score split 'val'" in line and "only of versions that end in 'trainval'" in line
    assert "leave --official out" in line


def test_objects_of_two_attributes_are_named(judged, capsys):
    pytest.importorskip("nuscenes", reason="nuscenes-devkit is not installed")
    twice = lambda row: row.update(attribute_tokens=row["attribute_tokens"] * 2)
    line = judged(capsys, lambda tables: rewrite(tables, "sample_annotation", twice), "--official")
    assert "sample_annotation.json: object " in line and " has the attributes " in line
    assert "nuscenes-devkit takes none or one of cycle.with_rider" in line


def test_what_the_devkit_raises_is_one_line(judged, capsys):
    pytest.importorskip("nuscenes", reason="nuscenes-devkit is not installed")
    line = judged(capsys, lambda tables: (tables / "map.json").write_text("[]"), "--official")
    assert "nuscenes-devkit cannot load" in line and "IndexError" in line and line.endswith("correct or remake the set")


def test_a_range_of_a_class_that_nobody_names(root, submission, source, capsys):
    line = failure(["score", str(submission), *source(root), "--class-range", "pedstrian=20"], capsys)
    assert "class range of 'pedstrian': neither labels nor submission have it; there are barrier" in line
    for wrong in ("inf", "-3", "True"):
        line = failure(["score", str(submission), *source(root), "--class-range", f"car={wrong}"], capsys)
        assert "write a radius in metres" in line


def test_submissions_are_checked_before_they_are_drawn(root, submission, source, tmp_path, capsys):
    drawn = ["visualize", *source(root), "--out", str(tmp_path / "pictures"), "--max", "1", "--submission"]
    content = json.loads(submission.read_text())
    token = sorted(content["results"])[0]
    content["results"][token][0]["size"] = [1, -1, 1]
    (tmp_path / "broken.json").write_text(json.dumps(content))
    assert "size: is not positive" in failure([*drawn, str(tmp_path / "broken.json")], capsys)
    content["results"] = {"elsewhere": []}
    (tmp_path / "foreign.json").write_text(json.dumps(content))
    line = failure([*drawn, str(tmp_path / "foreign.json")], capsys)
    assert "none of its 1 samples is one of the 4 of the split: it has 'elsewhere'" in line
    voxels = tmp_path / "voxels"
    voxels.mkdir()
    np.savez(voxels / f"{token}.npz", np.zeros((200, 200, 16)))
    line = failure([*drawn, str(voxels), "--sample", token], capsys)
    assert f"sample {token}: dtype float64; write voxels.astype(numpy.uint8)" in line
    assert not (tmp_path / "pictures").exists()
    np.savez(voxels / f"{token}.npz", np.full((200, 200, 16), 16, np.uint8))  # OpenOcc's number of free
    (voxels / "theirs.npz").write_bytes(b"")
    assert main([*drawn, str(voxels), "--sample", token]) == 0
    said = capsys.readouterr().err
    assert "1 of its 2 samples are not of the split, such as theirs; they are not drawn" in said
    assert "classes are read as OpenOcc's numbers" in said


class Broken(Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> torch.Tensor:
        raise DataError("sample x: a problem:\n  in two lines; a fix")


def test_an_error_in_a_loader_process_is_the_line_it_was():
    with pytest.raises(DataError) as caught:
        next(iter(DataLoader(Broken(), num_workers=1)))
    assert line_of(caught.value) == "sample x: a problem: in two lines; a fix"
