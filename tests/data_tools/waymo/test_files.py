"""What is wrong with Waymo's files is said in one line; what is right is read where it lies, and no more of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from drivestack.core.errors import ConfigError, DataError
from drivestack.core.once import forget_warnings
from drivestack.data_tools.clips.images import load_image
from drivestack.data_tools.readers.waymo import tables as waymo_tables
from drivestack.data_tools.readers.waymo.parts import seen_by
from drivestack.data_tools.readers.waymo.reader import read_waymo
from drivestack.data_tools.readers.waymo.tfrecords import record
from drivestack.data_tools.synthetic.files.waymo_writer import SCHEMAS, write_waymo_v1, write_waymo_v2
from support.waymo_frames import CONTEXT, drive

# ------------------------------------------------------------------------------------------------------------ v1


@pytest.fixture
def rewrite(messages: Any, tmp_path: Path) -> Callable[[Callable[[Any], None]], Path]:
    """rewrite(change): a file of two records whose second message ``change`` has changed."""

    def write(change: Callable[[Any], None]) -> Path:
        [path] = write_waymo_v1(drive(num_frames=2), tmp_path)
        content = path.read_bytes()
        first = int.from_bytes(content[:8], "little") + 16
        message = messages.Frame.FromString(content[first + 12 : -4])
        change(message)
        path.write_bytes(content[:first] + record(message.SerializeToString()))
        return path

    return write


def clear_pose(message: Any) -> None:
    message.ClearField("pose")


def short_pose(message: Any) -> None:
    del message.pose.transform[3:]


def unknown_camera(message: Any) -> None:
    message.images[2].name = 0


def twice(message: Any) -> None:
    message.images[1].name = message.images[0].name


def no_image_pose(message: Any) -> None:
    message.images[0].ClearField("pose")


def no_jpeg(message: Any) -> None:
    message.images[0].image = b"PNG..."


def no_pixels(message: Any) -> None:
    message.images[0].ClearField("image")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (clear_pose, "record 2: .*no context name, time or pose"),
        (short_pose, "record 2: .*size 3"),
        (unknown_camera, "record 2: .*camera 0, which is none of FRONT"),
        (twice, "has two images of one camera"),
        (no_image_pose, "record 2: .*camera 1 without pose"),
        (no_jpeg, "record 2: .*holds no JPEG"),
        (no_pixels, "record 2: .*an image without content"),
    ],
)
def test_a_record_that_lacks_something_is_named(rewrite: Callable, change: Callable[[Any], None], says: str) -> None:
    path = rewrite(change)
    with pytest.raises(DataError, match=says) as error:
        read_waymo(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_calibrations_that_are_none_are_named(messages: Any, tmp_path: Path) -> None:
    [path] = write_waymo_v1(drive(num_frames=1), tmp_path)
    message = messages.Frame.FromString(path.read_bytes()[12:-4])
    del message.context.camera_calibrations[1].intrinsic[8:]
    path.write_bytes(record(message.SerializeToString()))
    assert len(read_waymo(path)[0].cameras) == 5  # four coefficients are a lens, too
    message.context.camera_calibrations[1].width = 0
    path.write_bytes(record(message.SerializeToString()))
    with pytest.raises(DataError, match=f"camera 2 of {CONTEXT}: no calibration .*image size must be positive"):
        read_waymo(path)
    del message.context.camera_calibrations[1]
    path.write_bytes(record(message.SerializeToString()))
    with pytest.raises(DataError, match="camera FRONT_LEFT has no calibration"):
        read_waymo(path)


@pytest.mark.parametrize("payload", [b"\xff" * 40, b"\x0b\x0c", b"\x22\x7f\x01", b"", b"\x10"])
def test_records_of_something_else_are_refused(messages: Any, tmp_path: Path, payload: bytes) -> None:
    path = tmp_path / "segment-1.tfrecord"
    path.write_bytes(record(payload))
    with pytest.raises(DataError, match="record 1: is no frame of Waymo's perception data"):
        read_waymo(path)


def test_an_image_is_read_where_it_lies_and_a_changed_file_is_noticed(messages: Any, tmp_path: Path) -> None:
    [path] = write_waymo_v1(drive(num_frames=2), tmp_path)
    [frame, _] = read_waymo(path)
    view = frame.cameras[2]
    assert view.encoded is not None and view.image is None
    data, content = view.encoded.read(), path.read_bytes()
    assert content.count(data) == 1 and data.endswith(b"\xff\xd9")
    path.write_bytes(content[: content.index(data) + 10])
    with pytest.raises(DataError, match=rf"sample {frame.token}, camera FRONT_RIGHT: .*ends before byte"):
        load_image(view, frame.token)
    path.write_bytes(b"x" + content)
    with pytest.raises(DataError, match=r"camera FRONT_RIGHT: .*holds no JPEG"):
        load_image(view, frame.token)


def test_without_the_message_classes_the_commands_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "segment-1.tfrecord"
    path.write_bytes(record(b""))
    for name in ("waymo_open_dataset", "waymo_open_dataset.dataset_pb2"):
        monkeypatch.setitem(sys.modules, name, None)
    for read in (lambda: read_waymo(path), lambda: write_waymo_v1(drive(num_frames=1), tmp_path)):
        with pytest.raises(ConfigError, match=r"make waymo, or pip install protobuf && pip install --no-deps waymo"):
            read()


# ------------------------------------------------------------------------------------------------------------ v2


@pytest.fixture
def folder(parquet: Any, tmp_path: Path) -> Path:
    write_waymo_v2(drive(num_frames=4), tmp_path / "validation")
    return tmp_path / "validation"


@pytest.mark.parametrize("component", ["vehicle_pose", "camera_calibration"])
def test_a_missing_component_is_named(folder: Path, component: str) -> None:
    (folder / component / f"{CONTEXT}.parquet").unlink()
    with pytest.raises(DataError, match=rf"segment {CONTEXT} has no {component}/{CONTEXT}\.parquet; fetch it"):
        read_waymo(folder.parent)


def test_a_set_without_images_is_named(folder: Path) -> None:
    (folder / "camera_image" / f"{CONTEXT}.parquet").unlink()
    with pytest.raises(DataError, match=r"has camera_calibration, vehicle_pose but no camera_image|no camera_image/"):
        read_waymo(folder.parent)


def test_labels_and_stats_may_be_missing(folder: Path) -> None:
    for component in ("stats", "lidar_box", "lidar_camera_synced_box"):
        (folder / component / f"{CONTEXT}.parquet").unlink()
    frame = read_waymo(folder.parent)[0]
    assert frame.conditions == {} and frame.annotations is None


def change(path: Path, parquet: Any, edit: Callable[[Any], Any]) -> None:
    parquet.write_table(edit(parquet.read_table(path)), path)


def test_wrong_tables_are_named(folder: Path, parquet: Any) -> None:
    image = folder / "camera_image" / f"{CONTEXT}.parquet"
    content = image.read_bytes()
    change(image, parquet, lambda table: table.drop_columns("[CameraImageComponent].pose_timestamp"))
    with pytest.raises(DataError, match=r"has no column '\[CameraImageComponent\]\.pose_timestamp'"):
        read_waymo(folder.parent)
    image.write_bytes(content)
    image.rename(image.with_name("other.parquet"))
    for part in SCHEMAS.keys() - {"camera_image"}:
        (folder / part / f"{CONTEXT}.parquet").rename(folder / part / "other.parquet")
    with pytest.raises(DataError, match=f"holds segment {CONTEXT}; name the file after its segment"):
        read_waymo(folder.parent)
    poses = folder / "vehicle_pose" / "other.parquet"
    poses.write_bytes(poses.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"other\.parquet: cannot be read as Parquet"):
        read_waymo(folder.parent)


def test_cameras_may_have_names_instead_of_numbers(folder: Path, parquet: Any) -> None:
    import pyarrow

    names = {1: "FRONT", 2: "FRONT_LEFT", 3: "FRONT_RIGHT", 4: "SIDE_LEFT", 5: "SIDE_RIGHT"}

    def named(table: Any) -> Any:
        column = next(name for name in table.column_names if name.endswith("camera_name"))
        values = pyarrow.array([names[number] for number in table[column].to_pylist()])
        return table.set_column(table.column_names.index(column), column, values)

    before = read_waymo(folder.parent)
    for part in ("camera_image", "camera_calibration", "lidar_camera_synced_box"):
        change(folder / part / f"{CONTEXT}.parquet", parquet, named)
    assert [seen_by(value) for value in (0, None, "", "UNKNOWN", "REAR", 5)] == [""] * 4 + ["REAR", "SIDE_RIGHT"]
    for a, b in zip(before, read_waymo(folder.parent)):
        assert a.annotations is not None and b.annotations is not None
        assert a.annotations.most_visible_cameras == b.annotations.most_visible_cameras
        assert [view.name for view in a.cameras] == [view.name for view in b.cameras]
        assert [view.camera.lens for view in a.cameras] == [view.camera.lens for view in b.cameras]


def test_row_groups_of_other_times_are_passed_over(folder: Path, parquet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, tuple[str, ...]]] = []
    inner = parquet.ParquetFile.read_row_group

    def counted(self: Any, group: int, columns: list[str]) -> Any:
        read.append((group, tuple(columns)))
        return inner(self, group, columns=columns)

    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", counted)
    frames = read_waymo(folder.parent, stride=3)
    assert [frame.timestamp_us - frames[0].timestamp_us for frame in frames] == [0, 300_000]
    of_images = [group for group, columns in read if any("pose_timestamp" in name for name in columns)]
    assert of_images == [0, 3]
    assert not any(waymo_tables.IMAGE in columns for _, columns in read)
    read.clear()
    for view in frames[1].cameras:
        load_image(view, frames[1].token)
    assert [group for group, _ in read] == [3]  # kept for the other cameras


def test_large_row_groups_are_warned_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    forget_warnings()
    monkeypatch.setattr(waymo_tables, "SLOW_BYTES", 100)
    read_waymo(folder.parent)
    assert "row groups of images have 0 MB, all of which is read for one image" in caplog.text


def test_both_versions_in_one_folder_need_a_choice(messages: Any, folder: Path) -> None:
    write_waymo_v1(drive(num_frames=1), folder)
    with pytest.raises(ConfigError, match="choose with reader option version"):
        read_waymo(folder.parent)
    assert len(read_waymo(folder.parent, version="v1")) == 1
    assert len(read_waymo(folder.parent, version="v2")) == 4


def test_the_official_data_classes_accept_the_rows(messages: Any, parquet: Any, folder: Path) -> None:
    classes = official_components()
    for component, columns in SCHEMAS.items():
        official = classes[component]
        table = parquet.read_table(folder / component / f"{CONTEXT}.parquet")
        assert table.schema.equals(official.schema()), component
        assert list(columns) == table.schema.names
        rows = table.to_pylist()
        assert rows
        for row in rows:
            again = official.from_dict(row).to_flatten_dict()
            assert all(same(again[name], row[name]) for name in columns), component


def same(a: Any, b: Any) -> bool:
    return bool(np.array_equal(a, b)) if isinstance(b, list) else a == b


def official_components() -> dict[str, Any]:
    """The classes of waymo_open_dataset.v2 without its __init__, which imports TensorFlow."""
    import waymo_open_dataset

    if "waymo_open_dataset.v2" not in sys.modules:
        package = ModuleType("waymo_open_dataset.v2")
        package.__path__ = [f"{waymo_open_dataset.__path__[0]}/v2"]
        sys.modules["waymo_open_dataset.v2"] = package
    from waymo_open_dataset.v2.perception import box, camera_image, context, pose

    return {
        "camera_image": camera_image.CameraImageComponent,
        "camera_calibration": context.CameraCalibrationComponent,
        "vehicle_pose": pose.VehiclePoseComponent,
        "lidar_box": box.LiDARBoxComponent,
        "lidar_camera_synced_box": box.LiDARCameraSyncedBoxComponent,
        "stats": context.StatsComponent,
    }
