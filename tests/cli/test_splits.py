"""`check-splits` and `make-splits` on a synthetic set: exit codes, what is printed and written, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from drivestack.cli.main import main
from drivestack.data_tools.readers.nuscenes.reader import read_nuscenes


@pytest.fixture(scope="session")
def scenes(root: Path) -> list[str]:
    return sorted({frame.scene_name for frame in read_nuscenes(root, "v1.0-trainval", "val")})


def write(path: Path, content: object) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def failure(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    return line


def test_lists_are_held_against_poses(root: Path, source, scenes: list[str], tmp_path: Path, capsys) -> None:
    frames = read_nuscenes(root, "v1.0-trainval", "val")
    tokens = [frame.token for frame in frames if frame.scene_name == scenes[1]]
    lists = write(tmp_path / "lists.json", {"mine": [scenes[0]], "yours": tokens})
    check = ["check-splits", *source(root), "--lists", lists]
    assert main(check) == 0  # every synthetic scene is a world of its own
    text = capsys.readouterr().out
    assert f"locations   synthetic-0-{scenes[0]}, synthetic-0-{scenes[1]}" in text
    assert "mine and yours lie apart: no keyframe within 100 m" in text

    town = write(tmp_path / "town.json", dict.fromkeys(scenes, "town"))
    out = tmp_path / "near.json"
    assert main([*check, "--locations", town, "--metres", "5000", "--out", str(out)]) == 1
    text = capsys.readouterr().out
    assert "mine: 2 of 2 keyframes (100.0%) of 1 of 1 scenes lie within 5000 m of yours" in text
    assert f"{scenes[1]:<24} 2 of 2 keyframes near {scenes[0]} (2, " in text
    (written,) = json.loads(out.read_text())
    assert (written["disjoint"], written["metres"], list(written["near"])) == (False, 5000.0, ["mine", "yours"])

    both = write(tmp_path / "both.json", {"mine": scenes, "yours": tokens})
    assert main(["check-splits", *source(root), "--lists", both]) == 1
    assert f"mine and yours share 1 scenes: {scenes[1]}" in capsys.readouterr().out


def test_a_split_is_made_written_beside_others_and_checked(root: Path, source, scenes, tmp_path: Path, capsys) -> None:
    out = tmp_path / "splits.json"
    write(out, {"before": [scenes[0]]})
    make = ["make-splits", *source(root), "--parts", "geo_train=0.5", "geo_val=0.5", "--out", str(out)]
    assert main(make) == 0
    text = capsys.readouterr().out
    assert "geo_val     1 scenes, 2 keyframes: 50.0%, 50.0% wanted" in text and "replaced" not in text
    content = json.loads(out.read_text())
    assert list(content) == ["before", "geo_train", "geo_val"]
    assert sorted(content["geo_train"] + content["geo_val"]) == scenes
    lists = write(tmp_path / "l.json", {name: content[name] for name in ("geo_train", "geo_val")})
    assert main(["check-splits", *source(root), "--lists", lists]) == 0

    long = write(tmp_path / "long.json", {f"a part of a long name {name}": content[name] for name in list(content)[1:]})
    capsys.readouterr()
    assert main(["check-splits", *source(root), "--lists", long]) == 0
    assert "a part of a long name geo_val 1 scenes, 2 keyframes" in capsys.readouterr().out

    town = ["--locations", write(tmp_path / "town.json", dict.fromkeys(scenes, "town")), "--metres", "5000"]
    assert "hang together in 1 group(s), which cannot be 2 parts" in failure([*make, *town], capsys)


def test_what_cannot_be_compared_is_refused(root: Path, source, scenes: list[str], tmp_path: Path, capsys) -> None:
    check = ["check-splits", *source(root)]
    assert "one source has nothing to be compared with" in failure(check, capsys)
    assert "the same source is named twice" in failure([*check, "--and", "split=val"], capsys)
    assert "no such folder" in failure([*check, "--and", "root=nowhere"], capsys)
    lists = ["--lists", write(tmp_path / "l.json", {"a": [scenes[0]], "b": ["scene-9999"]})]
    assert "l.json: b: 1 of 1 entries are no scene or sample of the data" in failure([*check, *lists], capsys)
    lists = ["--lists", write(tmp_path / "l.json", {"a": [scenes[0]], "b": [scenes[1]]})]
    assert "give metres from 0 on" in failure([*check, *lists, "--metres", "-3"], capsys)
    few = ["--locations", write(tmp_path / "x.json", {"scene-9999": "town"})]
    assert "no scene 'scene-9999' here" in failure([*check, *lists, *few], capsys)
    make = ["make-splits", *source(root), "--out", str(tmp_path / "s.json"), "--parts"]
    assert "is a split of nuScenes, which readers take first" in failure([*make, "train=1", "geo=1"], capsys)
    assert "write a share, for example b=0.8" in failure([*make, "a=1", "b=much"], capsys)
    assert not (tmp_path / "s.json").exists()
