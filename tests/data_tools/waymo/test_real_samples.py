"""Real Waymo files: one frame of v1 with five images, one without, and poses of v2."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivestack.core.errors import DataError
from drivestack.core.frames import Frame
from drivestack.data_tools.clips.images import load_image
from drivestack.data_tools.readers.checks import rigid_problem
from drivestack.data_tools.readers.waymo.reader import read_waymo
from drivestack.data_tools.readers.waymo.tables import read_poses
from drivestack.data_tools.synthetic.files.waymo_writer import write_waymo_v1, write_waymo_v2
from drivestack.geometry import invert_pose, transform_points

OFFSETS_US = {"SIDE_LEFT": 22_418, "FRONT_LEFT": 42_418, "FRONT": 52_418, "FRONT_RIGHT": 62_418, "SIDE_RIGHT": 72_418}


@pytest.fixture(scope="module")
def frame(messages: Any, shared_real: Path) -> Frame:
    [found] = read_waymo(shared_real / "waymo" / "pvps_data_one_frame.tfrecord", camera_only=False, checksums=True)
    return found


def test_five_cameras_of_two_sizes_by_name_at_their_own_times(frame: Frame) -> None:
    assert [view.name for view in frame.cameras] == ["FRONT", "FRONT_LEFT", "FRONT_RIGHT", "SIDE_LEFT", "SIDE_RIGHT"]
    for view in frame.cameras:
        assert view.timestamp_us - frame.timestamp_us == pytest.approx(OFFSETS_US[view.name], abs=2)
    for view in frame.cameras:
        assert load_image(view, frame.token).shape == ((886 if "SIDE" in view.name else 1280), 1920, 3)
        assert view.rolling_shutter is not None and view.rolling_shutter.direction == "left_to_right"
        readout_us = view.rolling_shutter.readout_done_time_us - view.rolling_shutter.trigger_time_us
        assert 46_000 < readout_us < 48_500
        assert view.rolling_shutter.trigger_time_us < view.timestamp_us < view.rolling_shutter.readout_done_time_us
        assert view.camera.lens is not None and 0.72 < view.camera.lens.limit_rad < 0.76


def test_cameras_look_where_their_names_say(frame: Frame) -> None:
    yaw_deg = {"FRONT": 0, "FRONT_LEFT": 45, "FRONT_RIGHT": -45, "SIDE_LEFT": 90, "SIDE_RIGHT": -90}
    for view in frame.cameras:
        ahead, down = view.ego_from_camera[:3, 2], view.ego_from_camera[:3, 1]
        assert np.rad2deg(np.arctan2(ahead[1], ahead[0])) == pytest.approx(yaw_deg[view.name], abs=3)
        assert down[2] < -0.99


def test_labels_lie_on_what_they_label(frame: Frame) -> None:
    """A white lorry ahead on the right and signs: where they are in the image, read off it by eye."""
    notes = frame.annotations
    assert notes is not None and len(notes) == 75
    assert (notes.names.count("vehicle"), notes.names.count("sign")) == (37, 25)
    view = frame.cameras[0]
    camera_from_global = invert_pose(view.global_from_camera)
    uv, depth = view.camera.project(transform_points(camera_from_global, notes.centre_global_m))
    near = [uv[i] for i, name in enumerate(notes.names) if name == "vehicle" and 0 < depth[i] < 40]
    assert any(np.hypot(*(point - (1430, 650))) < 60 for point in near)
    signs = [uv[i] for i, name in enumerate(notes.names) if name == "sign" and depth[i] > 0]
    for place in ((499, 640), (1687, 670)):
        assert any(np.hypot(*(point - place)) < 12 for point in signs), place


def test_an_old_record_states_neither_synced_boxes_nor_top_points(frame: Frame) -> None:
    notes = frame.annotations
    assert notes is not None and notes.most_visible_cameras is None
    assert set(notes.num_top_lidar_points) == {-1}
    assert notes.difficulty is not None
    few = notes.num_lidar_points <= 5
    assert (notes.difficulty[few] == 2).all() and few.sum() == 6
    assert (notes.difficulty == 2).sum() == 20  # 14 more are graded so, with however many points
    assert frame.conditions == {"time_of_day": "Day", "location": "location_sf", "weather": "sunny"}


@pytest.mark.parametrize("write", [write_waymo_v1, write_waymo_v2])
def test_a_real_frame_is_written_and_read_as_it_is(frame: Frame, tmp_path: Path, parquet: Any, write: Any) -> None:
    synced = replace(frame.annotations, most_visible_cameras=["FRONT"] * 75)  # type: ignore[type-var]
    write([replace(frame, annotations=synced)], tmp_path)
    [again] = read_waymo(tmp_path, camera_only=False)
    assert again.token == frame.token
    for view, its in zip(frame.cameras, again.cameras):
        assert its.encoded is not None and view.encoded is not None
        assert its.encoded.read() == view.encoded.read()
        assert its.camera.lens == view.camera.lens and its.rolling_shutter == view.rolling_shutter
        np.testing.assert_allclose(its.camera.intrinsics, view.camera.intrinsics, atol=1e-9)
        np.testing.assert_allclose(its.global_from_camera, view.global_from_camera, atol=1e-9)
    np.testing.assert_allclose(again.bev_boxes(), frame.bev_boxes(), atol=1e-9)


def test_a_record_without_images_and_a_file_of_another_kind_are_refused(messages: Any, shared_real: Path) -> None:
    with pytest.raises(DataError, match=r"val\.tfrecord: none of 1 frames has an image"):
        read_waymo(shared_real / "waymo" / "val.tfrecord")
    with pytest.raises(DataError, match=r"gt\.bin: record 1.*no TFRecord file"):
        read_waymo(shared_real / "waymo" / "gt.bin")


def test_real_poses_of_v2(parquet: Any, shared_real: Path) -> None:
    poses = read_poses(shared_real / "waymo_v2" / "vehicle_pose.parquet")
    times = list(poses)
    assert len(poses) == 199 and times == sorted(times)
    assert np.median(np.diff(times)) == pytest.approx(100_000, abs=50)
    assert rigid_problem(np.stack(list(poses.values()))) is None
    with pytest.raises(DataError, match=r"camera_hkp\.parquet: has no column '\[VehiclePose"):
        read_poses(shared_real / "waymo_v2" / "camera_hkp.parquet")
