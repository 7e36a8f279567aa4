"""T4 data sets: their tables are read with their lenses, names and velocities, a folder for each scene."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drivestack.core.errors import DataError
from drivestack.core.frames import Frame
from drivestack.data_tools.clips.images import load_image
from drivestack.data_tools.readers.nuscenes.t4 import read_t4
from drivestack.data_tools.readers.registry import DataSource
from drivestack.geometry import brown_conrady, matrix_to_quaternion
from support.moving_rig import BROWN, PINHOLE, furthest_px, moving_frames

CATEGORIES = ["car", "pedestrian", "forklift", "traffic_cone"]
EIGHT = brown_conrady(PINHOLE.intrinsics, 64, 48, (0.2, 0.03, 1e-3, -1e-3, 0.001, 0.5, 0.1, 0.002))
CHANNELS = {"CAM_FRONT": "CAM_FRONT_WIDE", "CAM_LEFT": "CAM_LEFT", "CAM_RIGHT": "CAM_TRAFFIC_LIGHT_NEAR"}


def frames_of() -> list[Frame]:
    return moving_frames([BROWN, EIGHT, PINHOLE], CATEGORIES)


def token(*parts: object) -> str:
    return hashlib.md5("/".join(map(str, parts)).encode()).hexdigest()


def write_t4(folder: Path, frames: list[Frame], lidar: str = "LIDAR_CONCAT", name: str = "scene_one") -> None:
    """The tables and files of one data set. Cameras have poses of their own times."""
    scene = token(folder.name, "scene")
    rows: dict[str, list[dict]] = {table: [] for table in ("ego_pose", "sample", "sample_data", "sample_annotation")}
    turned = lambda pose: {
        "translation": pose[:3, 3].tolist(), "rotation": matrix_to_quaternion(pose[:3, :3]).tolist()
    }  # fmt: skip
    rows["category"] = [{"token": token(c), "name": c, "description": "", "index": i} for i, c in enumerate(CATEGORIES)]
    rows["attribute"] = [{"token": token("moving"), "name": "vehicle_state.moving", "description": ""}]
    rows["visibility"] = [{"token": token("full"), "level": "full", "description": ""}]
    rows["sensor"] = [{"token": token(lidar), "channel": lidar, "modality": "lidar"}]
    mounted = {"translation": [0.9, 0, 2.0], "rotation": [1, 0, 0, 0]}
    rows["calibrated_sensor"] = [
        {"token": token(lidar, "c"), "sensor_token": token(lidar), "camera_intrinsic": [], "camera_distortion": []}
        | mounted
    ]
    for view in frames[0].cameras:
        channel, lens = CHANNELS[view.name], view.camera.lens
        rows["sensor"].append({"token": token(channel), "channel": channel, "modality": "camera"})
        count = 8 if view.name == "CAM_LEFT" else 5
        rows["calibrated_sensor"].append(
            {
                "token": token(channel, "c"),
                "sensor_token": token(channel),
                "camera_intrinsic": view.camera.intrinsics.tolist(),
                "camera_distortion": list(lens.coefficients[:count]) if lens else [0.0] * 5,
            }
            | turned(view.ego_from_camera)
        )
    order = ["", *(token(folder.name, f.token) for f in frames), ""]
    rows["scene"] = [
        {"token": scene, "name": name, "description": "", "log_token": token("log"), "nbr_samples": len(frames)}
        | {"first_sample_token": order[1], "last_sample_token": order[-2]}
    ]
    box = lambda i, k: token(folder.name, "box", i, k) if 0 <= k < len(frames) else ""
    rows["instance"] = [
        {"token": token(folder.name, i), "category_token": token(c), "instance_name": f"{c}{i}"}
        for i, c in enumerate(CATEGORIES)
    ]
    for k, frame in enumerate(frames):
        sample = order[k + 1]
        rows["sample"].append(
            {"token": sample, "timestamp": frame.timestamp_us, "scene_token": scene}
            | {"prev": order[k], "next": order[k + 2]}
        )
        taken = [(CHANNELS[v.name], v.timestamp_us, v.global_from_ego, v) for v in frame.cameras]
        for channel, time_us, then, view in [(lidar, frame.timestamp_us, frame.global_from_ego, None), *taken]:
            data = token(sample, channel)
            filename = f"data/{channel}/{k:05d}.{'png' if view else 'pcd.bin'}"
            rows["ego_pose"].append({"token": data, "timestamp": time_us, "twist": None} | turned(then))
            rows["sample_data"].append(
                {
                    "token": data,
                    "sample_token": sample,
                    "ego_pose_token": data,
                    "calibrated_sensor_token": token(channel, "c"),
                    "filename": filename,
                    "fileformat": "png",
                    "width": view.camera.width_px if view else 0,
                    "height": view.camera.height_px if view else 0,
                    "timestamp": time_us,
                    "is_key_frame": True,
                    "is_valid": True,
                    "info_filename": None,
                    "prev": "",
                    "next": "",
                }
            )
            path = folder / filename
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(view.image).save(path) if view else path.write_bytes(np.ones(5, np.float32).tobytes())
        notes = frame.annotations
        for i in range(len(notes)):
            pose = np.eye(4)
            pose[:3, :3], pose[:3, 3] = notes.rotation_global[i], notes.centre_global_m[i]
            rows["sample_annotation"].append(
                {
                    "token": box(i, k),
                    "sample_token": sample,
                    "instance_token": token(folder.name, i),
                    "attribute_tokens": [token("moving")] if i == 0 else [],
                    "visibility_token": token("full"),
                    "size": notes.size_lwh_m[i, [1, 0, 2]].tolist(),
                    "num_lidar_pts": int(notes.num_lidar_points[i]),
                    "num_radar_pts": 0,
                    "prev": box(i, k - 1),
                    "next": box(i, k + 1),
                }
                | turned(pose)
            )
    (folder / "annotation").mkdir(parents=True, exist_ok=True)
    for table, content in rows.items():
        (folder / "annotation" / f"{table}.json").write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_t4(tmp_path / "one", frames_of())
    return tmp_path / "one"


def edit(folder: Path, table: str, change: Callable[[list[dict]], object]) -> None:
    path = folder / "annotation" / f"{table}.json"
    rows = json.loads(path.read_text())
    change(rows)
    path.write_text(json.dumps(rows))


def test_a_data_set_is_read_with_its_lenses_names_and_times(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    frames, read = frames_of(), DataSource("t4", folder).read()
    assert len(read) == 4 and read[1].prev_token == read[0].token
    for ours, theirs in zip(frames, read):
        assert np.abs(ours.global_from_ego - theirs.global_from_ego).max() < 1e-9
        assert np.array_equal(theirs.ego_from_bev, np.eye(4)), "points of LIDAR_CONCAT are in the EGO frame"
        assert theirs.lidar_path.endswith(".pcd.bin")
        assert sorted(v.name for v in theirs.cameras) == sorted(CHANNELS.values())
        for view in ours.cameras:
            again = next(v for v in theirs.cameras if v.name == CHANNELS[view.name])
            assert again.timestamp_us == view.timestamp_us
            assert np.abs(again.global_from_camera - view.global_from_camera).max() < 1e-9
            assert furthest_px(ours, theirs, view.name, again.name) < 1e-6
            assert np.array_equal(load_image(again, theirs.token)[:, :, ::-1], view.image)
        for name in ("centre_global_m", "rotation_global", "size_lwh_m", "velocity_global_mps", "num_lidar_points"):
            assert np.abs(getattr(ours.annotations, name) - getattr(theirs.annotations, name)).max() < 1e-6, name
        assert theirs.annotations.names == CATEGORIES
        assert theirs.annotations.attributes == ["vehicle_state.moving", "", "", ""]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING], caplog.text


def test_velocities_are_those_that_the_set_states(folder: Path) -> None:
    def stated(rows):
        rows[0]["velocity"] = [1.5, -2.5, 0.1]
        rows[1]["velocity"] = None
        rows[2]["velocity"] = [None, None, None]

    edit(folder, "sample_annotation", stated)
    velocity = read_t4(folder)[0].annotations.velocity_global_mps
    assert velocity[0].tolist() == [1.5, -2.5] and np.isnan(velocity[2]).all()
    assert np.allclose(velocity[[1, 3]], frames_of()[0].annotations.velocity_global_mps[[1, 3]])


def test_classes_may_be_mapped(folder: Path) -> None:
    notes = read_t4(folder, classes={"forklift": "construction_vehicle", "car": "car"})[0].annotations
    assert notes.names == ["car", "", "construction_vehicle", ""] and notes.categories == CATEGORIES


def test_another_lidar_is_the_bev_frame(tmp_path: Path) -> None:
    write_t4(tmp_path, frames_of(), "LIDAR_TOP")
    assert read_t4(tmp_path)[0].ego_from_bev[:3, 3].tolist() == [0.9, 0, 2.0]


def test_invalid_images_are_left_out_and_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    def invalid(rows):
        for row in rows[:2]:  # a sweep, whose pose still holds, and an image
            row["is_valid"] = False

    edit(folder, "sample_data", invalid)
    assert [len(frame.cameras) for frame in read_t4(folder)] == [2, 3, 3, 3]
    assert "1 images are called invalid" in caplog.text


def without_lidar(rows: list[dict]) -> None:
    rows[:] = [row for row in rows if "LIDAR" not in row["filename"]]


def invalid_images(*which: tuple[int, str]) -> Callable[[list[dict]], object]:
    """Of samples by number: one channel, '' for all."""

    def change(rows):
        for row in rows:
            _, channel, name = row["filename"].split("/")
            row["is_valid"] = not any(int(name[:5]) == k and channel in (wanted or channel) for k, wanted in which)

    return change


def test_without_lidar_an_invalid_front_image_still_gives_time_and_pose(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edit(folder, "sample_data", without_lidar)
    whole = read_t4(folder)
    edit(folder, "sample_data", invalid_images((0, "CAM_FRONT_WIDE"), (2, "CAM_FRONT_WIDE")))
    read = read_t4(folder)
    assert [len(frame.cameras) for frame in read] == [2, 3, 2, 3] and "2 images are called invalid" in caplog.text
    for ours, theirs in zip(whole, read):
        assert theirs.timestamp_us == ours.timestamp_us and np.array_equal(theirs.global_from_ego, ours.global_from_ego)
    assert all(view.name != "CAM_FRONT_WIDE" for view in read[0].cameras)


@pytest.mark.parametrize("lidar", [True, False])
def test_samples_without_any_valid_image_are_left_out_and_counted(
    lidar: bool, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if not lidar:
        edit(folder, "sample_data", without_lidar)
    whole = read_t4(folder)
    edit(folder, "sample_data", invalid_images((1, ""), (2, "CAM_LEFT")))
    read = read_t4(folder)
    assert [frame.token for frame in read] == [whole[i].token for i in (0, 2, 3)]
    assert [frame.prev_token for frame in read] == ["", read[0].token, read[1].token]
    assert [frame.next_token for frame in read] == [read[1].token, read[2].token, ""]
    assert [len(frame.cameras) for frame in read] == [3, 2, 3]
    for ours, theirs in zip([whole[i] for i in (0, 2, 3)], read):
        assert np.array_equal(ours.annotations.velocity_global_mps, theirs.annotations.velocity_global_mps)
    assert "4 images are called invalid" in caplog.text and "1 of 4 samples have no valid image" in caplog.text
    edit(folder, "sample_data", invalid_images(*((k, "") for k in range(4))))
    with pytest.raises(DataError, match=r"annotation: none of its 4 samples has a valid image"):
        read_t4(folder)


def test_several_data_sets_and_versions(tmp_path: Path) -> None:
    write_t4(tmp_path / "a" / "1", frames_of()[:2])
    write_t4(tmp_path / "a" / "10", frames_of())
    write_t4(tmp_path / "b", frames_of()[:3])
    read = DataSource("t4", tmp_path).read()
    assert len(read) == 7 and len({frame.scene_token for frame in read}) == 2
    assert len(read_t4(tmp_path, "a")) == 4 and len(read_t4(tmp_path, "a", version="1")) == 2
    with pytest.raises(DataError, match="no data set c; it has a, b"):
        read_t4(tmp_path, ["c"])
    with pytest.raises(DataError, match="no version 7; it has 1, 10"):
        read_t4(tmp_path, "a", version="7")
    shutil.copytree(tmp_path / "b", tmp_path / "copy")
    with pytest.raises(DataError, match=r"copy: the scene \w+ of .*b again; name one with the option datasets"):
        read_t4(tmp_path)


def lens(values):
    return lambda rows: rows[1].update(camera_distortion=values)


BROKEN = [
    ("calibrated_sensor", lens([0.1] * 7), "unusable calibration, Brown-Conrady distortion has 4, 5, 8 or 12"),
    ("calibrated_sensor", lens(["wide"]), "unusable calibration, could not convert string to float"),
    ("calibrated_sensor", lens({"k1": 1}), "unusable calibration, float"),
    ("sample_annotation", lambda rows: rows[0].update(velocity="fast"), "its velocity is fast; give x, y, z in m/s"),
    ("sample_annotation", lambda rows: rows[0].update(velocity=3), "its velocity is 3; give x, y, z in m/s"),
    ("instance", lambda rows: rows[0].update(category_token="none"), r"do not fit together \(missing key or token"),
    ("scene", lambda rows: rows.clear(), "holds no scene"),
    ("sample_data", lambda rows: rows[0].pop("filename"), "missing required field `filename`"),
]


@pytest.mark.parametrize(("table", "change", "says"), BROKEN)
def test_what_is_wrong_is_said_in_one_line(table: str, change, says: str, folder: Path) -> None:
    edit(folder, table, change)
    with pytest.raises(DataError, match=says) as error:
        read_t4(folder)
    assert "\n" not in str(error.value)


def test_missing_tables_and_folders(folder: Path, tmp_path: Path) -> None:
    (folder / "annotation" / "instance.json").unlink()
    with pytest.raises(DataError, match=r"instance\.json: table is missing"):
        read_t4(tmp_path)
    with pytest.raises(DataError, match="no data set of T4"):
        read_t4(tmp_path / "nothing")


def test_the_minimal_real_data_set(shared_real: Path) -> None:
    root = shared_real / "t4dataset"
    if not root.is_dir():
        pytest.skip("no t4dataset in shared/real")
    frames = DataSource("t4", root).read()
    assert [[v.name for v in f.cameras] for f in frames] == [["CAM_FRONT", "CAM_BACK"]] * 3
    assert [f.timestamp_us - frames[0].timestamp_us for f in frames] == [0, 1_000_000, 2_000_000]
    assert frames[1].global_from_ego[:3, 3].tolist() == [10.0, 0.0, 0.0]
    assert frames[0].ego_from_bev[:3, 3].tolist() == [0.0, 0.0, 2.0]
    named = [name for f in frames for name in f.annotations.names]
    assert sorted(named) == ["bicycle", "car", "car", "pedestrian"]
    car = frames[0].annotations
    assert car.centre_global_m[0].tolist() == [10.0, 5.0, 1.0] and car.attributes[0] == "moving"
    assert np.allclose(car.velocity_global_mps[0], [2.0, 0.2])
    view = frames[0].cameras[0]
    assert view.camera.lens is None and load_image(view, frames[0].token).shape == (600, 800, 3)
