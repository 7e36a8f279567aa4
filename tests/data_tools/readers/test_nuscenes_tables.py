"""Tables in blocks, splits, and what a broken or unusual file does."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from drivestack.core.errors import DataError
from drivestack.data_tools.readers.nuscenes import tables as nuscenes_tables
from drivestack.data_tools.readers.nuscenes.reader import DETECTION_CLASS, read_nuscenes
from drivestack.data_tools.readers.nuscenes.splits import official_splits
from drivestack.data_tools.readers.nuscenes.tables import iterate_rows, split_tokens

VERSION = "v1.0-mini"
NO_DEVKIT = "nuscenes-devkit, the oracle, is not installed"


class Row(msgspec.Struct):
    token: str
    place: tuple[float, float]


def rows_of(count: int, name: str = "row {}") -> list[dict]:
    return [{"token": name.format(i), "skipped": [i], "place": [i / 3, -i]} for i in range(count)]


@pytest.fixture(params=[16, 100, 1 << 20])
def block(request, monkeypatch):
    monkeypatch.setattr(nuscenes_tables, "_BLOCK_BYTES", request.param)
    return request.param


@pytest.mark.parametrize("indent", [None, 0, 4])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_blocks_give_the_rows_of_the_whole_file(tmp_path: Path, block, indent, count) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps(rows_of(count), indent=indent))
    found = list(iterate_rows(path, Row))
    assert [(row.token, *row.place) for row in found] == [(f"row {i}", i / 3, -i) for i in range(count)]


def test_a_cut_inside_of_a_text_is_survived(tmp_path: Path, block) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps(rows_of(40, 'a"}},{{"b {}')))
    assert [row.token for row in iterate_rows(path, Row)] == [f'a"}},{{"b {i}' for i in range(40)]


def test_pythons_nan_is_read(tmp_path: Path, block) -> None:
    rows = rows_of(40)
    rows[33]["place"][1] = float("nan")
    path = tmp_path / "table.json"
    path.write_text(json.dumps(rows))
    found = list(iterate_rows(path, Row))
    assert len(found) == 40 and [i for i, row in enumerate(found) if row.place != row.place] == []
    assert [i for i, row in enumerate(found) if row.place[1] != row.place[1]] == [33]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(rows_of(40))[:-30], "not valid JSON"),
        ("", "not valid JSON"),
        (json.dumps(rows_of(30) + [{"token": "t"}]), r"missing required field `place` - at `\$\[30\]`"),
        (json.dumps({"token": "t"}), "Expected `array`"),
        (json.dumps(rows_of(30) + [{"token": "t", "place": [1]}]), r"length 2.* - at `\$\[30\].place`"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, block, text, message) -> None:
    path = tmp_path / "ego_pose.json"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"ego_pose\.json: .*{message}.*; .*again"):
        list(iterate_rows(path, Row))


def test_official_splits_have_their_sizes_and_halves() -> None:
    splits = official_splits()
    sizes = {"train": 700, "val": 150, "test": 150, "mini_train": 8, "mini_val": 2, "train_detect": 350}
    assert {name: len(splits[name]) for name in sizes} == sizes
    assert set(splits["train_detect"]) | set(splits["train_track"]) == set(splits["train"])
    assert len({*splits["train"], *splits["val"], *splits["test"]}) == 1000


def test_splits_and_classes_are_the_devkits() -> None:
    theirs = pytest.importorskip("nuscenes.utils.splits", reason=NO_DEVKIT).create_splits_scenes()
    assert {name: list(scenes) for name, scenes in official_splits().items()} == theirs
    utils = pytest.importorskip("nuscenes.eval.detection.utils", reason=NO_DEVKIT)
    others = ["animal", "vehicle.emergency.police", "human.pedestrian.stroller", "static_object.bicycle_rack"]
    for category in (*DETECTION_CLASS, *others):
        assert utils.category_to_detection_name(category) == DETECTION_CLASS.get(category)
    names = pytest.importorskip("nuscenes.eval.detection.constants", reason=NO_DEVKIT).DETECTION_NAMES
    assert set(DETECTION_CLASS.values()) == set(names)


def test_maps_need_no_picture(own_root: Path) -> None:
    (own_root / "maps" / "map.png").unlink()
    assert len(read_nuscenes(own_root, VERSION, "mini_train")) == 8


def test_a_broken_table_that_is_not_used_is_named_too(own_root: Path) -> None:
    (own_root / VERSION / "log.json").write_text("[{")
    with pytest.raises(DataError, match=r"log\.json: not valid JSON"):
        read_nuscenes(own_root, VERSION, "mini_train")


def test_an_annotation_without_instance_is_a_misfit(own_root: Path, edit_table) -> None:
    edit_table("instance", lambda rows: rows.clear())
    with pytest.raises(DataError, match=r"do not fit together .*scene-0061-o0"):
        read_nuscenes(own_root, VERSION, "mini_train")


def test_split_tokens(tmp_path: Path) -> None:
    tables = tmp_path / "v1.0-trainval"
    tables.mkdir()
    scenes = [{"token": "s1", "name": "scene-0003"}, {"token": "s2", "name": "scene-0001"}]  # val, train
    samples = [{"token": "t1", "scene_token": "s1"}, {"token": "t2", "scene_token": "s2"}]
    (tables / "scene.json").write_text(json.dumps(scenes))
    (tables / "sample.json").write_text(json.dumps(samples))
    (tables / "splits.json").write_text(json.dumps({"mine": ["scene-0001", "scene-0003"]}))
    assert split_tokens(tmp_path, "v1.0-trainval", "val") == ["t1"]
    assert split_tokens(tmp_path, "v1.0-trainval", "mine") == ["t1", "t2"]
    for split, message in (("vall", "unknown split 'vall'"), ("test", "no sample of split 'test'")):
        with pytest.raises(DataError, match=message):
            split_tokens(tmp_path, "v1.0-trainval", split)
    with pytest.raises(DataError, match=r"scene\.json"):
        split_tokens(tmp_path, "v1.0-mini", "mini_val")
    (tables / "sample.json").write_text("[{")
    with pytest.raises(DataError, match=r"sample\.json: not valid JSON"):
        split_tokens(tmp_path, "v1.0-trainval", "val")
