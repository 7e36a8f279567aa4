"""check-data tells in its first line whether a set fits, writes numbers and pictures, and draws what does not fit."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drivestack.cli.main import main
from drivestack.core.errors import DataError
from drivestack.core.frames import Frame
from drivestack.data_tools.readers.checks import check_frames, problems_noted
from drivestack.data_tools.readers.registry import DataSource
from drivestack.geometry import pose
from drivestack.tasks.check_data import check_data
from support.toy_drive import toy_drive


def checked(frames: list[Frame], out: Path, **options):
    return check_data(DataSource(lambda root: frames, "toy"), out, **options)


def test_a_set_that_fits(tmp_path: Path) -> None:
    found = checked(toy_drive(3), tmp_path, pictures=2, camera_width_px=200)
    assert found.fits and found.problems == []
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["fits"] and report["boxes"]["boxes"] == 9 and report["times"]["rate_hz"] == 2.0
    names = ["keyframe_000.jpg", "keyframe_001.jpg", *(f"camera_{n}.jpg" for n in ("front", "left", "rear", "right"))]
    assert report["pictures"] == names and all((tmp_path / name).is_file() for name in names)
    with Image.open(tmp_path / "camera_front.jpg") as picture:
        assert picture.size == (128, 80)


def test_a_set_that_the_border_refuses_is_drawn_all_the_same(tmp_path: Path) -> None:
    """Boxes left in the car's frame, far from the global origin: refused elsewhere, here named and drawn."""
    frames = [
        replace(frame, annotations=replace(frame.annotations, centre_global_m=np.array([[15.0, 1, 1]] * 3)))
        for frame in toy_drive(3)
        if frame.annotations is not None
    ]
    with pytest.raises(DataError, match="but near the global origin"):
        check_frames(frames)
    found = checked(frames, tmp_path, pictures=1, camera_width_px=120)
    assert not found.fits and "but near the global origin" in found.problems[0]
    assert len(found.pictures) == 5 and found.numbers["boxes"]["boxes"] == 9


def test_poses_that_are_none_leave_the_report(tmp_path: Path) -> None:
    frames = [replace(frame, global_from_ego=np.full((4, 4), np.nan)) for frame in toy_drive(2)]
    found = checked(frames, tmp_path, pictures=1)
    assert any("has a NaN" in problem for problem in found.problems)
    assert json.loads((tmp_path / "report.json").read_text())["fits"] is False


def test_problems_are_noted_only_where_asked() -> None:
    frames = [replace(frame, global_from_ego=pose(np.diag([1.0, -1, -1]), [0, 0, 0])) for frame in toy_drive(2)]
    with problems_noted() as problems:
        check_frames(frames)
        check_frames(frames)
    assert len(problems) == len(set(problems)) and "tilts the car by 180 degrees" in problems[0]
    with pytest.raises(DataError, match="tilts the car"):
        check_frames(frames)


def test_an_image_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    frames = toy_drive(2)
    broken = [
        replace(f, cameras=(replace(f.cameras[0], image=None, image_path=str(tmp_path / "no.jpg")), *f.cameras[1:]))
        for f in frames
    ]
    found = checked(broken, tmp_path / "out", pictures=2, camera_width_px=120)
    assert any("sample toy-0, camera front" in text and "image is missing" in text for text in found.problems)


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("good.py").write_text(
        "import drivestack\nfrom support.toy_drive import toy_drive\n\n"
        "@drivestack.register_reader('toy_good')\ndef read(root, number=2):\n    return toy_drive(number)\n"
    )
    Path("bad.py").write_text(
        "import drivestack\nfrom dataclasses import replace\nfrom support.toy_drive import toy_drive\n\n"
        "@drivestack.register_reader('toy_bad')\ndef read(root):\n"
        "    names = {'left': 'right', 'right': 'left'}\n"
        "    return [replace(f, cameras=tuple(replace(v, name=names.get(v.name, v.name)) for v in f.cameras))\n"
        "            for f in toy_drive(2)]\n"
    )
    small = ["--pictures", "1", "--camera-width", "120"]
    assert main(["check-data", "x", "--reader", "good.py", "--option", "number=3", "--out", "a", *small]) == 0
    out = capsys.readouterr().out
    assert out.startswith("fits: nothing looks wrong") and "3 keyframes in 1 drives, 2 Hz" in out
    assert "kannala_brandt" in out and "9 boxes in 3 labelled keyframes, 3 tracks" in out
    assert main(["check-data", "--dataroot", "x", "--reader", "bad.py", "--out", "b", *small]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "looks wrong (2):" and "its name says right, but it looks to the left" in lines[1]
    assert main(["check-data", "x", "--reader", "none.py", "--out", "c"]) == 2
    assert "none.py: no such file" in capsys.readouterr().err and not Path("c").exists()
    assert main(["check-data", "x", "--dataroot", "y", "--reader", "good.py"]) == 2
    assert "give one of them" in capsys.readouterr().err
    assert main(["check-data", "none.mcap", "--out", "d"]) == 2
    installed = importlib.util.find_spec("mcap") is not None
    assert ("none.mcap: no such file" if installed else "pip install 'drivestack[mcap]'") in capsys.readouterr().err


def test_a_camera_s_name_is_no_way_out_of_the_folder(tmp_path: Path) -> None:
    frames = [
        replace(frame, cameras=(replace(frame.cameras[0], name="/../../escaped"), *frame.cameras[1:]))
        for frame in toy_drive(2)
    ]
    found = checked(frames, tmp_path / "a/b/out", pictures=1, camera_width_px=120)
    assert not found.fits and any("escaped" in problem for problem in found.problems)
    assert not [path for path in tmp_path.rglob("*escaped*")]
