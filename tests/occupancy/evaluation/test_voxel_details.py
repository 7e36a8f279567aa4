"""Voxels out of sight now, and the thickness of surfaces along rays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from drivestack.core.frames import Frame
from drivestack.core.labels import OccupancyLabels
from drivestack.data_tools.labels.files import write_occupancy
from drivestack.geometry import OCC3D_GRID, pose, rotation_z
from drivestack.occupancy.classes import OCC3D_NUSCENES, OCC3D_WAYMO
from drivestack.occupancy.evaluation.rayiou import cast_rays, ray_fan
from drivestack.occupancy.evaluation.voxel_details import (
    ground_classes,
    hidden_voxels,
    run_lengths,
    surface_thickness,
    table,
)

FREE, CAR, MANMADE = 17, 4, 15
GROUND = ground_classes()
SHAPE = OCC3D_GRID.shape


def scene(folder: Path, poses: list[np.ndarray], seen: list[np.ndarray], semantics: np.ndarray) -> list[Frame]:
    """Keyframes 0.5 s apart with the camera masks ``seen`` and the same voxels; the LiDAR saw x < 10 voxels."""
    lidar = np.zeros(SHAPE, bool)
    lidar[:10] = True
    frames = []
    for k, (place, mask) in enumerate(zip(poses, seen)):
        path = folder / f"{k}.npz"
        write_occupancy(path, OccupancyLabels(semantics, lidar, mask))
        frames.append(Frame(f"f{k}", "s", "s", 500_000 * k, (), place, np.eye(4), occupancy_path=str(path)))
    return frames


def some(*index: slice | int) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[index] = True
    return mask


def test_what_cameras_saw_moves_with_the_car(tmp_path: Path) -> None:
    semantics = np.full(SHAPE, FREE, np.uint8)
    semantics[:, :, 3] = MANMADE
    ahead = pose(np.eye(3), [0.8, 0.0, 0.0])  # two voxels in x
    first, nothing = some(slice(50, 60), slice(20, 30), slice(2, 5)), some(0, 0, 0)
    frames = scene(tmp_path, [np.eye(4), ahead], [first, nothing], semantics)
    wrong = semantics.copy()
    wrong[48:58, 20:30, 3] = CAR  # exactly the voxels that were seen, two voxels nearer
    found = hidden_voxels(frames, {"f0": semantics, "f1": wrong}.__getitem__)
    assert found["cameras"]["voxels"] == 10 * 10 * 3
    assert found["cameras"]["miou"] == 0.0 and found["cameras"]["occupied_iou"] == 1.0
    wrong[48:58, 20:30, 3] = FREE
    assert hidden_voxels(frames, lambda _: wrong)["cameras"]["occupied_iou"] == 0.0
    right = semantics.copy()
    right[:48], right[58:] = CAR, CAR  # elsewhere nothing counts
    assert hidden_voxels(frames, lambda _: right)["cameras"]["miou"] == 1.0


def test_turned_cars_seen_voxels_scenes_and_old_keyframes(tmp_path: Path) -> None:
    semantics = np.full(SHAPE, MANMADE, np.uint8)
    first = some(slice(150, 160), slice(120, 130), slice(2, 5))
    turned = pose(rotation_z(np.pi / 2), [0, 0, 0])  # what was at (x, y) is at (y, -x)
    frames = scene(tmp_path, [np.eye(4), turned], [first, some(slice(120, 130), slice(40, 45), slice(2, 5))], semantics)
    predicted = np.full(SHAPE, FREE, np.uint8)
    predicted[120:130, 45:50, 2:5] = MANMADE  # the half that is not seen now
    found = hidden_voxels(frames, lambda _: predicted)
    assert found["cameras"]["voxels"] == 10 * 5 * 3 and found["cameras"]["miou"] == 1.0
    assert found["lidar"]["voxels"] == 2 * 10 * SHAPE[1] * SHAPE[2] and found["lidar"]["miou"] == 0.0
    late = [
        frames[0],
        Frame("f1", "s", "s", 2_600_000, (), np.eye(4), np.eye(4), occupancy_path=frames[1].occupancy_path),
    ]
    assert hidden_voxels(late, lambda _: predicted)["cameras"] == {"miou": None, "occupied_iou": None, "voxels": 0}
    other = [
        frames[0],
        Frame("f1", "t", "t", 500_000, (), np.eye(4), np.eye(4), occupancy_path=frames[1].occupancy_path),
    ]
    assert hidden_voxels(other, lambda _: predicted)["cameras"]["voxels"] == 0


def slow_runs(voxels: np.ndarray, origin_m: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Steps of 1 cm from the origin on: how much of the first run of standing voxels there is."""
    at_m = np.arange(0.005, 40, 0.01)
    out = []
    for ray in rays:
        where, inside = OCC3D_GRID.voxels_of(origin_m + ray * at_m[:, None])
        kinds = np.full(len(at_m), FREE)
        kinds[inside] = voxels[tuple(where[inside].T)]
        standing = ~np.isin(kinds, (*GROUND, FREE))
        start = standing.argmax()
        after = standing[start:]
        out.append(0.01 * (len(after) if after.all() else after.argmin()))
    return np.array(out)


def test_runs_agree_with_a_slow_walk() -> None:
    voxels = np.full(SHAPE, FREE, np.uint8)
    voxels[:, :, 2] = GROUND[0]
    voxels[120:124, 80:120, 2:10] = MANMADE  # 1.6 m thick
    voxels[90:97, 130:131, 2:8] = CAR
    origin_m = np.array([0.94, 0.0, 1.84])
    found = run_lengths(voxels, origin_m)
    ((kinds, _, _),) = cast_rays([voxels], origin_m[None].astype(np.float32), FREE)
    rays = np.flatnonzero((kinds != FREE) & ~np.isin(kinds, GROUND))
    assert len(found) == len(rays) > 200
    slow = slow_runs(voxels, origin_m, ray_fan()[rays[::5]])
    assert np.abs(found[::5] - slow).max() < 0.25  # of steps of 0.1 m at both ends
    assert found[::5].mean() == pytest.approx(slow.mean(), abs=0.02)


def test_thickness_of_predictions_beside_that_of_labels(tmp_path: Path) -> None:
    semantics = np.full(SHAPE, FREE, np.uint8)
    semantics[120, :, :] = MANMADE
    frames = scene(tmp_path, [np.eye(4)], [some(0, 0, 0)], semantics)
    thick = semantics.copy()
    thick[120:125] = MANMADE
    found = surface_thickness(frames, lambda _: thick)
    assert 0.4 < found["labels"] < 0.8 < 2.0 < found["predicted"] < 4.0
    assert surface_thickness(frames, lambda _: np.full(SHAPE, FREE, np.uint8))["predicted"] is None
    lines = table(hidden_voxels(frames, lambda _: thick), found)
    assert "LiDAR in the scene" in lines[1] and "labels 0." in lines[-1]


def test_ground_classes_are_those_of_the_data_set() -> None:
    names = ["driveable_surface", "other_flat", "sidewalk", "terrain"]
    assert [OCC3D_NUSCENES[i] for i in ground_classes()] == names
    assert [OCC3D_WAYMO[i] for i in ground_classes(OCC3D_WAYMO)] == ["road", "walkable"]
