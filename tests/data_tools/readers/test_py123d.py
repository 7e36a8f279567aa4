"""Logs of py123d: what is written is read again, and what its data sets leave open is read as they mean it."""

from __future__ import annotations

import io
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drivestack.core.errors import ConfigError, DataError
from drivestack.core.frames import Frame
from drivestack.data_tools.clips.clip_dataset import ClipDataset
from drivestack.data_tools.clips.images import load_image
from drivestack.data_tools.readers.logs.py123d import read_py123d
from drivestack.data_tools.readers.logs.py123d_labels import LABELS
from drivestack.data_tools.readers.registry import DataSource, find_reader, reader_names
from drivestack.data_tools.synthetic.files.py123d_writer import write_py123d
from drivestack.geometry import brown_conrady, double_sphere, nearest_rigid, pose
from support.moving_rig import BROWN, PINHOLE, RIGS, furthest_px, moving_frames

arrow = pytest.importorskip("pyarrow")

CATEGORIES = ["vehicle.car", "vehicle.bus.rigid", "human.pedestrian.adult", "animal", "vehicle.truck", "vehicle.car"]


def frames_of(rig: str = "pinhole", categories: list[str] = CATEGORIES, **more) -> list[Frame]:
    return moving_frames(RIGS[rig], categories, **more)


def rewrite(path: Path, change) -> None:
    """Columns and metadata of an Arrow file, changed. change(columns, metadata) -> None"""
    import msgspec

    table = arrow.ipc.open_file(arrow.BufferReader(path.read_bytes())).read_all()
    columns = {name: (table.schema.field(name).type, table[name].to_pylist()) for name in table.schema.names}
    about = msgspec.msgpack.decode(table.schema.metadata[b"metadata"])
    change(columns, about)
    arrays = {name: arrow.array(values, kind) for name, (kind, values) in columns.items()}
    made = arrow.table(arrays).replace_schema_metadata({b"metadata": msgspec.msgpack.encode(about)})
    with arrow.ipc.new_file(str(path), made.schema) as writer:
        writer.write_table(made)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write_py123d(frames_of(), tmp_path)[0]


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("rig", RIGS)
def test_what_is_written_is_read_again(rig: str, compression: str | None, tmp_path: Path) -> None:
    frames = frames_of(rig, num_frames=25)  # three batches of images
    write_py123d(frames, tmp_path, compression=compression)
    read = DataSource("py123d", tmp_path, {"split": "train", "dataset": "nuscenes"}).read()
    assert [f.token for f in read] == [f.token for f in frames]
    assert [f.prev_token for f in read[1:]] == [f.token for f in frames[:-1]]
    for ours, theirs in zip(frames, read):
        assert ours.timestamp_us == theirs.timestamp_us and ours.scene_name == theirs.scene_name
        assert np.abs(ours.global_from_ego - theirs.global_from_ego).max() < 1e-9
        assert np.array_equal(ours.can_signals, theirs.can_signals)
        assert [v.name for v in theirs.cameras] == ["CAM_FRONT", "CAM_LEFT", "CAM_RIGHT"]
        for mine, other in zip(ours.cameras, theirs.cameras):
            assert mine.timestamp_us == other.timestamp_us and mine.image_size_px == other.image_size_px
            for pose_name in ("ego_from_camera", "global_from_ego"):
                assert np.abs(getattr(mine, pose_name) - getattr(other, pose_name)).max() < 1e-9
            assert furthest_px(ours, theirs, mine.name, mine.name) < 1e-3
        for name in ("centre_global_m", "rotation_global", "size_lwh_m", "velocity_global_mps", "num_lidar_points"):
            mine, other = (getattr(f.annotations, name) for f in (ours, theirs))
            assert np.abs(mine - other).max() < 1e-6, name
        assert theirs.annotations.categories == CATEGORIES
        assert theirs.annotations.names == ["car", "bus", "pedestrian", "", "truck", "car"]
        assert theirs.annotations.instance_tokens == ours.annotations.instance_tokens
    for i in (0, 9, 10, 24):
        for mine, other in zip(frames[i].cameras, read[i].cameras):
            there = pickle.loads(pickle.dumps(other))
            assert np.array_equal(load_image(there, read[i].token)[:, :, ::-1], mine.image)


def test_the_synthetic_world_is_read_again(tmp_path: Path) -> None:
    pytest.importorskip("embreex")
    from drivestack.data_tools.synthetic.files.generate import synthesize

    root = synthesize(tmp_path / "world", "val", 1, 3, image_width_px=64, labels=(), workers=1, progress=False)
    frames = DataSource("nuscenes", root, {"version": "v1.0-trainval", "split": "val"}).read()
    write_py123d(frames, tmp_path / "arrow", split="val", images=root)
    read = DataSource("py123d", tmp_path / "arrow", {"split": "val", "images": str(root)}).read()
    assert [f.token for f in read] == [f.token for f in frames]
    assert sum(len(f.annotations) for f in read) > 20
    for ours, theirs in zip(frames, read):
        assert np.abs(ours.global_from_ego - theirs.global_from_ego).max() < 1e-9
        assert np.abs(ours.annotations.centre_global_m - theirs.annotations.centre_global_m).max() < 1e-6
        mine, other = ours.annotations.velocity_global_mps, theirs.annotations.velocity_global_mps
        assert np.array_equal(np.isnan(mine), np.isnan(other)) and np.nanmax(np.abs(mine - other)) < 1e-6
        assert ours.annotations.names == theirs.annotations.names
        for view, again in zip(ours.cameras, theirs.cameras):
            assert view.name == again.name and Path(view.image_path) == Path(again.image_path)
            assert furthest_px(ours, theirs, view.name, view.name) < 0.01


def test_options_choose_logs_cameras_and_rows(log: Path, tmp_path: Path) -> None:
    assert len(read_py123d(log, stride=2)) == 2
    assert [v.name for v in read_py123d(tmp_path, cameras="CAM_LEFT, CAM_FRONT")[0].cameras] == [
        "CAM_FRONT",
        "CAM_LEFT",
    ]
    assert len(read_py123d(log.parent, logs=[log.name], split="nuscenes_train")) == 4
    renamed = read_py123d(log, classes={"vehicle.car": "auto"})[0].annotations
    assert renamed.names == ["auto", "", "", "", "", "auto"] and renamed.categories == CATEGORIES
    assert len(read_py123d(tmp_path, logs=log.name, stride=3)) == len(
        read_py123d(tmp_path, dataset=["nuscenes"], stride=3)
    )
    with pytest.raises(ConfigError, match="option classes is 'car'; give a mapping"):
        read_py123d(tmp_path, classes="car")
    with pytest.raises(ConfigError, match="no chosen log has a camera '7'"):
        read_py123d(tmp_path, cameras=7)
    with pytest.raises(DataError, match="stride 0"):
        read_py123d(tmp_path, stride=0)


def test_every_name_in_the_options_must_match(log: Path, tmp_path: Path) -> None:
    write_py123d([replace(f, scene_name="s2") for f in frames_of()], tmp_path, split="val")
    name = log.name
    assert len(read_py123d(tmp_path, split="train,val", dataset="nuscenes", logs=[name, "s2"])) == 8
    assert len(read_py123d(tmp_path, cameras="CAM_LEFT,CAM_FRONT", logs="s2")) == 4
    for options, says in (
        ({"split": "tset"}, r"no log has split 'tset'; there are split nuscenes_train, nuscenes_val"),
        ({"split": "val,tset"}, "no log has split 'tset'"),
        ({"dataset": ["nuscenes", "nuplan"]}, "no log has dataset 'nuplan'; there are dataset nuscenes"),
        ({"logs": f"{name},typo"}, rf"no log has log_name 'typo'; there are log_name {name}, s2"),
        ({"logs": f"{name},s2", "split": "val"}, f"no log of the other options' choice has log_name '{name}'"),
        ({"cameras": "CAM_FRONT,CAM_FRNT"}, "no chosen log has a camera 'CAM_FRNT'; .* CAM_FRONT, CAM_LEFT, CAM_RIGHT"),
        ({"cameras": "CAM_FRNT"}, "no chosen log has a camera 'CAM_FRNT'"),
    ):
        with pytest.raises(ConfigError, match=says) as error:
            read_py123d(tmp_path, **options)
        assert "\n" not in str(error.value)


def test_a_camera_may_be_in_some_of_the_logs(log: Path, tmp_path: Path) -> None:
    front = [replace(f, scene_name="s2", cameras=f.cameras[:1]) for f in frames_of()]
    write_py123d([replace(f, scene_token="other") for f in front], tmp_path)
    frames = read_py123d(tmp_path, cameras="CAM_FRONT,CAM_LEFT")
    assert sorted(len(frame.cameras) for frame in frames) == [1] * 4 + [2] * 4


def test_undistorted_images_are_not_distorted_again(tmp_path: Path) -> None:
    """As Argoverse 2's, whose coefficients stay in the file."""
    (log,) = write_py123d(moving_frames([BROWN], CATEGORIES), tmp_path)
    assert read_py123d(log)[0].cameras[0].camera.lens is not None
    rewrite(log / "camera.pcam_f0.arrow", lambda columns, about: about.update(is_undistorted=True))
    assert read_py123d(log)[0].cameras[0].camera.lens is None


def test_poses_of_cameras_that_are_not_stored_lie_between_those_of_the_car(tmp_path: Path) -> None:
    frames = [replace(f, cameras=f.cameras[:1]) for f in frames_of(step_us=100_000)]
    (log,) = write_py123d(frames, tmp_path)
    halfway = frames[1].timestamp_us + 50_000

    def unstored(columns, about):
        kind, poses = columns["camera.pcam_f0.camera_to_global_se3"]
        columns["camera.pcam_f0.camera_to_global_se3"] = kind, [None] * len(poses)
        columns["camera.pcam_f0.timestamp_us"][1][1] = halfway

    rewrite(log / "camera.pcam_f0.arrow", unstored)
    read = read_py123d(log)
    assert np.allclose(read[0].cameras[0].global_from_ego, frames[0].global_from_ego, atol=1e-9)
    middle = (frames[1].global_from_ego + frames[2].global_from_ego) / 2
    assert np.abs(read[1].cameras[0].global_from_ego - nearest_rigid(middle)).max() < 1e-9


@pytest.mark.parametrize(("gap_s", "late_s"), [(8.0, 4.0), (1.1, 0.02), (0.9, 0.4), (8.0, 0.0)])
def test_no_pose_is_invented_across_a_gap(gap_s: float, late_s: float, tmp_path: Path) -> None:
    """Rows of the car before and after a gap; an image between them whose own pose is not stored."""
    frames = [replace(f, cameras=f.cameras[:1]) for f in frames_of(step_us=100_000)]
    (log,) = write_py123d(frames, tmp_path)
    at = frames[1].timestamp_us + round(late_s * 1e6)

    def apart(columns, about):
        times = columns["ego_state_se3.timestamp_us"][1]
        times[2:] = [times[1] + round(gap_s * 1e6) + 100_000 * i for i in range(2)]

    def unstored(columns, about):
        columns["camera.pcam_f0.camera_to_global_se3"][1][1] = None
        columns["camera.pcam_f0.timestamp_us"][1][1] = at

    rewrite(log / "ego_state_se3.arrow", apart)
    rewrite(log / "camera.pcam_f0.arrow", unstored)
    if gap_s > 1 and late_s:
        says = rf"sync\.arrow, row 1: ValueError: no pose of the car at {at} us; the rows of ego_state_se3\.arrow"
        with pytest.raises(DataError, match=says + rf" around it are {gap_s:g} s apart, over 1 s"):
            read_py123d(log)
    else:
        then = read_py123d(log)[1].cameras[0].global_from_ego
        far = np.linalg.norm(then[:3, 3] - frames[1].global_from_ego[:3, 3])
        assert far == pytest.approx(0.8 * late_s / gap_s, abs=1e-3)


def test_the_ego_frame_is_on_the_ground_below_the_rear_axle(log: Path) -> None:
    frames = frames_of()

    def offset(columns, about):  # KITTI-360's IMU lies beside the axle, 0.9 m over the ground
        about["rear_axle_to_imu_se3"] = [0.05, -0.32, 0, 1, 0, 0, 0]
        about["center_to_imu_se3"] = [1.4, -0.32, 1.6 / 2 - 0.9, 1, 0, 0, 0]

    rewrite(log / "ego_state_se3.arrow", offset)
    lowered = pose(np.eye(3), [0.05, -0.32, -0.9])
    for ours, theirs in zip(frames, read_py123d(log)):
        assert np.allclose(theirs.global_from_ego, ours.global_from_ego @ lowered, atol=1e-9)
        view = theirs.cameras[0]
        assert np.allclose(view.global_from_camera, ours.cameras[0].global_from_camera, atol=1e-9)
        assert np.allclose(view.ego_from_camera[:3, 3], ours.cameras[0].ego_from_camera[:3, 3] - lowered[:3, 3])
    by_hand = read_py123d(log, ego_height_m=0.3)[0]
    assert np.allclose(by_hand.global_from_ego, frames[0].global_from_ego @ pose(np.eye(3), [0.05, -0.32, -0.3]))


def with_dataset(log: Path, dataset: str, split: str = "x_train") -> None:
    rewrite(log / "sync.arrow", lambda columns, about: about.update(dataset=dataset, split=split))


@pytest.mark.parametrize(("dataset", "known"), [("nuscenes", True), ("nuplan", True), ("av2-sensor", False)])
def test_a_velocity_of_zero_is_unknown_where_the_set_has_none(dataset: str, known: bool, log: Path) -> None:
    with_dataset(log, dataset)
    velocity = read_py123d(log)[1].annotations.velocity_global_mps
    assert np.isnan(velocity[1::2]).all() != known, "objects that stand"
    assert np.isfinite(velocity[::2]).all(), "objects that drive (velocities that were inferred)"


def test_a_velocity_of_zero_of_an_object_that_is_seen_once_is_unknown(log: Path) -> None:
    def once(columns, about):
        columns["box_detections_se3.track_token"][1][1][1] = "another"

    rewrite(log / "box_detections_se3.arrow", once)
    velocity = read_py123d(log)[1].annotations.velocity_global_mps
    assert np.isnan(velocity[1]).all() and np.isfinite(velocity[[0, 2, 3, 4, 5]]).all()


def test_a_velocity_that_is_not_stored_is_unknown(log: Path) -> None:
    def missing(columns, about):
        columns["box_detections_se3.velocity_3d"][1][1][0] = None

    rewrite(log / "box_detections_se3.arrow", missing)
    velocity = read_py123d(log)[1].annotations.velocity_global_mps
    assert np.isnan(velocity[0]).all() and np.isfinite(velocity[1:]).all()


@pytest.mark.parametrize("inferred", [False, True])
def test_velocities_of_kitti360_lie_in_the_objects_axes_unless_they_were_inferred(inferred: bool, log: Path) -> None:
    frames = frames_of()

    def turned(columns, about):
        for row, frame in enumerate(frames):
            notes = frame.annotations
            velocity = np.concatenate([notes.velocity_global_mps, np.zeros((len(notes), 1))], 1)
            own = np.einsum("nji,nj->ni", notes.rotation_global, velocity) * [1, -1, -1]
            columns["box_detections_se3.velocity_3d"][1][row] = (velocity if inferred else own).tolist()

    rewrite(log / "box_detections_se3.arrow", turned)
    with_dataset(log, "kitti360")
    read = read_py123d(log)
    for ours, theirs in zip(frames, read):
        assert np.allclose(ours.annotations.velocity_global_mps, theirs.annotations.velocity_global_mps, atol=1e-9)


def test_points_that_were_not_counted_are_no_zeros(log: Path) -> None:
    def uncounted(columns, about):
        counts = columns["box_detections_se3.num_lidar_points"][1]
        counts[0] = [None] * 6
        counts[1] = [0, 0, 5, 0, 0, 0]
        counts[2] = [0] * 6

    rewrite(log / "box_detections_se3.arrow", uncounted)
    counts = [frame.annotations.num_lidar_points.tolist() for frame in read_py123d(log)]
    assert counts[:3] == [[3] * 6, [0, 0, 5, 0, 0, 0], [0] * 6]
    with_dataset(log, "nuscenes", "nuscenes-interpolated_train")
    counts = [frame.annotations.num_lidar_points.tolist() for frame in read_py123d(log)]
    assert counts[:3] == [[3] * 6, [0, 0, 5, 0, 0, 0], [3] * 6]


def test_frames_without_boxes_or_images(log: Path, caplog: pytest.LogCaptureFixture) -> None:
    def sparse(columns, about):
        columns["box_detections_se3"][1][1] = None
        columns["camera.pcam_l0"][1][2] = None
        for camera in ("camera.pcam_f0", "camera.pcam_l0", "camera.pcam_r0"):
            columns[camera][1][3] = None

    rewrite(log / "sync.arrow", sparse)
    read = read_py123d(log)
    assert [frame.annotations is None for frame in read] == [False, True, False]
    assert [len(frame.cameras) for frame in read] == [3, 3, 2]
    assert "1 of 4 moments have no image" in caplog.text
    (log / "box_detections_se3.arrow").unlink()
    assert all(frame.annotations is None for frame in read_py123d(log))


@pytest.mark.parametrize("dataset", ["wod-perception", "wod_perception"])
def test_names_of_waymo_cameras_and_labels(dataset: str, tmp_path: Path) -> None:
    frames = moving_frames([PINHOLE], ["VEHICLE", "CYCLIST"])
    frames = [replace(f, cameras=(replace(f.cameras[0], name="1"),)) for f in frames]
    write_py123d(frames, tmp_path, dataset=dataset, label_class="WODPerceptionBoxDetectionLabel")
    read = read_py123d(tmp_path)[0]
    assert read.cameras[0].name == "FRONT" and read.annotations.names == ["VEHICLE", "CYCLIST"]


def test_labels_are_those_of_py123d_where_it_is_installed() -> None:
    registry = pytest.importorskip("py123d.parser.registry", reason="py123d is not installed")
    pytest.importorskip("py123d.parser.truckdrive.truckdrive_labels")
    for kind, names in LABELS.items():
        theirs = [label.name.lower() for label in registry.BOX_DETECTION_LABEL_REGISTRY[kind]]
        assert [name.replace(".", "_").lower() for name in names] == [name.removeprefix("type_") for name in theirs]


def film(columns, about):
    name = "camera.pcam_f0.data"
    columns[name] = arrow.int32(), list(range(4))


def label_22(columns, about):
    columns["box_detections_se3.label"][1][0][0] = 23


def no_rotation(columns, about):
    columns["ego_state_se3.imu_se3"][1][1] = [0.0] * 7


def late_camera(columns, about):
    columns["camera.pcam_f0.camera_to_global_se3"][1][3] = None
    columns["camera.pcam_f0.timestamp_us"][1][3] += 10**6


BROKEN = [
    ("camera.pcam_f0", film, r"camera\.pcam_f0\.arrow: images are a film \(int32\).*camera_store_option=jpeg_binary"),
    ("camera.pcam_f0", lambda c, a: a.update(camera_model="orthographic"), "camera model 'orthographic' is none of"),
    ("camera.pcam_f0", lambda c, a: a.update(intrinsics=None), "its intrinsics are missing, not 5 numbers"),
    ("camera.pcam_f0", lambda c, a: a.update(width="wide"), "camera.pcam_f0.arrow: ValueError: invalid literal"),
    ("camera.pcam_f0", lambda c, a: a.update(camera_name=7), "its metadata lack camera_name"),
    ("camera.pcam_f0", late_camera, r"sync\.arrow, row 3: ValueError: no pose of the car at"),
    ("camera.pcam_l0", lambda c, a: a.update(camera_name="CAM_FRONT"), "a second camera CAM_FRONT"),
    ("box_detections_se3", label_22, r"sync\.arrow, row 0: ValueError: a box has label 23, of 23 names"),
    ("box_detections_se3", lambda c, a: a.update(box_detection_label_class="my.Own"), "class Own; name.*label_names"),
    ("box_detections_se3", lambda c, a: c.pop("box_detections_se3.label"), "box_detections_se3.arrow, label: KeyError"),
    ("ego_state_se3", no_rotation, "ego_state_se3.arrow: ValueError: quaternion of zero"),
    ("ego_state_se3", lambda c, a: a.pop("height"), "ego_state_se3.arrow: KeyError: 'height'"),
    ("sync", lambda c, a: a.pop("split"), "sync.arrow: its metadata lack split"),
    ("sync", lambda c, a: c["camera.pcam_f0"][1].__setitem__(0, 99), "sync.arrow, row 0: IndexError"),
    ("sync", lambda c, a: c["camera.pcam_f0"][1].__setitem__(0, -1), "sync.arrow, camera.pcam_f0: .*row -1"),
]


@pytest.mark.parametrize(("file", "change", "says"), BROKEN)
def test_what_is_wrong_is_said_in_one_line(file: str, change, says: str, log: Path) -> None:
    rewrite(log / f"{file}.arrow", change)
    with pytest.raises(DataError, match=says) as error:
        read_py123d(log)
    assert "\n" not in str(error.value)


def test_labels_of_an_unknown_class_can_be_named(log: Path) -> None:
    rewrite(log / "box_detections_se3.arrow", lambda c, a: a.update(box_detection_label_class="my.Own"))
    names = [f"thing{i}" for i in range(23)]
    assert read_py123d(log, label_names=names)[0].annotations.names[0] == "thing0"


def test_damaged_files(log: Path, tmp_path: Path) -> None:
    image = read_py123d(log)[0].cameras[0].encoded
    path = log / "camera.pcam_f0.arrow"
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 4):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"pcam_f0\.arrow"):
            image.read()
        with pytest.raises(DataError, match=r"pcam_f0\.arrow.*convert this log again"):
            read_py123d(log)
    path.unlink()
    with pytest.raises(DataError, match=r"pcam_f0\.arrow, row 0: cannot be read"):
        image.read()
    shutil.rmtree(log)
    with pytest.raises(DataError, match=r"no log of py123d \(logs/SPLIT/LOG/sync\.arrow\)"):
        read_py123d(tmp_path)


def test_without_pyarrow_the_install_line_is_named(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ConfigError, match="pip install pyarrow"):
        read_py123d(log)


def test_what_the_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="CAM_FRONT: py123d has no double_sphere lens"):
        write_py123d(moving_frames([double_sphere(PINHOLE.intrinsics, 64, 48, 0.1, 0.6)], CATEGORIES), tmp_path)
    with pytest.raises(DataError, match="object 'spaceship' is none of"):
        write_py123d(moving_frames([PINHOLE], ["spaceship"]), tmp_path)
    frames = moving_frames([PINHOLE], CATEGORIES)
    with pytest.raises(DataError, match="a second scene"):
        write_py123d([*frames, *(replace(f, scene_token="another") for f in frames)], tmp_path)


@pytest.mark.parametrize("change", ["focal length", "lens", "size", "mounting"])
def test_a_camera_that_changes_within_a_scene_is_refused(change: str, tmp_path: Path) -> None:
    """A log has one calibration of a camera: that of another frame would be read for it."""
    frames = moving_frames([BROWN], CATEGORIES)
    (view,) = frames[1].cameras
    bent = brown_conrady(BROWN.intrinsics, 64, 48, (-0.3, 0.11, 1e-3, -2e-3, -0.02))
    other = {
        "focal length": {"camera": replace(BROWN, intrinsics=BROWN.intrinsics * [[1.1], [1.1], [1]])},
        "lens": {"camera": bent},
        "size": {"camera": replace(BROWN, height_px=49)},
        "mounting": {"ego_from_camera": pose(np.eye(3), [0, 0, 0.01]) @ view.ego_from_camera},
    }[change]
    frames[1] = replace(frames[1], cameras=(replace(view, **other),))
    what = "mounting (ego_from_camera)" if change == "mounting" else "intrinsics, lens or size"
    with pytest.raises(DataError, match=rf"sample {frames[1].token}, camera CAM_FRONT: its {re.escape(what)} .* scene"):
        write_py123d(frames, tmp_path)
    assert not list(tmp_path.rglob("camera.*")), "refused before its images are written"
    write_py123d([frames[0], replace(frames[1], scene_token="b", scene_name="b")], tmp_path)
    again = read_py123d(tmp_path, logs="b")[0].cameras[0]
    wanted = frames[1].cameras[0]
    assert np.allclose(again.camera.row, wanted.camera.row) and again.image_size_px == wanted.image_size_px
    assert np.allclose(again.ego_from_camera, wanted.ego_from_camera, atol=1e-9)


def test_an_image_in_a_log_is_the_file_that_was_given(tmp_path: Path) -> None:
    data = io.BytesIO()
    Image.new("RGB", (64, 48), (10, 20, 30)).save(data, "jpeg")
    path = tmp_path / "image.jpg"
    path.write_bytes(data.getvalue())
    frames = moving_frames([PINHOLE], CATEGORIES)
    frames = [replace(f, cameras=(replace(f.cameras[0], image=None, image_path=str(path)),)) for f in frames]
    write_py123d(frames, tmp_path / "out")
    assert read_py123d(tmp_path / "out")[3].cameras[0].encoded.read() == data.getvalue()


@pytest.mark.parametrize("rig", RIGS)
def test_a_clip_of_a_log_is_ready_for_training(rig: str, tmp_path: Path) -> None:
    """Images out of the log, boxes of the chosen classes, cameras as they are."""
    frames = frames_of(rig)
    write_py123d(frames, tmp_path)
    image = {"crop": (0, 0, 1, 1), "train_heights_px": (48,), "test_height_px": 48}
    settings = {"classes": ["auto"], "image": image, "frame_offsets": (-1, 0), "pc_range": (-60, -60, -5, 60, 60, 5)}
    source = {"reader": "py123d", "root": str(tmp_path), "classes": {"vehicle.car": "auto"}}
    sample = ClipDataset(source=source, **settings)[2]
    assert sample.frame.token == frames[2].token and len(sample.gt_boxes) == 2
    for past, frame in zip((0, 1), frames[1:3]):
        for pixels, view in zip(sample.images[past], frame.cameras):  # normalised, blue first
            assert np.corrcoef(pixels[2].ravel(), view.image[:, :, 0].ravel())[0, 1] > 0.999
    assert (sample.lenses is None) == (rig == "pinhole")


def test_the_examples_of_the_page_run(repository_root: Path, tmp_path: Path) -> None:
    """Of docs/other_logs.md: here py123d's; the other readers take the same call."""
    page = (repository_root / "docs" / "other_logs.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert [re.findall(r'reader="(\w+)"', block)[0] for block in blocks] == ["py123d", "openscene", "t4"]
    frames = moving_frames([PINHOLE], ["vehicle", "pedestrian"], num_frames=6, step_us=100_000)
    write_py123d(frames, tmp_path, dataset="nuplan", split="val", label_class="NuPlanBoxDetectionLabel")
    names: dict = {}
    exec(compile(blocks[0].replace("/data/py123d", str(tmp_path)), "docs/other_logs.md", "exec"), names)
    assert [frame.annotations.names for frame in names["frames"]] == [["car", "pedestrian"]] * 2


@pytest.mark.parametrize("name", ["py123d", "openscene", "t4"])
def test_readers_are_known_by_name_and_state_their_conventions(name: str) -> None:
    reader = find_reader(name)
    assert name in reader_names() and reader.conventions.frames.startswith("EGO: x ahead, y left, z up")
