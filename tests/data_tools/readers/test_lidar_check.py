"""Boxes against LiDAR sweeps: what is found, what is left alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drivestack.core.errors import DataError
from drivestack.core.frames import Annotations, CameraView, Frame
from drivestack.core.once import forget_warnings
from drivestack.data_tools.readers.lidar_check import check_lidar
from drivestack.data_tools.readers.registry import DataSource
from drivestack.geometry import CameraModel, pose, rotation_z

SIZE_LWH_M = np.array([4.6, 1.9, 1.6])
PLACES_M = np.array([[8.0, 5, 0.8], [15, -6, 0.8], [-12, 7, 0.8], [22, 3, 0.8], [-20, -9, 0.8], [5, -14, 0.8]])
YAW_RAD = np.array([0.0, 0.4, -0.9, 1.5, 2.4, -2.0])
LOOKING_AHEAD = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])


def frame(tmp_path: Path, change: Callable[[Annotations], Annotations] = lambda notes: notes) -> Frame:
    """Six cars around a car that stands somewhere in the world, with the sweep that sees their surfaces."""
    rng = np.random.default_rng(0)
    global_from_ego = pose(rotation_z(0.7), [400.0, 900.0, 12.0])
    points = []
    for centre, yaw in zip(PLACES_M, YAW_RAD):
        local = rng.uniform(-0.5, 0.5, (60, 3)) * SIZE_LWH_M
        local[:, 1] = np.sign(local[:, 1]) * SIZE_LWH_M[1] / 2
        points.append(local @ rotation_z(yaw).T + centre)
    ground = np.concatenate([rng.uniform(-40, 40, (500, 2)), np.zeros((500, 1))], 1)
    sweep = np.concatenate([*points, ground])
    path = tmp_path / "sweep.bin"
    np.concatenate([sweep, np.zeros((len(sweep), 2))], 1).astype(np.float32).tofile(path)
    notes = Annotations.of_boxes(
        ["car"] * 6, PLACES_M, np.tile(SIZE_LWH_M, (6, 1)), YAW_RAD, global_from_frame=global_from_ego
    )
    view = CameraView(
        "FRONT",
        CameraModel(np.diag([50.0, 50, 1]), 80, 60),
        pose(LOOKING_AHEAD, [1.5, 0, 1.5]),
        global_from_ego,
        0,
        "x.jpg",
    )
    return Frame(
        "t",
        "s",
        "s",
        0,
        (view,),
        global_from_ego,
        annotations=change(replace(notes, num_lidar_points=np.full(6, 60))),
        lidar_path=str(path),
    )


def test_boxes_where_their_points_are_pass(tmp_path: Path) -> None:
    check_lidar([frame(tmp_path)])


def counted(factor: int) -> Callable[[Annotations], Annotations]:
    return lambda notes: replace(notes, num_lidar_points=notes.num_lidar_points * factor)


def test_counts_over_several_sweeps_are_said_and_not_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    forget_warnings()
    check_lidar([frame(tmp_path, counted(3))])
    assert "6 hold fewer in the sweep than stated: counted over several sweeps or LiDARs" in caplog.text


@pytest.mark.parametrize("factor", [1, 3])
@pytest.mark.parametrize(
    "change",
    [
        lambda notes: replace(notes, centre_global_m=notes.centre_global_m + [0, 0, 3.0]),
        lambda notes: replace(notes, centre_global_m=notes.centre_global_m + [4.0, 4.0, 0]),
        lambda notes: replace(notes, rotation_global=notes.rotation_global @ rotation_z(np.pi / 2)),
        lambda notes: replace(notes, size_lwh_m=notes.size_lwh_m[:, [1, 0, 2]]),
    ],
    ids=["above", "beside", "across", "width and length"],
)
def test_boxes_that_are_elsewhere_are_named(tmp_path: Path, change: Callable, factor: int) -> None:
    with pytest.raises(DataError, match=r"sample t and others: of 6 labelled objects .* have them elsewhere"):
        check_lidar([frame(tmp_path, lambda notes: counted(factor)(change(notes)))])


def test_every_reader_is_held_to_it(tmp_path: Path) -> None:
    turned = frame(tmp_path, lambda notes: replace(notes, centre_global_m=notes.centre_global_m + [0, 0, 3.0]))
    with pytest.raises(DataError, match="elsewhere"):
        DataSource(lambda root: [turned], tmp_path).read()


def test_what_shows_nothing_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shifted = lambda notes: replace(notes, centre_global_m=notes.centre_global_m + 5.0)
    unknown = lambda notes: replace(shifted(notes), num_lidar_points=np.ones(6, np.int64))
    check_lidar([frame(tmp_path, unknown)])
    check_lidar([replace(frame(tmp_path, shifted), lidar_path="")])
    check_lidar([replace(frame(tmp_path, shifted), lidar_path=str(tmp_path / "not_fetched.bin"))])
    damaged = frame(tmp_path, shifted)
    Path(damaged.lidar_path).write_bytes(b"\0" * 33)
    forget_warnings()
    check_lidar([damaged])
    assert "no whole number of points" in caplog.text and "labels are not compared" in caplog.text
