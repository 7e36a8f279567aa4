"""Which parts of a set lie near one another, and splits that do not: hand-made drives and real readers' frames."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

import drivestack
from drivestack.core.errors import ConfigError, DataError
from drivestack.core.frames import Frame
from drivestack.core.once import forget_warnings
from drivestack.data_tools.readers.nuscenes.reader import read_nuscenes
from drivestack.data_tools.splits.make import connected, make_split, write_split
from drivestack.data_tools.splits.places import (
    Place,
    check_locations,
    frames_of_list,
    overlap,
    places_of,
    read_lists,
    read_locations,
)
from drivestack.geometry import pose

UTM = np.array([4.6e5, 5.4e6])  # where float32 has steps of 0.5 m


def drive(scene: str, start: tuple[float, float], length: int = 5, location: str = "town", step: float = 10.0) -> Place:
    """Keyframes along x."""
    xy = np.array(start) + np.stack([step * np.arange(length), np.zeros(length)], 1)
    return Place(scene, location, xy + UTM)


def frame(scene: str, x: float, y: float, location: str = "", token: str = "") -> Frame:
    conditions = {"location": location} if location else {}
    at = pose(np.eye(3), [x, y, 0.0])
    return Frame(token or f"{scene}@{x:g}", f"token of {scene}", scene, 0, (), at, conditions=conditions)


def test_distances_are_exact_and_symmetric() -> None:
    train = [drive("a", (0, 0)), drive("b", (0, 30.0)), drive("far", (0, 1000))]
    val = [drive("c", (35, 20.0)), drive("d", (500, 0))]
    found = overlap(train, val, 20.0)
    # c stands at x 35 ... 75, 10 m below b (x 0 ... 40) and 20 m above a: its first is 11.2 m from b's last
    (near,) = found.second
    assert (near.scene, near.keyframes, near.near) == ("c", 5, 3)
    assert near.least_m == pytest.approx(np.hypot(5, 10), abs=1e-6)
    assert [name for name, *_ in near.others] == ["b"]
    assert {n.scene: n.near for n in found.first} == {"b": 3}
    swapped = overlap(val, train, 20.0)
    assert (swapped.first, swapped.second) == (found.second, found.first) and not found.disjoint
    assert overlap(train, val, np.hypot(5, 10) - 1e-6).disjoint
    assert not overlap(train, val, np.hypot(5, 10) + 1e-6).disjoint
    wider = overlap(train, val, 21.0)  # a comes in, but b is nearer to every keyframe of c
    assert {n.scene for n in wider.first} == {"a", "b"} and [n.scene for n in wider.second] == ["c"]


def test_cities_have_frames_of_their_own() -> None:
    boston, singapore = drive("a", (0, 0), location="boston"), drive("b", (0, 0), location="singapore")
    assert overlap([boston], [singapore], 100.0).disjoint
    with pytest.raises(DataError, match="1 of 2 scenes have no location, such as b"):
        overlap([boston], [drive("b", (0, 0), location="")], 100.0)
    assert overlap([drive("a", (0, 0), location="")], [drive("b", (0, 0), location="")], 100.0).disjoint is False
    assert overlap([boston], [boston], 0.0).shared == ("a",)
    for distance in (-1.0, np.nan, np.inf):
        with pytest.raises(ConfigError, match="give metres from 0 on"):
            overlap([boston], [singapore], distance)


def test_poses_that_look_local_to_each_scene_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    forget_warnings()
    with caplog.at_level(logging.WARNING, "drivestack"):
        check_locations([drive(f"s{i}", (100.0 * i, 0)) for i in range(8)])
        assert not caplog.records
        check_locations([drive(f"s{i}", (0.01 * i, 0)) for i in range(8)])
    (record,) = caplog.records
    assert "8 of 8 scenes of town begin within 1 m of another one" in record.getMessage()


def test_groups_hang_together_by_steps() -> None:
    chain = [drive(f"chain{i}", (60.0 * i, 0)) for i in range(4)]  # 20 m from the end of one to the next
    alone = [drive("alone", (0, 500)), drive("abroad", (0, 0), location="other")]
    groups = connected([*alone, *chain], 20.0)
    assert [[place.scene for place in group] for group in groups] == [
        ["chain0", "chain1", "chain2", "chain3"],
        ["abroad"],
        ["alone"],
    ]
    assert len(connected([*alone, *chain], 19.99)) == 6


def scattered(seed: int, count: int = 60) -> list[Place]:
    rng = np.random.default_rng(seed)
    starts = rng.uniform(0, 3000, (count, 2))
    return [drive(f"s{i:02d}", tuple(starts[i]), int(rng.integers(2, 30))) for i in range(count)]


@pytest.mark.parametrize("seed", range(6))
def test_a_split_is_disjoint_balanced_and_the_same_for_one_seed(seed: int) -> None:
    places = scattered(seed)
    shares = {"a": 6.0, "b": 3.0, "c": 1.0}
    split = make_split(places, shares, 50.0, seed)
    assert sorted(name for part in split.parts.values() for name in part) == sorted(p.scene for p in places)
    assert split.left_out == () and sum(split.keyframes.values()) == sum(map(len, places))
    by_name = {place.scene: place for place in places}
    parts = [[by_name[name] for name in part] for part in split.parts.values()]
    for k in range(3):
        assert overlap(parts[k], [p for other in parts[:k] + parts[k + 1 :] for p in other], 50.0).disjoint
        share = split.shares[list(shares)[k]]
        assert abs(share - list(shares.values())[k] / 10) < max(0.03, split.largest / sum(map(len, places)) / 2)
    assert make_split(list(reversed(places)), shares, 50.0, seed).parts == split.parts
    assert make_split(places, shares, 50.0, seed) == split
    assert make_split(places, shares, 50.0, seed + 100).parts != split.parts


def test_counts_are_those_of_all_pairs() -> None:
    places = scattered(9)
    first, second = places[:40], places[40:]
    points = np.concatenate([place.xy_m for place in first])
    expected = {p.scene: np.linalg.norm(p.xy_m[:, None] - points, axis=2).min(1) for p in second}
    found = overlap(first, second, 150.0)
    assert {n.scene: n.near for n in found.second} == {
        s: (d <= 150).sum() for s, d in expected.items() if d.min() <= 150
    }
    assert [n.least_m for n in found.second] == pytest.approx([expected[n.scene].min() for n in found.second])
    assert all(sum(count for _, count, _ in n.others) == n.near for n in found.second) and len(found.second) > 5


def grid_of_streets() -> list[Place]:
    """One town in which everything hangs together."""
    places = []
    for i in range(10):
        for j in range(10):
            places.append(drive(f"{i}{j}", (100.0 * i, 100.0 * j), 10))
    return places


def test_a_group_that_is_too_large_is_cut_only_where_that_is_asked() -> None:
    places = grid_of_streets() + [drive("village", (9000, 9000), 20)]
    whole = make_split(places, {"a": 0.7, "b": 0.3}, 100.0)
    assert whole.groups == 2 and whole.shares["b"] == pytest.approx(20 / 1020) and whole.left_out == ()
    cut = make_split(places, {"a": 0.7, "b": 0.3}, 100.0, cut=True)
    assert 0.25 < cut.shares["b"] < 0.37
    assert 0 < cut.left_out_keyframes <= 0.3 * 1020 and len(cut.left_out) * 10 == cut.left_out_keyframes
    by_name = {place.scene: place for place in places}
    a, b = ([by_name[name] for name in cut.parts[part]] for part in "ab")
    assert overlap(a, b, 100.0).disjoint
    assert {*cut.parts["a"], *cut.parts["b"], *cut.left_out} == set(by_name)
    assert make_split(places, {"a": 0.7, "b": 0.3}, 100.0, cut=True) == cut


def test_shares_that_cannot_be_are_refused() -> None:
    near = [drive("a", (0, 0)), drive("b", (10, 0)), drive("c", (20, 0))]
    for shares in ({}, {"a": 1.0}, {"a": 1.0, "b": 0.0}, {"a": 1.0, "b": -1.0}, {"a": 1.0, "b": np.nan}):
        with pytest.raises(ConfigError, match="each with a share above 0"):
            make_split(near, shares, 50.0)
    with pytest.raises(ConfigError, match=r"hang together in 1 group\(s\), which cannot be 2 parts.*--cut"):
        make_split(near, {"a": 1.0, "b": 1.0}, 50.0)
    with pytest.raises(ConfigError, match=r"choose a smaller distance$"):
        make_split(near, {"a": 1.0, "b": 1.0}, 50.0, cut=True)


def test_frames_become_places(tmp_path: Path) -> None:
    frames = [frame("s", 1, 2, "here"), frame("s", 3, 4, "here"), frame("r", 5, 6)]
    places = places_of(frames)
    assert [(p.scene, p.location, p.xy_m.tolist()) for p in places] == [
        ("r", "", [[5, 6]]),
        ("s", "here", [[1, 2], [3, 4]]),
    ]
    assert places_of(frames, {"r": "there"})[0].location == "there"
    with pytest.raises(ConfigError, match="no scene 'q' here"):
        places_of(frames, {"q": "there"})
    with pytest.raises(DataError, match="scene s is in 2 locations: here, there"):
        places_of([*frames, frame("s", 7, 8, "there")])


def test_lists_name_scenes_or_samples(tmp_path: Path) -> None:
    frames = [frame("s", 1, 0), frame("s", 2, 0), frame("r", 3, 0)]
    assert [f.token for f in frames_of_list(frames, ["s"], "x")] == ["s@1", "s@2"]
    assert [f.token for f in frames_of_list(frames, ["token of r", "s@2"], "x")] == ["s@2", "r@3"]
    with pytest.raises(DataError, match=r"x: 1 of 2 entries are no scene or sample of the data, such as 'q'"):
        frames_of_list(frames, ["s", "q"], "x")
    file = tmp_path / "l.json"
    for content, message in (
        ("{", "not valid JSON"),
        ("[]", "must map names of parts"),
        ('{"a": "s"}', "must map names of parts"),
        ('{"a": []}', "'a' is empty or holds"),
        ('{"a": [1]}', "'a' is empty or holds"),
    ):
        file.write_text(content)
        with pytest.raises(DataError, match=message):
            read_lists(file)
    file.write_text('{"s": ""}')
    with pytest.raises(DataError, match="must map names of scenes to their location"):
        read_locations(file)
    with pytest.raises(DataError, match="cannot be read"):
        read_lists(tmp_path / "none.json")


def test_a_written_split_is_read_by_the_nuscenes_reader(own_root: Path) -> None:
    version = own_root / "v1.0-mini"
    frames = [f for split in ("mini_train", "mini_val") for f in read_nuscenes(own_root, version.name, split)]
    assert {f.conditions["location"] for f in frames} == {"here"}  # of the log table
    places = places_of(frames)
    split = make_split(places, {"geo_train": 1.0, "geo_val": 1.0}, 0.0)
    assert write_split(version / "splits.json", {"other": ["scene-0061"]}) == []
    assert write_split(version / "splits.json", split.parts) == []
    assert set(json.loads((version / "splits.json").read_text())) == {"other", "geo_train", "geo_val"}
    for name, scenes in split.parts.items():
        assert {f.scene_name for f in read_nuscenes(own_root, version.name, name)} == set(scenes)
    assert write_split(version / "splits.json", {"other": ["scene-0553"]}) == ["other"]
    with pytest.raises(ConfigError, match=r"'train' is a split of nuScenes, .* name it geo_train"):
        write_split(version / "splits.json", {"train": ["scene-0061"]})


def test_halves_of_a_real_log_are_near_where_they_meet(shared_real: Path) -> None:
    frames = drivestack.read(shared_real / "argoverse2_log", reader="argoverse2", interval_s=1.0)
    xy = np.array([frame.global_from_ego[:2, 3] for frame in frames])
    halves = [places_of(frames_of_list(frames, [f.token for f in part], "x")) for part in (frames[:8], frames[8:])]
    found = overlap(*halves, 100.0)
    distance = np.linalg.norm(xy[:8, None] - xy[None, 8:], axis=2)
    assert found.shared == ("argoverse2_log",) and found.first[0].least_m == pytest.approx(distance.min(), abs=1e-9)
    assert (found.first[0].near, found.second[0].near) == (8, len(frames) - 8)
    near = overlap(*halves, distance.min() + 1.0)
    assert near.first[0].near == (distance.min(1) <= distance.min() + 1.0).sum()
