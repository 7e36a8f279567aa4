"""LiDAR files of 4 and 5 floats per point."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drivestack.core.errors import DataError
from drivestack.core.frames import Frame
from drivestack.data_tools.readers.lidar import read_lidar


def with_sweep(frame: Frame, path: Path, count: int, width: int) -> tuple[Frame, np.ndarray]:
    points = np.random.default_rng(0).uniform(-50, 50, (count, width)).astype(np.float32)
    points.tofile(path)
    return replace(frame, lidar_path=str(path)), points[:, :3]


@pytest.mark.parametrize("width", [4, 5])
def test_the_size_says_how_many_floats_a_point_has(frame: Frame, tmp_path: Path, width: int) -> None:
    swept, points = with_sweep(frame, tmp_path / "a.bin", 1001, width)
    np.testing.assert_array_equal(read_lidar(swept), points)
    np.testing.assert_array_equal(read_lidar(replace(swept, lidar_floats_per_point=9 - width)), points)


@pytest.mark.parametrize("width", [4, 5])
def test_the_frame_decides_where_both_fit_and_else_the_rings(frame: Frame, tmp_path: Path, width: int) -> None:
    swept, points = with_sweep(frame, tmp_path / "a.bin", 1000, width)
    np.testing.assert_array_equal(read_lidar(replace(swept, lidar_floats_per_point=width)), points)
    assert len(read_lidar(swept)) == len(points) * width // 4  # no fifth value that is a ring
    if width == 5:
        rings = np.fromfile(tmp_path / "a.bin", np.float32).reshape(-1, 5)
        rings[:, 4] = np.arange(1000) % 32
        rings.tofile(tmp_path / "a.bin")
        np.testing.assert_array_equal(read_lidar(swept), points)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"x" * 44, r"its 44 bytes are no whole number of points"),
        (b"x" * 101, r"its 101 bytes are no whole number of points"),
        (np.full(64, 1e30, np.float32).tobytes(), "most of it is no points"),
        (b"# .PCD v0.7 - point cloud file\n" * 16, "most of it is no points"),
    ],
)
def test_other_files_are_named(frame: Frame, tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "sweep.bin"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"sample token: LiDAR file .*sweep\.bin: {problem}"):
        read_lidar(replace(frame, lidar_path=str(path)))


def test_a_wrong_number_in_the_frame_is_named(frame: Frame, tmp_path: Path) -> None:
    swept, _ = with_sweep(frame, tmp_path / "a.bin", 1000, 5)
    with pytest.raises(DataError, match="3 floats per point"):
        read_lidar(replace(swept, lidar_floats_per_point=3))


def test_no_lidar_is_no_error(frame: Frame, tmp_path: Path) -> None:
    assert read_lidar(frame).shape == (0, 3)
    assert read_lidar(replace(frame, lidar_path=str(tmp_path / "nowhere.bin"))).shape == (0, 3)
    (tmp_path / "empty.bin").touch()
    assert read_lidar(replace(frame, lidar_path=str(tmp_path / "empty.bin"))).shape == (0, 3)
