"""Own recordings in MCAP files: the frames that were written come back, and what cannot be used is named."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from drivestack.core.errors import ConfigError, DataError
from drivestack.core.frames import Frame
from drivestack.data_tools.clips.images import load_image
from drivestack.data_tools.readers.box_files import write_boxes
from drivestack.data_tools.readers.recordings import mcap_file
from drivestack.data_tools.readers.registry import DataSource
from drivestack.data_tools.synthetic.files import mcap_writer
from drivestack.geometry import double_sphere, invert_pose, pose, rotation_z
from support.toy_drive import AHEAD, START_US, K, toy_drive
from support.toy_recording import MOUNTED, S, usual

pytest.importorskip("mcap", reason="reading recordings needs mcap (extra mcap)")
pytest.importorskip("mcap_ros2", reason="reading recordings needs mcap-ros2-support (extra mcap)")


def read(path: Path, **options) -> list[Frame]:
    return DataSource("mcap", path, options).read()


def assert_equal(found: list[Frame], wanted: list[Frame]) -> None:
    """Poses to 1e-9, pixels of projected points to 0.01 (they are equal), images to the bit."""
    points = np.random.default_rng(1).uniform(-40, 40, (500, 3)) * [1, 1, 0.1]
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted):
        assert a.timestamp_us == b.timestamp_us
        np.testing.assert_allclose(a.global_from_ego, b.global_from_ego, rtol=0, atol=1e-9)
        assert {view.name for view in a.cameras} == {view.name for view in b.cameras}
        theirs = {view.name: view for view in b.cameras}
        for view in a.cameras:
            other = theirs[view.name]
            assert view.timestamp_us == other.timestamp_us and view.image_size_px == other.image_size_px
            np.testing.assert_allclose(view.ego_from_camera, other.ego_from_camera, rtol=0, atol=1e-9)
            np.testing.assert_allclose(view.global_from_ego, other.global_from_ego, rtol=0, atol=1e-9)
            there = invert_pose(view.ego_from_camera), invert_pose(other.ego_from_camera)
            pixels, expected = (
                model.project(points @ p[:3, :3].T + p[:3, 3])[0]
                for model, p in zip((view.camera, other.camera), there)
            )
            assert np.isfinite(expected).any() and np.array_equal(np.isfinite(pixels), np.isfinite(expected))
            np.testing.assert_allclose(pixels, expected, rtol=0, atol=0.01)
            assert np.array_equal(load_image(view, a.token), load_image(other, b.token))


@pytest.mark.parametrize("compression", ["zstd", "lz4", "none"])
def test_a_distorted_rig_comes_back(tmp_path: Path, compression: str) -> None:
    """Fisheye, Brown-Conrady of 5 and 8 coefficients and pinhole; each camera at its own time and pose."""
    frames = toy_drive()
    path = mcap_writer.write_mcap(frames, tmp_path / "drive.mcap", compression=compression, chunk_bytes=20_000)
    found = read(path)
    assert_equal(found, frames)
    assert [frame.scene_name for frame in found] == ["drive"] * 4
    assert [bool(frame.prev_token) for frame in found] == [False, True, True, True]


def test_boxes_beside_the_recording(tmp_path: Path) -> None:
    frames = toy_drive()
    path = mcap_writer.write_mcap(frames, tmp_path / "drive.mcap")
    for ending in ("json", "csv"):
        write_boxes(frames, tmp_path / f"boxes.{ending}")
        for a, b in zip(read(path, boxes=str(tmp_path / f"boxes.{ending}")), frames):
            assert a.annotations is not None and b.annotations is not None
            assert a.annotations.names == b.annotations.names
            assert a.annotations.instance_tokens == b.annotations.instance_tokens
            found, wanted = (x.annotations.boxes_in(np.eye(4)) for x in (a, b))
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
    assert all(frame.annotations is None for frame in read(path))


def test_the_synthetic_world_comes_back(tmp_path: Path) -> None:
    pytest.importorskip("embreex", reason="rendering needs embreex (extra synthetic)")
    from drivestack.data_tools.synthetic import synthesize

    root = synthesize(tmp_path / "set", "val", 1, 2, seed=3, image_width_px=96, labels=(), workers=1, progress=False)
    frames = DataSource("nuscenes", root, {"version": "v1.0-trainval", "split": "val"}).read()
    found = read(mcap_writer.write_mcap(frames, tmp_path / "drive.mcap"))
    assert_equal(found, frames)
    assert [view.name for view in found[0].cameras] == [view.name for view in frames[0].cameras]


def test_an_image_is_read_alone_and_in_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One chunk is opened for it, and neighbours in the same chunk open none."""
    path = mcap_writer.write_mcap(toy_drive(6), tmp_path / "drive.mcap", chunk_bytes=12_000)
    frames = read(path)
    view = pickle.loads(pickle.dumps(frames[4].cameras[1]))
    monkeypatch.setattr(mcap_file, "_last_chunk", None)
    opened = []
    whole = mcap_file._decompressed
    monkeypatch.setattr(mcap_file, "_decompressed", lambda *a: opened.append(1) or whole(*a))
    load_image(view, "x")
    assert len(opened) == 1
    load_image(view, "x")
    assert len(opened) == 1
    chunks = {view.encoded.chunk for frame in frames for view in frame.cameras}
    assert len(chunks) > 3 and "chunk at" in view.source and str(path) in view.source


def test_poses_between_samples_of_the_odometry(tmp_path: Path) -> None:
    """Translation is linear, rotation spherical-linear, at the header stamp; the ground is where it is said to be."""
    frames = read(usual(tmp_path / "a.mcap").done(), ground_height_m=0.3)
    assert len(frames) == 10 and [view.name for view in frames[0].cameras] == ["front"]
    for i, frame in enumerate(frames):
        t = i / 10 + 1 / 40
        assert frame.timestamp_us == START_US + round(t * 1e6)
        np.testing.assert_allclose(frame.global_from_ego, pose(rotation_z(0.4 * t), [5 * t, 0, 0]), rtol=0, atol=1e-9)
        wanted = pose(AHEAD, [1.5, 0.0, 1.3])
        np.testing.assert_allclose(frame.cameras[0].ego_from_camera, wanted, rtol=0, atol=1e-12)


def test_keyframes_at_a_rate(tmp_path: Path) -> None:
    frames = read(usual(tmp_path / "a.mcap").done(), rate_hz=2.0)
    assert [frame.timestamp_us - START_US for frame in frames] == [25_000, 525_000]


def test_what_is_missing_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = usual(tmp_path / "a.mcap", images=False)
    log.info("/cam/left/camera_info")
    log.transform("base_link", "left_optical", pose(rotation_z(1.5) @ AHEAD, [1, 1, 1]))
    for i in (0, 1, 2, 3, 7, 8, 12):  # 12: after the odometry
        log.image(i * S // 10)
        if i != 2:
            log.image(i * S // 10 + S // 50, "/cam/left/image_raw/compressed", "left_optical")
    frames = read(log.done())
    assert [len(frame.cameras) for frame in frames] == [2, 2, 1, 2, 2, 2]
    assert "1 of 7 keyframes are left out" in caplog.text and "left lacks an image in 1 keyframes" in caplog.text
    assert "2 gaps in the images of front, the longest 0.4 s" in caplog.text


def test_a_gap_in_the_odometry_is_not_bridged(tmp_path: Path) -> None:
    log = usual(tmp_path / "a.mcap", motion=False)
    for time_ns in (0, S // 10, 7 * S // 10, S):
        log.moving(time_ns, pose(np.eye(3), [5 * time_ns / S, 0, 0]))
    path = log.done()
    times_s = [(frame.timestamp_us - START_US) / 1e6 for frame in read(path)]
    assert times_s == [0.025, 0.125, 0.625, 0.725, 0.925]  # 0.825 is 0.125 s from the nearest sample
    assert len(read(path, max_pose_gap_s=0.4)) == 10
    alone = usual(tmp_path / "b.mcap", motion=False)
    alone.moving(-5 * S, np.eye(4))
    with pytest.raises(DataError, match="at none of 10 images of front is the car's pose known"):
        read(alone.done())


def test_the_cars_pose_from_tf_over_a_chain(tmp_path: Path) -> None:
    """map -> odom -> base_link -> roof -> camera, and a body frame instead of an optical one."""
    log = usual(tmp_path / "a.mcap", motion=False, mount=False)
    roof, camera = pose(rotation_z(0.1), [0.5, 0, 1.6]), pose(rotation_z(-0.1), [0.4, 0.1, 0])
    log.transform("base_link", "roof", roof)
    log.transform("roof", "front_optical", camera)
    shift = pose(rotation_z(0.5), [100, 50, 0])
    for i in range(3):  # published again and again, and still
        log.transform("map", "odom", shift, i * S, "/tf")
    for i in range(21):
        log.transform("odom", "base_link", pose(rotation_z(0.02 * i), [0.25 * i, 0, 0]), i * S // 20, "/tf")
    path = log.done()
    options = dict(fixed_frame="map", body_cameras=["front"])
    frame = read(path, **options)[2]
    np.testing.assert_allclose(
        frame.global_from_ego, shift @ pose(rotation_z(0.02 * 4.5), [0.25 * 4.5, 0, 0]), rtol=0, atol=1e-9
    )
    wanted = roof @ camera @ pose(AHEAD, np.zeros(3))
    np.testing.assert_allclose(frame.cameras[0].ego_from_camera, wanted, rtol=0, atol=1e-12)
    with pytest.raises(DataError, match="camera front would look at the sky: its frame front_optical has x ahead"):
        read(path, fixed_frame="map")
    with pytest.raises(DataError, match=r"tf does not connect front_optical with base: no|its frames are base_link"):
        read(path, base_frame="base", **options)
    with pytest.raises(ConfigError, match="body_cameras: no camera 'rear'; there are front"):
        read(path, body_cameras=["rear"])


ROI = {"x_offset": 200, "y_offset": 100, "height": 160, "width": 256, "do_rectify": False}
FULL = {"k": [180.0, 0, 330, 0, 182.0, 180, 0, 0, 1], "width": 640, "height": 360}


@pytest.mark.parametrize(
    ("changed", "topic", "kind", "matrix"),
    [
        ({}, "image_raw", None, K),
        ({"distortion_model": "", "d": []}, "image_raw", None, K),
        ({"distortion_model": "equidistant", "d": [0.1, 0, 0, 0]}, "image_raw", "kannala_brandt", K),
        ({"distortion_model": "fisheye", "d": [0.0, 0, 0, 0]}, "image_raw", "kannala_brandt", K),
        ({"distortion_model": "plumb_bob", "d": [0.1, 0, 0, 0, 0]}, "image_raw", "brown_conrady", K),
        ({"distortion_model": "rational_polynomial", "d": [0.1] * 8}, "image_raw", "brown_conrady", K),
        ({"distortion_model": "rational_polynomial", "d": [0.1] * 8 + [0] * 6}, "image_raw", "brown_conrady", K),
        ({"distortion_model": "thin_prism", "d": [0.1] * 8 + [1e-3] * 4}, "image_raw", "brown_conrady", K),
        (
            {"d": [0.1, 0, 0, 0, 0], "p": [70.0, 0, 60, 0, 0, 71, 41, 0, 0, 0, 1, 0]},
            "image_rect_color",
            None,
            [[70.0, 0, 60], [0, 71, 41], [0, 0, 1]],
        ),
        (
            FULL | {"roi": ROI, "binning_x": 2, "binning_y": 2},
            "image_raw",
            None,
            [[90.0, 0, 65], [0, 91, 40], [0, 0, 1]],
        ),
    ],
)
def test_camera_infos(tmp_path: Path, changed: dict, topic: str, kind: str | None, matrix) -> None:
    log = usual(tmp_path / "a.mcap", info=False, images=False)
    log.info(**changed)
    log.image(S // 2, f"/cam/front/{topic}/compressed")
    (frame,) = read(log.done())
    camera = frame.cameras[0].camera
    assert (camera.lens and camera.lens.kind) == kind and frame.cameras[0].image_size_px == (128, 80)
    np.testing.assert_allclose(camera.intrinsics, matrix)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"k": [0.0] * 9}, r"camera is not calibrated \(K\[0\] is 0\)"),
        ({"distortion_model": "magic", "d": [0.1]}, "'magic' with D .* is not one of plumb_bob"),
        ({"distortion_model": "", "d": [0.1, 0, 0, 0, 0]}, "distortion model '' with D"),
        ({"distortion_model": "equidistant", "d": [0.1]}, "has 4 coefficients, D has 1"),
        ({"distortion_model": "plumb_bob", "d": [0.1] * 8}, "coefficients, D has 8"),
        ({"distortion_model": "rational_polynomial", "d": [0.1] * 14}, "Brown-Conrady distortion has"),
        ({"width": 64, "height": 40}, "images are 128 x 80 pixels, their CameraInfo says 64 x 40: a resizer"),
    ],
)
def test_a_calibration_that_cannot_be_used(tmp_path: Path, changed: dict, says: str) -> None:
    log = usual(tmp_path / "a.mcap", info=False)
    log.info(**changed)
    with pytest.raises(DataError, match=says):
        read(log.done())


def test_rectification_turns_the_camera(tmp_path: Path) -> None:
    """A point seen by the raw camera is where R and P put it, as image_proc rectifies."""
    turn = rotation_z(0.2) @ np.array([[1, 0, 0], [0, np.cos(0.1), -np.sin(0.1)], [0, np.sin(0.1), np.cos(0.1)]])
    p = [70.0, 0, 60, 0, 0, 71, 41, 0, 0, 0, 1, 0]
    log = usual(tmp_path / "a.mcap", info=False)
    log.info(d=[0.1, 0, 0, 0, 0], r=turn.ravel().tolist(), p=p)
    path = log.done()
    point = MOUNTED @ [0.5, -0.2, 6.0, 1.0]  # EGO
    u, v, w = np.array(p).reshape(3, 4)[:, :3] @ turn @ [0.5, -0.2, 6.0]
    for chosen in ("all", "front", ["front"]):
        view = read(path, rectified=chosen)[0].cameras[0]
        pixels, _ = view.camera.project((invert_pose(view.ego_from_camera) @ point)[:3])
        np.testing.assert_allclose(pixels, [u / w, v / w], atol=1e-9)
    assert read(path)[0].cameras[0].camera.lens is not None
    with pytest.raises(ConfigError, match="rectified: no camera 'rear'"):
        read(path, rectified="rear")


def test_a_calibration_that_changes_on_the_way(tmp_path: Path) -> None:
    log = usual(tmp_path / "a.mcap")
    log.info(time_ns=S // 2, k=[80.0, 0, 60, 0, 80, 40, 0, 0, 1])
    assert [frame.cameras[0].camera.intrinsics[0, 0] for frame in read(log.done())] == [90.0] * 5 + [80.0] * 5


def test_names_of_cameras_and_topics() -> None:
    from drivestack.data_tools.readers.recordings.mcap_log import _info_topic, _names_of

    names = _names_of(["/sensing/cam/front/image_rect_color/compressed", "/sensing/cam/rear/image_raw/compressed"])
    assert list(names) == ["front", "rear"]
    assert list(_names_of(["/CAM_FRONT/image_raw/compressed"])) == ["CAM_FRONT"]
    assert list(_names_of(["/a/cam/image_raw", "/b/cam/image_raw"])) == ["a_cam", "b_cam"]
    assert _info_topic("/cam/front/image_raw/compressed") == "/cam/front/camera_info"
    assert _info_topic("/image_raw/compressed") == "/camera_info"
    with pytest.raises(ConfigError, match="would both be camera cam"):
        _names_of(["/cam/image_raw/compressed", "/cam/image_rect/compressed"])


def test_options_that_do_not_fit(tmp_path: Path) -> None:
    path = usual(tmp_path / "a.mcap").done()
    named = read(
        path, topics={"nose": "/cam/front/image_raw/compressed"}, info_topics={"nose": "/cam/front/camera_info"}
    )
    assert named[0].cameras[0].name == "nose"
    for options, says in (
        ({"topics": ["/none"]}, "no images on /none; there are /cam/front"),
        ({"odometry": "/none"}, "no odometry /none; there is /odom"),
        ({"reference": "rear"}, "reference: no camera 'rear'"),
        ({"fixed_frame": "map", "odometry": "/odom"}, "/odom is in odom, not in fixed_frame map"),
        ({"rate_hz": -1.0}, "too small"),
        ({"boxes": "b.json", "boxes_in": "lidar"}, "choose global or ego"),
    ):
        with pytest.raises(ConfigError, match=says):
            read(path, **options)
    log = usual(tmp_path / "b.mcap")
    log.moving(0, np.eye(4), topic="/odom2")
    with pytest.raises(ConfigError, match="several topics of odometry, /odom, /odom2: choose one"):
        read(log.done())


@pytest.mark.parametrize(
    ("without", "says"),
    [
        ({"images": False}, "no topic of sensor_msgs/msg/CompressedImage"),
        ({"info": False}, "no CameraInfo on /cam/front/camera_info; there is none"),
        ({"motion": False}, "no odometry, and no odom or map among the frames of tf"),
        ({"mount": False}, "tf does not connect front_optical with base_link; its frames are none"),
    ],
)
def test_what_a_recording_must_have(tmp_path: Path, without: dict, says: str) -> None:
    with pytest.raises(DataError, match=says):
        read(usual(tmp_path / "a.mcap", **without).done())


def test_frames_with_two_parents_or_in_a_circle(tmp_path: Path) -> None:
    log = usual(tmp_path / "a.mcap", mount=False)
    log.transform("base_link", "front_optical", MOUNTED)
    log.transform("roof", "front_optical", MOUNTED)
    with pytest.raises(DataError, match="gives frame front_optical two parents, base_link and roof"):
        read(log.done())
    log = usual(tmp_path / "b.mcap", mount=False)
    log.transform("roof", "front_optical", MOUNTED)
    log.transform("front_optical", "roof", MOUNTED)
    with pytest.raises(DataError, match="go in a circle"):
        read(log.done())


def test_videos_and_stamps_that_nobody_set(tmp_path: Path) -> None:
    log = usual(tmp_path / "a.mcap", images=False)
    log.image(S // 2, kind="h264")
    with pytest.raises(DataError, match="format 'h264' is no single image"):
        read(log.done())
    log = usual(tmp_path / "b.mcap", images=False)
    log.image(-START_US * 1000)
    with pytest.raises(DataError, match="a header stamp is 0 ns"):
        read(log.done())


def test_a_recording_that_was_cut_short(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As after a crash: no summary, the last chunk incomplete."""
    path = usual(tmp_path / "a.mcap").done()
    last = read(path)[-1].cameras[0].encoded.chunk
    (tmp_path / "b.mcap").write_bytes(path.read_bytes()[: last + 50])
    assert caplog.text == ""
    frames = read(tmp_path / "b.mcap")
    assert 0 < len(frames) < 10 and "ends within its data" in caplog.text


def test_damage_is_named(tmp_path: Path) -> None:
    path = usual(tmp_path / "a.mcap").done()
    frames = read(path)
    whole = bytearray(path.read_bytes())
    at = frames[5].cameras[0].encoded.chunk
    whole[at + 60 : at + 90] = bytes(30)
    path.write_bytes(whole)
    with pytest.raises(DataError, match=rf"a\.mcap: chunk at {at} is damaged"):
        load_image(frames[5].cameras[0], "x")
    with pytest.raises(DataError, match=rf"a\.mcap: chunk at {at} is damaged"):
        read(path)
    path.write_bytes(b"not a recording")
    with pytest.raises(DataError, match="not an MCAP file"):
        read(path)
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "none.mcap")
    path.unlink()
    with pytest.raises(DataError, match=r"camera front: .*image cannot be read"):
        load_image(frames[5].cameras[0], "x")


def test_random_damage_ends_in_one_line(tmp_path: Path) -> None:
    whole = usual(tmp_path / "a.mcap").done().read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "b.mcap"
    for _ in range(60):
        data = bytearray(whole)
        at = int(rng.integers(len(data)))
        data[at : at + 4] = rng.integers(0, 256, 4, dtype=np.uint8).tobytes()
        path.write_bytes(data)
        try:
            read(path)
        except DataError as error:
            assert "\n" not in str(error) and "b.mcap" in str(error)


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = usual(tmp_path / "a.mcap").done()
    for name in ("mcap", "mcap.records", "mcap_ros2", "mcap_ros2.decoder", "mcap_ros2.writer", "mcap.writer"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"pip install 'drivestack\[mcap\]'"):
        read(path)
    with pytest.raises(ConfigError, match=r"pip install 'drivestack\[mcap\]'"):
        mcap_writer.write_mcap(toy_drive(1), tmp_path / "b.mcap")


def test_recordings_that_must_be_converted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no \.mcap file in it; name a recording"):
        read(tmp_path)
    (tmp_path / "drive_0.db3").write_bytes(b"SQLite format 3")
    with pytest.raises(DataError, match=r"but drive_0\.db3: convert it"):
        read(tmp_path)


def test_several_files(tmp_path: Path) -> None:
    frames = toy_drive(6)
    for n in (0, 1):
        mcap_writer.write_mcap(frames[3 * n : 3 * n + 3], tmp_path / f"bag_{n}.mcap")
    assert {frame.scene_name for frame in read(tmp_path)} == {"bag_0", "bag_1"}
    (tmp_path / "metadata.yaml").write_text("rosbag2_bagfile_information:\n")
    found = read(tmp_path)
    assert {frame.scene_name for frame in found} == {tmp_path.name}
    assert_equal(found, frames)


def test_what_the_writer_refuses(tmp_path: Path) -> None:
    frames = toy_drive(1, models={"front": double_sphere(K, 128, 80, -0.1, 0.6)})
    with pytest.raises(DataError, match="lens double_sphere: CameraInfo has no distortion model"):
        mcap_writer.write_mcap(frames, tmp_path / "a.mcap")
    assert list(tmp_path.iterdir()) == []
    other = SimpleNamespace(scene_token="other", cameras=())
    with pytest.raises(DataError, match="frames of 2 scenes"):
        mcap_writer.write_mcap([*frames, other], tmp_path / "a.mcap")
    with pytest.raises(ConfigError, match="compression 'gzip'"):
        mcap_writer.write_mcap(frames, tmp_path / "a.mcap", compression="gzip")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("b.json", "{}", "not a file of boxes"),
        ("b.json", '{"frames": [{"timestamp_us": 5, "objects": []}]}', "none of its times .* is within 50 ms"),
        ("b.csv", "a,b\n1,2\n", "no column timestamp_us"),
        (
            "b.csv",
            "timestamp_us,class,x,y,z,length,width,height,yaw_rad\n5,car,1,2,3,4,2,1,x\n",
            "line 2: .*give numbers",
        ),
    ],
)
def test_files_of_boxes_that_cannot_be_used(tmp_path: Path, name: str, content: str, says: str) -> None:
    path = usual(tmp_path / "a.mcap").done()
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=says):
        read(path, boxes=str(tmp_path / name))
    with pytest.raises(DataError, match="no such file"):
        read(path, boxes=str(tmp_path / "none.json"))
