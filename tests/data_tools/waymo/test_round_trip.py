"""Frames written as Waymo v1 and v2 come back as they were."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drivestack.core.errors import ConfigError, DataError
from drivestack.core.frames import Annotations, Frame
from drivestack.core.once import forget_warnings
from drivestack.data_tools.clips.images import load_image
from drivestack.data_tools.readers.registry import DataSource
from drivestack.data_tools.readers.waymo.reader import read_waymo
from drivestack.data_tools.synthetic.files.waymo_rows import camera_number, context_name
from drivestack.data_tools.synthetic.files.waymo_writer import write_waymo_v1, write_waymo_v2
from drivestack.geometry import invert_pose, kannala_brandt, transform_points
from support.waymo_frames import CONTEXT, LENS, drive

WRITERS: dict[str, Callable[..., list[Path]]] = {"v1": write_waymo_v1, "v2": write_waymo_v2}


def there_and_back(version: str, frames: list[Frame], root: Path, **options: object) -> list[Frame]:
    WRITERS[version](frames, root / "validation")
    return DataSource("waymo", root, {"camera_only": False, **options}).read()


def pixels(frame: Frame, number: int, ego_m: np.ndarray) -> np.ndarray:
    view = frame.cameras[number]
    points = transform_points(invert_pose(view.global_from_camera) @ frame.global_from_ego, ego_m)
    return view.camera.project(points)[0]


@pytest.mark.parametrize("lens", [None, LENS], ids=["pinhole", "brown_conrady"])
def test_frames_come_back(version: str, tmp_path: Path, lens: list[float] | None) -> None:
    frames = drive(lens)
    back = there_and_back(version, frames, tmp_path)
    around = np.random.default_rng(0).uniform([-40, -40, -1], [40, 40, 5], (4000, 3))
    assert [frame.token for frame in back] == [frame.token for frame in frames]
    assert [frame.prev_token for frame in back] == ["", *(frame.token for frame in frames[:-1])]
    for own, other in zip(frames, back):
        assert (other.scene_token, other.scene_name) == (CONTEXT, CONTEXT)
        assert (other.timestamp_us, other.conditions) == (own.timestamp_us, own.conditions)
        np.testing.assert_allclose(other.global_from_ego, own.global_from_ego, atol=1e-9)
        assert [view.name for view in other.cameras] == [view.name for view in own.cameras]
        for i, (view, its) in enumerate(zip(own.cameras, other.cameras)):
            np.testing.assert_allclose(its.global_from_ego, view.global_from_ego, atol=1e-9)
            np.testing.assert_allclose(its.ego_from_camera, view.ego_from_camera, atol=1e-9)
            assert its.timestamp_us == view.timestamp_us and its.image_size_px == view.image_size_px
            assert its.rolling_shutter == view.rolling_shutter and its.camera.lens == view.camera.lens
            seen = pixels(own, i, around)
            assert np.isfinite(seen).all(1).sum() > 300
            np.testing.assert_allclose(pixels(other, i, around), seen, atol=0.01)
            image = load_image(pickle.loads(pickle.dumps(its)), other.token)
            np.testing.assert_array_equal(image, load_image(view, own.token))
        same_labels(own.annotations, other.annotations)


def same_labels(own: Annotations | None, other: Annotations | None) -> None:
    assert own is not None and other is not None
    np.testing.assert_allclose(other.centre_global_m, own.centre_global_m, atol=1e-6)
    np.testing.assert_allclose(other.rotation_global, own.rotation_global, atol=1e-6)
    np.testing.assert_allclose(other.size_lwh_m, own.size_lwh_m, atol=1e-6)
    np.testing.assert_allclose(other.velocity_global_mps, own.velocity_global_mps, atol=1e-6)
    for name in ("names", "instance_tokens", "most_visible_cameras"):
        assert getattr(other, name) == getattr(own, name)
    for name in ("difficulty", "num_lidar_points", "num_top_lidar_points"):
        np.testing.assert_array_equal(getattr(other, name), getattr(own, name))


def test_the_principal_point_moves_by_half_a_pixel(version: str, tmp_path: Path) -> None:
    """Waymo counts from the edge of the first pixel."""
    frames = drive(num_frames=1)
    WRITERS[version](frames, tmp_path)
    if version == "v1":
        from waymo_open_dataset.dataset_pb2 import Frame as Message

        content = next(tmp_path.glob("*.tfrecord")).read_bytes()
        stored = Message.FromString(content[12:-4]).context.camera_calibrations[0].intrinsic[2]
    else:
        from pyarrow import parquet

        table = parquet.read_table(next((tmp_path / "camera_calibration").glob("*.parquet")))
        stored = table["[CameraCalibrationComponent].intrinsic.c_u"][0].as_py()
    assert stored == frames[0].cameras[0].camera.intrinsics[0, 2] + 0.5


def test_boxes_of_the_keyframe_are_moved_to_the_time_of_their_camera(version: str, tmp_path: Path) -> None:
    frames = drive(synced=False)
    for own, other in zip(frames, there_and_back(version, frames, tmp_path)):
        notes, moved = own.annotations, other.annotations
        assert notes is not None and moved is not None
        assert moved.most_visible_cameras == ["FRONT", "SIDE_LEFT", "FRONT_RIGHT", "SIDE_RIGHT", ""]
        times = {view.name: view.timestamp_us for view in own.cameras} | {"": own.timestamp_us}
        delay_s = np.array([times[name] - own.timestamp_us for name in moved.most_visible_cameras]) * 1e-6
        expected = notes.centre_global_m.copy()
        expected[:, :2] += np.nan_to_num(notes.velocity_global_mps) * delay_s[:, None]
        assert np.abs(expected - notes.centre_global_m).max() > 0.5
        np.testing.assert_allclose(moved.centre_global_m, expected, atol=1e-6)


def test_the_camera_challenge_leaves_out_what_no_camera_sees(
    version: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    forget_warnings()
    frames = drive(num_frames=2)
    points = np.array([190, 0, 4, 80, 25])
    notes = [replace(frame.annotations, num_top_lidar_points=points) for frame in frames]  # type: ignore[type-var]
    frames = [replace(frame, annotations=note) for frame, note in zip(frames, notes)]
    back = there_and_back(version, frames, tmp_path, camera_only=True)
    assert [frame.annotations.names for frame in back if frame.annotations] == [["vehicle", "sign", "cyclist"]] * 2
    assert "2 objects without points of the top LiDAR and 2 more without a camera" in caplog.text
    assert "of 10, are left out" in caplog.text


def test_a_drive_without_labels_has_none(version: str, tmp_path: Path) -> None:
    back = there_and_back(version, drive(labelled=False), tmp_path)
    assert [frame.token for frame in back] == [frame.token for frame in drive()]
    assert all(frame.annotations is None for frame in back)


def test_stride_segments_classes_and_splits(version: str, tmp_path: Path) -> None:
    frames = drive(num_frames=5)
    other = [replace(f, scene_token="other", scene_name="other", token=f"o{f.timestamp_us}") for f in frames]
    for split in ("training", "validation"):
        WRITERS[version](frames + other if split == "training" else frames[:1], tmp_path / split)
    back = read_waymo(tmp_path, "train", stride=2, camera_only=False, classes={"vehicle": "car", "cyclist": "bike"})
    assert len(back) == 6 and len({frame.scene_token for frame in back}) == 2
    times = [frame.timestamp_us for frame in back if frame.scene_token == CONTEXT]
    assert times == [frame.timestamp_us for frame in frames[::2]]
    assert back[0].annotations is not None
    assert back[0].annotations.names == ["car", "", "", "bike", "car"]
    assert back[0].annotations.categories == ["vehicle", "pedestrian", "sign", "cyclist", "vehicle"]
    assert len(read_waymo(tmp_path, "training", max_segments=1)) == 5
    assert len(read_waymo(tmp_path, "val")) == 1
    assert len(read_waymo(tmp_path / "training", "train")) == 10
    with pytest.raises(DataError, match="is the folder of training, but split val"):
        read_waymo(tmp_path / "training", "val")
    with pytest.raises(DataError, match=r"no folder testing; it has training, validation"):
        read_waymo(tmp_path, "test")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"stride": 0}, "stride 0 must be at least 1"),
        ({"max_segments": -1}, "max_segments -1"),
        ({"classes": {"car": "car"}}, "class 'car' is none of Waymo's"),
        ({"classes": "car"}, "option classes is 'car'; give a mapping"),
        ({"classes": {"vehicle": 3}}, "option classes: 'vehicle' becomes 3; give the name of a class"),
        ({"split": ""}, "no split is named; give train, val, test, test_camera_only or the name of a folder"),
        ({"version": "v3"}, "give v1"),
    ],
)
def test_options_that_are_none_are_refused(tmp_path: Path, options: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_waymo(tmp_path, **options)


def test_lenses_skew_and_cameras_that_waymo_cannot_say_are_refused(version: str, tmp_path: Path) -> None:
    frame = drive(num_frames=1)[0]
    view = frame.cameras[0]

    def write(**changes: object) -> None:
        WRITERS[version]([replace(frame, cameras=(replace(view, **changes), *frame.cameras[1:]))], tmp_path)

    fisheye = kannala_brandt(view.camera.intrinsics, 96, 64, [0.1, 0, 0, 0])
    with pytest.raises(DataError, match=r"camera FRONT .*lens kannala_brandt.*undistort"):
        write(camera=fisheye)
    skewed = view.camera.intrinsics.copy()
    skewed[0, 1] = 0.5
    with pytest.raises(DataError, match="skewed"):
        write(camera=replace(view.camera, intrinsics=skewed))
    with pytest.raises(ConfigError, match=r"camera 'roof'.*FRONT, FRONT_LEFT"):
        write(name="roof")
    with pytest.raises(ConfigError, match="two have one name"):
        write(name="CAM_SIDE_LEFT")
    with pytest.raises(ConfigError, match="class 'bus' is none"):
        WRITERS[version]([frame], tmp_path, classes={"bus": "bus"})
    assert not list(tmp_path.rglob("*.*"))


def test_scenes_and_tracks_that_cannot_be_told_apart_are_refused(version: str, tmp_path: Path) -> None:
    frames = drive(num_frames=1)
    [twin] = [replace(frame, scene_token="another", token="t") for frame in frames]
    with pytest.raises(DataError, match=f"scenes {CONTEXT} and another: both have the name"):
        WRITERS[version]([*frames, twin], tmp_path)
    with pytest.raises(DataError, match="two frames have one time"):
        WRITERS[version](frames * 2, tmp_path)
    notes = replace(frames[0].annotations, instance_tokens=list("aacde"))  # type: ignore[type-var]
    with pytest.raises(DataError, match="two objects of one track"):
        WRITERS[version]([replace(frames[0], annotations=notes)], tmp_path)


def test_own_names_of_classes_are_known_by_category_and_old_labels_do_not_stay(version: str, tmp_path: Path) -> None:
    frames = drive(num_frames=1)
    back = there_and_back(version, frames, tmp_path, classes={"vehicle": "car", "pedestrian": "person"})
    again = there_and_back(version, back, tmp_path)
    same_labels(frames[0].annotations, again[0].annotations)
    bare = there_and_back(version, [replace(frame, annotations=None) for frame in frames], tmp_path)
    assert bare[0].annotations is None


def test_names_of_cameras_and_contexts() -> None:
    names = {"CAM_FRONT": 1, "ring_front_center": 1, "CAM_BACK_LEFT": 6, "CAM_BACK": 7, "ring_side_left": 4, "FRONT": 1}
    assert {name: camera_number(name) for name in names} == names
    assert camera_number("roof", {"roof": "REAR"}) == 7
    assert context_name(CONTEXT, 5) == CONTEXT
    made = context_name("scene-0003", 19_900_000)
    assert made == context_name("scene-0003", 19_900_000) != context_name("scene-0004", 19_900_000)
    number, *times = made.split("_")
    assert len(number) == 19 and times == ["0", "000", "19", "900"]
