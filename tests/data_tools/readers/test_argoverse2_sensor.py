"""Argoverse 2's sensor data set: hand-made logs, and a real one through reader, checks, submission and score."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

import drivestack
from drivestack.bev.evaluation.argoverse2_metrics import NUMBERS
from drivestack.bev.evaluation.argoverse2_rules import check_submission, sweeps_of
from drivestack.bev.evaluation.argoverse2_submission import score_submission
from drivestack.core.argoverse2 import EVALUATED_CLASSES, OTHER_CATEGORIES
from drivestack.core.cameras import RING_ORDER
from drivestack.core.errors import ConfigError, DataError
from drivestack.core.feather import FeatherTable, write_feather
from drivestack.core.once import forget_warnings
from drivestack.data_tools.readers.argoverse2.files import Trajectory, nearest_times
from drivestack.data_tools.readers.argoverse2.sensor import read_argoverse2_sensor, track_velocities
from drivestack.data_tools.readers.registry import find_reader
from drivestack.geometry import invert_pose, quaternion_to_matrix, rotation_z, transform_points
from support.argoverse2_log import SPEED_MPS, START_NS, STEP_NS, TURN_RADPS, car_at, touch_images, write_log

pytest.importorskip("pyarrow", reason="Feather files need pyarrow (extra argoverse)")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "sensor"
    for split, log in (("val", "log-b"), ("val", "log-a"), ("train", "log-c")):
        write_log(root / split / log)
    write_log(root / "test" / "log-d", labels=False)
    return root


def test_boxes_lie_in_the_city_and_move_as_their_tracks(root: Path) -> None:
    frames = read_argoverse2_sensor(root)
    assert [frame.scene_token for frame in frames] == ["log-a"] * 5 + ["log-b"] * 5
    frame = frames[1]
    assert frame.token == f"log-a-{START_NS + STEP_NS}" and frame.timestamp_us == (START_NS + STEP_NS) // 1000
    notes = frame.annotations
    assert notes.names == ["REGULAR_VEHICLE", "BOLLARD", ""]  # animals are not evaluated
    assert notes.categories == ["REGULAR_VEHICLE", "BOLLARD", "ANIMAL"] and notes.instance_tokens == [
        "car",
        "post",
        "dog",
    ]
    assert notes.num_lidar_points.tolist() == [5, 2, 0]
    quaternion, place = car_at(np.array([START_NS + STEP_NS]))
    wanted = quaternion_to_matrix(quaternion[0]) @ [10, 3, 0.5] + place[0]
    np.testing.assert_allclose(notes.centre_global_m[0], wanted, atol=1e-8)
    np.testing.assert_allclose(frame.bev_boxes()[0, :7], [10, 3, 0.5, 4, 2, 1.5, 0.2], atol=1e-8)
    # the car stays beside ours: it has our speed, and that of our turn about the city's z axis
    yaw = TURN_RADPS * STEP_NS * 1e-9
    turned = TURN_RADPS * (rotation_z(np.pi / 2) @ rotation_z(yaw) @ [10, 3, 0])[:2]
    np.testing.assert_allclose(notes.velocity_global_mps[0], [SPEED_MPS + turned[0], 0.2 + turned[1]], atol=1e-3)
    assert np.isnan(notes.velocity_global_mps[1]).all()  # seen in one sweep only
    assert frames[0].prev_token == "" and frames[0].next_token == frame.token and frames[4].next_token == ""


def test_the_city_is_in_the_name_of_the_map(root: Path) -> None:
    (root / "val/log-a/map").mkdir()
    (root / "val/log-a/map/log_map_archive_log-a____PIT_city_47896.json").touch()
    (root / "val/log-b/map").mkdir()
    (root / "val/log-b/map/log_map_archive_x.json").touch()
    frames = read_argoverse2_sensor(root)
    assert [frame.conditions for frame in frames] == [{"location": "PIT"}] * 5 + [{}] * 5


def test_velocities_are_differences_of_places() -> None:
    second = 1_000_000_000
    track = np.array([0, 1, 0, 0, 2, 2, 1])
    time = np.array([0, 0, 1, 2, 0, 2, 1]) * second
    place = np.array([[0.0, 0, 0], [5, 5, 0], [1, 0, 0], [4, 0, 9], [0, 0, 0], [9, 9, 9], [5, 7, 0]])
    velocity, twice = track_velocities(track, time, place)
    assert twice is None
    nan = np.nan
    wanted = [[1, 0], [0, 2], [2, 0], [3, 0], [nan, nan], [nan, nan], [0, 2]]  # of track 2, the gap is too long
    np.testing.assert_allclose(velocity, wanted)
    assert track_velocities(np.array([0, 0]), np.array([5, 5]), np.zeros((2, 3)))[1] == 1
    assert track_velocities(track[:0], time[:0], place[:0])[0].shape == (0, 2)


def test_cameras_show_their_nearest_image_from_where_the_car_was(root: Path, caplog) -> None:
    forget_warnings()
    log = root / "val" / "log-a"
    shutil.rmtree(root / "val" / "log-b")
    times = START_NS + STEP_NS * np.arange(5)
    for name in RING_ORDER[1:]:
        touch_images(log, name, times + 3_000_017)
    touch_images(log, "ring_front_center", times[:2] - 9_000_000)
    touch_images(log, "ring_front_center", times[:2] + 24_000_000)
    touch_images(log, "ring_front_center", times[3:] + 26_000_000)  # too late
    with caplog.at_level(logging.WARNING, "drivestack"):
        frames = read_argoverse2_sensor(root)
    assert [len(frame.cameras) for frame in frames] == [7, 7, 6, 6, 6]
    assert "3 of 35 images are missing within 25 ms of their sweep" in caplog.text
    assert "most: ring_front_center, 3" in caplog.text
    front = frames[1].cameras[0]
    assert front.name == "ring_front_center" and front.image_size_px == (1550, 2048)
    assert front.timestamp_us == (times[1] - 9_000_000) // 1000
    assert front.image_path.endswith(f"val/log-a/sensors/cameras/ring_front_center/{times[1] - 9_000_000}.jpg")
    for view in frames[1].cameras:
        at_ns = int(Path(view.image_path).stem)
        quaternion, place = car_at(np.array([at_ns]))
        np.testing.assert_allclose(view.global_from_ego[:3, 3], place[0], atol=1e-5)  # between poses of the file
        np.testing.assert_allclose(view.global_from_ego[:3, :3], quaternion_to_matrix(quaternion[0]), atol=1e-9)
    assert front.camera.intrinsics[0, 0] == 1700 and front.camera.lens is None  # k1 of the file does not apply

    forget_warnings()
    table = FeatherTable(log / "city_SE3_egovehicle.feather")
    known = table.whole_numbers("timestamp_ns") <= times[-1]
    poses = {name: table.numbers(name)[known] for name in table.names if name != "timestamp_ns"}
    poses = {"timestamp_ns": table.whole_numbers("timestamp_ns")[known], **poses}
    write_feather(log / "city_SE3_egovehicle.feather", poses)  # ends at the last sweep, before its images
    with caplog.at_level(logging.WARNING, "drivestack"):
        assert [len(frame.cameras) for frame in read_argoverse2_sensor(root)] == [7, 7, 6, 6]
    assert "9 of 35 images are missing within 25 ms of their sweep, or have no pose" in caplog.text

    shutil.rmtree(log / "sensors")
    touch_images(log, "ring_side_left", times[:4])
    with caplog.at_level(logging.WARNING, "drivestack"):
        assert len(read_argoverse2_sensor(root)) == 4
    assert "1 sweeps have no image of any camera and are left out" in caplog.text


def test_splits_and_options(root: Path, caplog) -> None:
    forget_warnings()
    with caplog.at_level(logging.WARNING, "drivestack"):
        assert len(read_argoverse2_sensor(root, max_logs=1)) == 5
    assert "1 of 1 logs have no images" in caplog.text
    every_second = read_argoverse2_sensor(root, "train", stride=2)
    assert [frame.timestamp_us for frame in every_second] == [
        frame.timestamp_us for frame in read_argoverse2_sensor(root, "train")
    ][::2]
    velocity = every_second[1].annotations.velocity_global_mps[0]
    assert np.hypot(*velocity) == pytest.approx(SPEED_MPS, abs=0.5)
    classes = {"REGULAR_VEHICLE": "car", "ANIMAL": "animal"}
    assert read_argoverse2_sensor(root, classes=classes)[1].annotations.names == ["car", "", "animal"]
    assert len(read_argoverse2_sensor(root / "val", "")) == 10
    assert len(read_argoverse2_sensor(root / "val" / "log-a")) == 5
    frames = drivestack.read(root, reader="argoverse2_sensor", split="train", stride=4)
    assert len(frames) == 2 and len(frames[0].cameras) == 7
    assert find_reader("argoverse2_sensor").conventions.frames.startswith("EGO")
    assert len({*EVALUATED_CLASSES, *OTHER_CATEGORIES}) == 30

    lidar = root / "test" / "log-d" / "sensors" / "lidar"
    lidar.mkdir(parents=True)
    for time in START_NS + STEP_NS * np.arange(3):
        (lidar / f"{time}.feather").touch()
    frames = read_argoverse2_sensor(root, "test")
    assert len(frames) == 3 and all(frame.annotations is None for frame in frames)


def test_bad_input_is_refused_in_one_line(root: Path) -> None:
    log = root / "val" / "log-a"

    def refused(says: str, kind: type[Exception] = DataError, split: str = "val", **options) -> None:
        with pytest.raises(kind, match=says) as caught:
            read_argoverse2_sensor(root, split, **options)
        assert "\n" not in str(caught.value)

    refused(r"sensor/mini: no such folder; give .* train, val, test \(there: test, train, val\)", split="mini")
    refused("cannot name a file", split="../val")
    refused("give whole numbers of at least 1", ConfigError, stride=0)
    refused("'CAR' is no category; there are ARTICULATED_BUS", ConfigError, classes={"CAR": "car"})
    refused("give a mapping", ConfigError, classes={"BUS": 3})
    refused(r"log-d: has neither annotations\.feather nor sensors/lidar", split="test")
    refused(r"log-a: no map/log_map_archive", lanes=True)

    def spoil(name: str, says: str, **columns) -> None:
        path = log / name
        before = path.read_bytes()
        table = FeatherTable(path)._table
        content = {key: table[key].to_pylist() for key in table.column_names if columns.get(key, 0) is not None}
        for key, change in columns.items():
            if change is not None:
                content[key] = change(content[key])
        write_feather(path, content)
        refused(says)
        path.write_bytes(before)

    boxes, poses = "annotations.feather", "city_SE3_egovehicle.feather"
    spoil(boxes, r"annotations\.feather: column track_uuid is there not among", track_uuid=None)
    spoil(boxes, "column category holds int64", category=lambda c: [1] * len(c))
    spoil(boxes, "column timestamp_ns holds double", timestamp_ns=lambda c: [float(t) for t in c])
    spoil(boxes, "column num_interior_pts holds .* or gaps", num_interior_pts=lambda c: [None, *c[1:]])
    spoil(boxes, r"row 0: qw qx qy qz is no quaternion", qw=lambda c: [5.0, *c[1:]])
    spoil(boxes, "track car is there twice", timestamp_ns=lambda c: [c[1], *c[1:]])
    spoil(boxes, "sweep 17 has no pose", timestamp_ns=lambda c: [17, *c[1:]])
    spoil(boxes, "its centre is not finite", tx_m=lambda c: [float("nan"), *c[1:]])
    spoil(boxes, "size is not a number above 0", width_m=lambda c: [-1.0, *c[1:]])
    spoil(poses, "poses are .* apart, or out of order", timestamp_ns=lambda c: c[::-1])
    spoil(poses, "poses are 7e-09 s apart, .* are nanoseconds", timestamp_ns=lambda c: [t // 10**6 for t in c])
    spoil(poses, "poses are 70 s apart", timestamp_ns=lambda c: [START_NS + 70_000_000_000 * i for i in range(len(c))])
    spoil(poses, "a translation is not finite", tz_m=lambda c: [float("inf"), *c[1:]])
    spoil(
        "calibration/intrinsics.feather",
        "has no ring_side_left",
        sensor_name=lambda c: ["x" if "side_l" in n else n for n in c],
    )
    spoil("calibration/intrinsics.feather", "ring_front_center: unusable calibration", fx_px=lambda c: [0.0, *c[1:]])
    for name in (boxes, poses, "calibration/egovehicle_SE3_sensor.feather"):
        before = (log / name).read_bytes()
        (log / name).write_bytes(before[: len(before) // 2])
        refused(rf"{Path(name).name}: cannot be read .*; fetch this log again")
        (log / name).unlink()
        refused(rf"{Path(name).name}: (cannot be read \(no such file\)|is missing)")
        (log / name).write_bytes(before)
    assert len(read_argoverse2_sensor(root)) == 10  # all is repaired


def test_poses_between_those_of_the_file() -> None:
    times = np.array([0, 10, 10, 20, 10**9])
    quaternions = np.array([[1.0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, -1], [1, 0, 0, 0]])
    trajectory = Trajectory(times, quaternions, np.array([[0.0, 0, 0], [10, 0, 0], [10, 0, 0], [10, 4, 0], [0, 0, 0]]))
    wanted = np.array([10, 15, 0, 500, -1, 10**9])
    assert trajectory.known(wanted).tolist() == [True, True, True, False, False, True]
    poses = trajectory.at(wanted)
    np.testing.assert_allclose(poses[:3, :3, 3], [[10, 0, 0], [10, 2, 0], [0, 0, 0]])
    np.testing.assert_allclose(poses[1, :3, :3], np.diag([-1.0, -1, 1]), atol=1e-12)  # q and -q are one rotation
    assert nearest_times(np.array([0, 10, 20]), np.array([-5, 5, 6, 14, 16, 99])).tolist() == [0, 0, 1, 1, 2, 2]
    assert nearest_times(np.array([7]), np.array([0, 9])).tolist() == [0, 0]


def test_a_real_log_passes_all_checks(shared_real: Path) -> None:
    log = shared_real / "argoverse2_log"
    frames = drivestack.read(log, reader="argoverse2_sensor")
    assert len(frames) == 156 and sum(len(frame.annotations) for frame in frames) == 11364
    seen = total = 0
    for frame in frames[::30]:
        centre = frame.annotations.centre_global_m
        boxes = frame.bev_boxes()
        assert len(boxes) and (np.abs(boxes[:, 2]) < 12).all()
        inside = np.zeros(len(centre), bool)
        for view in frame.cameras:
            pixels, _ = view.camera.project(transform_points(invert_pose(view.global_from_camera), centre))
            with np.errstate(invalid="ignore"):
                inside |= ((pixels >= 0) & (pixels < view.image_size_px)).all(1)
        seen, total = seen + int(inside.sum()), total + len(centre)
    assert seen > 0.95 * total  # seven cameras look all round
    velocity = np.concatenate([frame.annotations.velocity_global_mps for frame in frames])
    speed = np.hypot(*velocity.T)
    assert np.isnan(speed).sum() == 1 and np.nanmax(speed) < 20 and (speed > 5).sum() > 500
    with_lanes = read_argoverse2_sensor(log, stride=50, lanes=True)
    assert [len(frame.lanes.centrelines) > 5 for frame in with_lanes] == [True] * 4


def test_official_scores_of_a_real_log_by_way_of_frames(shared_real: Path, tmp_path: Path) -> None:
    name = "adcf7d18-0510-35b0-a2fa-b4cea13a6d76"
    log = tmp_path / "val" / name
    log.mkdir(parents=True)
    for file in ("annotations.feather", "city_SE3_egovehicle.feather"):
        (log / file).symlink_to(shared_real / "argoverse2_cds" / file)
    (log / "calibration").symlink_to(shared_real / "argoverse2_log" / "calibration")  # of another car
    frames = read_argoverse2_sensor(tmp_path, stride=10)
    path = shared_real / "argoverse2_cds" / "made_detections.feather"
    assert check_submission(path, sweeps_of(frames)) == []
    scores = score_submission(path, frames)
    official = json.loads((shared_real / "argoverse2_cds" / "official_cds.json").read_text())["results_rounded_3"]
    for category, wanted in official["no_roi"].items():
        own = scores if category == "AVERAGE_METRICS" else scores["classes"][category]
        assert {key: round(own[key], 3) for key in NUMBERS} == {key: wanted[key] for key in NUMBERS}, category
