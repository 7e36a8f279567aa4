"""Street maps as an input: cut off around the car, jittered in training, mirrored with the clip, or left out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from drivestack.core.errors import ConfigError, DataError
from drivestack.core.frames import CameraView, Frame
from drivestack.core.street_maps import STREET_KINDS, StreetMap
from drivestack.data_tools.clips.clip_dataset import ClipDataset
from drivestack.data_tools.clips.collate import collate_clips
from drivestack.data_tools.clips.mirror import mirror_clip
from drivestack.data_tools.clips.street_maps import StreetMapSettings, lines_around, training_lines
from drivestack.data_tools.labels.street_maps import read_street_map, street_map_file, write_street_map
from drivestack.geometry import CameraModel, pose, rotation_z

STILL = np.zeros(3)
AT = np.array([400_000.0, 5_000_000.0, 30.0])  # as far out as UTM coordinates are
MAIN, SIDE = STREET_KINDS.index("main_road"), STREET_KINDS.index("side_road")


def streets(yaw_rad: float, at: np.ndarray = AT) -> StreetMap:
    """A street along the car's way through it, one across 10 m ahead, one far away."""
    here = [[[-100.0, 0], [100, 0]], [[10, 0], [10, 80]], [[200, -9], [200, 9]]]
    turn = rotation_z(yaw_rad)[:2, :2]
    return StreetMap([np.array(line) @ turn.T + at[:2] for line in here], np.array([MAIN, SIDE, SIDE]))


def frame(scene: str, number: int, yaw_rad: float = 0.7, streets_of: StreetMap | None = None) -> Frame:
    axes = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # ego from a camera that looks ahead
    camera = CameraModel(np.array([[40.0, 0, 32], [0, 40, 16], [0, 0, 1]]), 64, 32)
    at = pose(rotation_z(yaw_rad), AT)
    view = CameraView("front", camera, pose(axes, [0, 0, 1.5]), at, 0, image=np.zeros((32, 64, 3), np.uint8))
    return Frame(f"{scene}-{number}", scene, scene, number, (view,), at, street_map=streets_of)


def test_streets_are_cut_off_around_the_car_and_have_even_points():
    found = lines_around(streets(0.7), pose(rotation_z(0.7), AT), StreetMapSettings(), STILL)
    assert found.lines.shape == (2, 11, 2) and found.kinds.tolist() == [MAIN, SIDE]
    expected = torch.linspace(-50, 50, 11)
    torch.testing.assert_close(found.lines[0, :, 0], expected, atol=0.15, rtol=0)
    assert found.lines[0, :, 1].abs().max() < 1e-4
    torch.testing.assert_close(found.lines[1, :, 1].sort().values, torch.linspace(0, 25, 11), atol=0.15, rtol=0)


def test_the_cars_tilt_moves_nothing():
    """Coordinates of 5,000 km times the sine of a degree are 90 km."""
    tilt = np.array([[np.cos(0.02), 0, np.sin(0.02)], [0, 1, 0], [-np.sin(0.02), 0, np.cos(0.02)]])
    flat, tilted = (
        lines_around(streets(0.7), pose(rotation_z(0.7) @ own, AT), StreetMapSettings(), STILL)
        for own in (np.eye(3), tilt)
    )
    torch.testing.assert_close(tilted.lines, flat.lines, atol=1e-3, rtol=0)


def test_jitter_moves_the_whole_map_rigidly():
    settings = StreetMapSettings(range_m=(-300, -300, 300, 300))
    at = pose(rotation_z(0.7), AT)
    exact = lines_around(streets(0.7), at, settings, STILL).lines
    moved = lines_around(streets(0.7), at, settings, np.array([1.0, -2.0, 0.03])).lines
    turn = torch.tensor(rotation_z(0.03)[:2, :2]).float()
    expected = exact @ turn.T + torch.tensor([1.0, -2.0])
    assert torch.cdist(moved.flatten(0, 1), expected.flatten(0, 1)).min(1).values.max() < 0.15  # of the clipping's step


def test_training_draws_jitter_and_leaves_maps_out():
    own, rng = frame("a", 0, streets_of=streets(0.7)), np.random.default_rng(0)
    drawn = [training_lines(own, StreetMapSettings(dropped=0.3), rng) for _ in range(300)]
    there = [found.lines[0] for found in drawn if found is not None]
    assert 0.62 < len(there) / 300 < 0.78
    across = np.std([line[:, 1].mean().item() for line in there])
    assert 1.6 < across < 2.6  # 2 m, and 2 degrees about the car
    assert training_lines(frame("a", 1), StreetMapSettings(dropped=0.0), rng) is None


def dataset(**settings) -> ClipDataset:
    frames = [frame(scene, i, yaw, streets(yaw)) for scene, yaw in (("a", 0.7), ("b", -2.0)) for i in range(2)]
    frames.append(frame("c", 0))
    return ClipDataset(classes=(), frames=frames, **settings)


def test_a_batch_holds_the_maps_and_predictions_may_see_them():
    batch = collate_clips([dataset(street_map=True)[i] for i in (0, 4)]).without_labels().to("cpu")
    assert batch.street_maps[0].lines.shape == (2, 11, 2) and batch.street_maps[1] is None
    assert collate_clips([dataset()[0]]).street_maps == [None]


def test_maps_at_test_time_can_be_wrong_or_missing_on_purpose():
    own, other, none, off = (
        dataset(street_map=dict(shown=shown, test_jitter_m=jitter))[0].street_map
        for shown, jitter in (("own", 0.0), ("other_scene", 0.0), ("none", 0.0), ("own", 5.0))
    )
    assert none is None and not torch.equal(off.lines, own.lines)
    # scene b's map around scene b's car, which faces another way but sees its streets alike
    torch.testing.assert_close(other.lines, own.lines, atol=1e-3, rtol=0)
    with pytest.raises(ConfigError, match="shown must be one of own, other_scene, none, got 'false'"):
        dataset(street_map=dict(shown="false"))
    one = ClipDataset(classes=(), frames=[frame("a", 0)], street_map=dict(shown="other_scene"))
    with pytest.raises(ConfigError, match="all frames are of one scene"):
        one[0]


def test_a_mirrored_clip_mirrors_its_map():
    clip = dataset(street_map=True)[0]
    clip = replace(clip, street_map=replace(clip.street_map, lines=clip.street_map.lines + 3.0))
    mirrored = mirror_clip(clip)
    reflected = clip.street_map.lines * torch.tensor([1.0, -1.0])
    across = (reflected[:, -1] - reflected[:, 0])[:, 0].abs() <= 1.0
    assert across.any() and not across.all()
    torch.testing.assert_close(mirrored.street_map.lines[~across], reflected[~across])
    torch.testing.assert_close(mirrored.street_map.lines[across], reflected[across].flip(1))
    shift = mirrored.street_map.lines[across][:, -1] - mirrored.street_map.lines[across][:, 0]
    assert (shift[:, 1] > 0).all()  # lines across run with growing y in both worlds
    assert mirror_clip(dataset()[0]).street_map is None


def test_files_come_back_and_broken_ones_are_named(tmp_path: Path):
    path = street_map_file(tmp_path, "scene-1")
    write_street_map(path, streets(0.7))
    found = read_street_map(path)
    assert found.kinds.tolist() == [MAIN, SIDE, SIDE]
    for line, expected in zip(found.lines, streets(0.7).lines):
        np.testing.assert_array_equal(line, expected)
    write_street_map(path, StreetMap([], np.zeros(0, np.int64)))
    assert read_street_map(path).lines == []
    for wrong, problem in (
        (StreetMap([np.zeros((1, 2))], np.zeros(1, np.int64)), "street 0 is no line of two"),
        (StreetMap([np.full((2, 2), np.nan)], np.zeros(1, np.int64)), "street 0 is no line of two"),
        (StreetMap([np.zeros((2, 2))], np.array([9])), r"street 0 has kind 9; kinds are 0\.\.4"),
        (StreetMap([np.zeros((2, 2))], np.zeros(2, np.int64)), "one whole number for each of 1 lines"),
    ):
        with pytest.raises(DataError, match=problem):
            write_street_map(path, wrong)
    np.savez(path.with_suffix(""), points=np.zeros((3, 2)), points_per_line=np.array([2]), kinds=np.array([0]))
    with pytest.raises(DataError, match=r"scene-1\.npz: points \[3, 2\] are not the lines"):
        read_street_map(path)
