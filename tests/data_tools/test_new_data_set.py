"""The page about a new data set runs: its reader on files of its layout, its check, its commands."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drivestack.cli.main import main
from drivestack.core.frames import Frame
from drivestack.data_tools.readers import registry
from drivestack.geometry import invert_pose, matrix_to_quaternion, transform_points
from support.toy_drive import MODELS, toy_drive

COEFFICIENTS = {"kannala_brandt": 4, "brown_conrady": 8}


def write_drives(frames: list[Frame], folder: Path) -> None:
    """The layout of the page."""
    folder.mkdir(parents=True)
    cameras = {}
    for view in frames[0].cameras:
        lens = view.camera.lens
        cameras[view.name] = {
            "intrinsics": view.camera.intrinsics.tolist(),
            "ego_from_camera": view.ego_from_camera.tolist(),
            "size_px": list(view.image_size_px),
        }
        if lens is not None:
            own = {"lens": lens.kind, "coefficients": lens.coefficients[: COEFFICIENTS[lens.kind]]}
            cameras[view.name] |= own
    (folder / "cameras.json").write_text(json.dumps(cameras))
    poses = [["timestamp_us", "x", "y", "z", "qw", "qx", "qy", "qz"]]
    boxes = ["timestamp_us class x y z length width height yaw_rad vx vy track".split()]  # noqa: SIM905
    for frame in frames:
        pose, notes = frame.global_from_ego, frame.annotations
        assert notes is not None
        poses.append([str(frame.timestamp_us), *pose[:3, 3], *matrix_to_quaternion(pose[:3, :3])])
        for i, box in enumerate(notes.boxes_in(invert_pose(pose))):
            row = [str(frame.timestamp_us), notes.names[i], *box[:7], *box[7:9], notes.instance_tokens[i]]
            boxes.append([str(value) for value in row])
        for view in frame.cameras:
            path = folder / "images" / view.name / f"{frame.timestamp_us}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            assert view.image is not None
            Image.fromarray(view.image).save(path)
    for name, rows in (("poses.csv", poses), ("boxes.csv", boxes)):
        with (folder / name).open("w", newline="") as file:
            csv.writer(file).writerows(rows)


@pytest.fixture
def page(repository_root: Path) -> str:
    return (repository_root / "docs" / "new_data_set.md").read_text(encoding="utf-8")


def test_the_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    import drivestack

    reader, use = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len([line for line in reader.splitlines() if line.strip()]) <= 25
    monkeypatch.chdir(tmp_path)
    Path("my_drives.py").write_text(reader)
    frames = toy_drive(4, late_us=0)
    write_drives(frames, Path("drives/2026-05-04"))
    try:
        found = drivestack.read("drives", reader="my_drives.py")
        assert len(found) == 4 and [bool(frame.next_token) for frame in found] == [True, True, True, False]
        for a, b in zip(found, frames):
            assert a.timestamp_us == b.timestamp_us
            np.testing.assert_allclose(a.global_from_ego, b.global_from_ego, rtol=0, atol=1e-9)
            assert a.annotations is not None and b.annotations is not None
            assert a.annotations.names == b.annotations.names
            mine, theirs = (x.annotations.boxes_in(np.eye(4)) for x in (a, b))
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-6)
            points = transform_points(b.global_from_ego, np.array([[20.0, 3, 1], [-15, 2, 0], [6, 12, 1], [3, -14, 2]]))
            for view, other in zip(a.cameras, b.cameras):
                uv, expected = (
                    v.camera.project(transform_points(invert_pose(v.global_from_camera), points))[0]
                    for v in (view, other)
                )
                np.testing.assert_allclose(uv, expected, rtol=0, atol=0.01)
        assert len(drivestack.read("drives", reader="my_drives.py", every=2)) == 2

        (command,) = re.findall(r"^(drivestack check-data .*)$", page, re.MULTILINE)[:1]
        assert main(shlex.split(command)[1:]) == 0
        assert capsys.readouterr().out.startswith("fits")
        names = {path.name for path in Path("check").iterdir() if not path.name.startswith(".")}
        assert {"report.json", "keyframe_000.jpg", *(f"camera_{name}.jpg" for name in MODELS)} <= names
        exec(compile(use, "docs/new_data_set.md", "exec"), {})
        assert capsys.readouterr().out == "True [] 2.0 kannala_brandt\n"
    finally:
        registry._READERS.pop("my_drives", None)
