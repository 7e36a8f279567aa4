"""The reader agrees with the devkit (if installed), keeps scenes apart, and says what is wrong with a broken root."""

from __future__ import annotations

import json

import numpy as np
import pytest

from drivestack.core.errors import DataError
from drivestack.data_tools.labels.mono_targets import corners_in_camera, devkit_visible
from drivestack.data_tools.readers.nuscenes.reader import read_nuscenes
from drivestack.geometry import invert_pose, matrix_to_quaternion, quaternion_to_matrix, transform_points

VERSION = "v1.0-mini"


@pytest.fixture(scope="module")
def frames(tiny_root):
    return read_nuscenes(tiny_root, VERSION, "mini_train")


def devkit(root):
    module = pytest.importorskip("nuscenes.nuscenes", reason="nuscenes-devkit, the oracle, is not installed")
    return module.NuScenes(VERSION, str(root), verbose=False)


@pytest.fixture(scope="module")
def nusc(tiny_root):
    return devkit(tiny_root)


def test_frames_come_by_scene_and_time_and_link_within_the_scene(frames):
    assert [f.token for f in frames] == [f"{s}-{i}" for s in ("scene-0061", "scene-0553") for i in range(4)]
    for scene in (frames[:4], frames[4:]):
        assert [f.prev_token for f in scene] == ["", *(f.token for f in scene[:-1])]
        assert [f.next_token for f in scene] == [*(f.token for f in scene[1:]), ""]
        assert len({f.scene_token for f in scene}) == 1
    assert [v.name for v in frames[0].cameras] == ["CAM_FRONT", "CAM_BACK"]
    assert [(v.camera.width_px, v.camera.height_px) for v in frames[0].cameras] == [(64, 36), (96, 60)]


def test_boxes_velocities_and_attributes_are_the_devkits(frames, nusc):
    frame = frames[1]
    assert frame.token == "scene-0061-1"
    notes = frame.annotations
    assert notes.names == ["car", "car", "pedestrian", ""]
    assert notes.attributes == ["vehicle.moving", "", "pedestrian.standing", ""]
    assert notes.num_lidar_points.tolist() == [20, 10, 0, 5] and notes.num_radar_points.tolist() == [0, 0, 3, 0]
    for f in frames:
        for token, velocity in zip(f.annotations.tokens, f.annotations.velocity_global_mps):
            np.testing.assert_allclose(velocity, nusc.box_velocity(token)[:2], equal_nan=True)
    assert np.isnan(notes.velocity_global_mps[2]).all()  # seen once
    assert notes.velocity_global_mps[0] == pytest.approx([3.0, 0.0])


def test_frames_repeat_the_devkits_records_bit_for_bit(frames, nusc):
    detection_name = pytest.importorskip("nuscenes.eval.detection.utils").category_to_detection_name
    for frame in frames:
        sample = nusc.get("sample", frame.token)
        data = {channel: nusc.get("sample_data", token) for channel, token in sample["data"].items()}
        assert (frame.prev_token, frame.next_token) == (sample["prev"], sample["next"])
        assert frame.timestamp_us == sample["timestamp"] and frame.lidar_path == nusc.get_sample_data_path(
            sample["data"]["LIDAR_TOP"]
        )
        ego = nusc.get("ego_pose", data["LIDAR_TOP"]["ego_pose_token"])
        assert frame.global_from_ego[:3, 3].tolist() == ego["translation"]
        np.testing.assert_array_equal(frame.global_from_ego[:3, :3], quaternion_to_matrix(ego["rotation"]))
        for view in frame.cameras:
            assert view.timestamp_us == data[view.name]["timestamp"]
        notes = frame.annotations
        records = [nusc.get("sample_annotation", token) for token in sample["anns"]]
        assert notes.tokens == sample["anns"] and notes.categories == [r["category_name"] for r in records]
        assert notes.names == [detection_name(name) or "" for name in notes.categories]
        assert notes.instance_tokens == [r["instance_token"] for r in records]
        assert notes.visibility.tolist() == [int(r["visibility_token"]) for r in records]
        assert notes.centre_global_m.tolist() == [r["translation"] for r in records]
        assert notes.size_lwh_m[:, [1, 0, 2]].tolist() == [r["size"] for r in records]
        velocity = np.array([nusc.box_velocity(token)[:2] for token in notes.tokens])
        np.testing.assert_array_equal(notes.velocity_global_mps, velocity)


def test_boxes_and_pixels_in_every_sensor_are_the_devkits(frames, nusc):
    for frame in frames:
        record = nusc.get("sample", frame.token)
        _, in_lidar, _ = nusc.get_sample_data(record["data"]["LIDAR_TOP"])
        ours = frame.bev_boxes()
        np.testing.assert_allclose(ours[:, :3], [b.center for b in in_lidar], atol=1e-6)
        np.testing.assert_allclose(ours[:, 3:6], [b.wlh[[1, 0, 2]] for b in in_lidar])
        np.testing.assert_allclose(ours[:, 6], [b.orientation.yaw_pitch_roll[0] for b in in_lidar], atol=1e-6)
        notes = frame.annotations
        for view in frame.cameras:
            path, visible, intrinsics = nusc.get_sample_data(record["data"][view.name])
            assert path == view.image_path and record["data"][view.name] == view.sample_data_token
            np.testing.assert_array_equal(intrinsics, view.camera.intrinsics)
            camera_from_global = invert_pose(view.global_from_camera)
            centre = transform_points(camera_from_global, notes.centre_global_m)
            rotation = camera_from_global[:3, :3] @ notes.rotation_global
            seen = devkit_visible(corners_in_camera(centre, rotation, notes.size_lwh_m), view.camera)
            assert [t for t, s in zip(notes.tokens, seen) if s] == [box.token for box in visible]
            np.testing.assert_allclose(centre[seen].ravel(), np.ravel([box.center for box in visible]), atol=1e-6)
            quaternions = matrix_to_quaternion(rotation[seen])
            for ours_q, box in zip(quaternions, visible):
                assert abs(ours_q @ box.orientation.elements) == pytest.approx(1)
            # camera -> ego at camera time -> global -> ego at LiDAR time -> LiDAR
            np.testing.assert_allclose(
                frame.global_from_bev @ frame.bev_from_camera(view), view.global_from_camera, atol=1e-9
            )


def test_a_split_without_labels_gives_frames_without_annotations(own_root, edit_table):
    edit_table("sample_annotation", lambda rows: rows.clear())
    edit_table("instance", lambda rows: rows.clear())
    frames = read_nuscenes(own_root, VERSION, "mini_val")
    assert [f.annotations for f in frames] == [None, None]
    assert frames[0].bev_boxes().shape == (0, 9)


def test_a_long_gap_has_no_velocity(own_root, edit_table):
    def postpone(rows):
        for row in rows:
            if row["token"] in ("scene-0061-2", "scene-0061-3"):
                row["timestamp"] += 5_000_000

    edit_table("sample", postpone)
    frames = read_nuscenes(own_root, VERSION, "mini_train")
    nusc = devkit(own_root)
    for frame in frames[:4]:
        expected = np.array([nusc.box_velocity(t)[:2] for t in frame.annotations.tokens])
        np.testing.assert_allclose(frame.annotations.velocity_global_mps, expected, equal_nan=True)
    assert np.isnan(frames[1].annotations.velocity_global_mps[0]).all()
    assert not np.isnan(frames[0].annotations.velocity_global_mps[0]).any()


def check(match: str, root, version=VERSION, split="mini_train") -> None:
    with pytest.raises(DataError, match=match) as caught:
        read_nuscenes(root, version, split)
    assert ";" in str(caught.value), "a message names the thing; and the fix"


def test_a_wrong_root_version_or_split_is_named(tiny_root, tmp_path):
    check("nowhere: no such folder", tmp_path / "nowhere")
    check(f"{VERSION}: no such version folder; this is not a nuScenes root", tmp_path)
    check("v1.0-trainval: no such version folder; this root has v1.0-mini", tiny_root, "v1.0-trainval")
    check("unknown split 'trian'", tiny_root, split="trian")
    for split in (["val"], {"val": 1}, None, 3):
        check("split .* is no name; use one of mini_train", tiny_root, split=split)
    check("none of its 3 scenes .* belongs to split 'test'", tiny_root, split="test")


def test_own_splits_of_the_set(own_root):
    splits = own_root / VERSION / "splits.json"
    splits.write_text(json.dumps({"mine": ["scene-0103", "scene-0061"], "bad": "scene-0103"}))
    frames = read_nuscenes(own_root, VERSION, "mine")
    assert [f.scene_name for f in frames] == ["scene-0061"] * 4 + ["scene-0103"] * 2
    check("unknown split 'mien'.* mine", own_root, split="mien")
    check(r"splits\.json: must map", own_root, split="bad")
    splits.write_text('{"mine": [["scene-0061"]]}')
    check("split mine holds other things than scene names", own_root, split="mine")
    splits.write_text("{")
    check(r"splits\.json: not valid JSON", own_root, split="mine")


def test_a_missing_or_broken_table_is_named(own_root):
    folder = own_root / VERSION
    text = (folder / "ego_pose.json").read_text()
    (folder / "ego_pose.json").write_text(text[: len(text) // 2])
    check(r"ego_pose\.json: not valid JSON", own_root)
    (folder / "ego_pose.json").unlink()
    check(r"ego_pose\.json: table is missing", own_root)


def test_tables_of_different_releases_are_refused(own_root, edit_table):
    edit_table("calibrated_sensor", lambda rows: rows.pop())
    check("do not fit together|cannot load these tables", own_root)


@pytest.mark.parametrize(
    ("table", "field", "value", "message"),
    [
        ("calibrated_sensor", "camera_intrinsic", [[np.nan, 0, 1], [0, 1, 1], [0, 0, 1]], "camera CAM_FRONT.*finite"),
        (
            "calibrated_sensor",
            "rotation",
            [0, 0, 0, 0],
            "sample scene-0061-0, camera CAM_FRONT .*NaN",
        ),
        ("calibrated_sensor", "translation", [0, np.nan, 0], "camera CAM_FRONT .*ego_from_camera has a NaN"),
    ],
)
def test_unusable_calibration_is_named_with_sample_and_camera(own_root, edit_table, table, field, value, message):
    def spoil(rows):
        next(r for r in rows if r["token"] == "c-CAM_FRONT")[field] = value

    edit_table(table, spoil)
    check(message, own_root)


def test_a_bad_ego_pose_is_named_with_its_sample(own_root, edit_table):
    def spoil(rows):
        next(r for r in rows if r["token"] == "scene-0061-2-LIDAR_TOP")["rotation"] = [np.inf, 0, 0, 0]

    edit_table("ego_pose", spoil)
    check("sample scene-0061-2: pose ego_from_bev|sample scene-0061-2: pose global_from_ego", own_root)


def test_a_sample_without_lidar_record_is_named(own_root, edit_table):
    def drop(rows):
        rows[:] = [r for r in rows if r["token"] != "scene-0061-1-LIDAR_TOP"]

    edit_table("sample_data", drop)
    check("sample scene-0061-1 .*LIDAR_TOP", own_root)
