"""What a label, a frame or a segment leaves out is understood by what the split states; nothing is taken for labelled,
seen or measured that is not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivestack.bev.evaluation.waymo_scores import ground_truths
from drivestack.core.errors import ConfigError, DataError
from drivestack.core.frames import Annotations, Frame
from drivestack.core.once import forget_warnings
from drivestack.data_tools.readers.waymo.reader import read_waymo
from drivestack.data_tools.readers.waymo.tfrecords import record
from drivestack.data_tools.synthetic.files.waymo_writer import SCHEMAS, write_waymo_v1, write_waymo_v2
from support.waymo_frames import CONTEXT, drive

FIRST = "1000000000000000000_000_000_020_000"  # by name before CONTEXT
WRITERS: dict[str, Callable[..., list[Path]]] = {"v1": write_waymo_v1, "v2": write_waymo_v2}


def segment(name: str, delay_us: int = 0, keep: tuple[int, ...] = (0, 1, 2, 3, 4), **changes: Any) -> list[Frame]:
    """The drive under another name and at other times, with some of its five objects; the last is seen by no camera."""
    out = []
    for frame in drive(num_frames=4):
        views = tuple(replace(view, timestamp_us=view.timestamp_us + delay_us) for view in frame.cameras)
        time_us = frame.timestamp_us + delay_us
        assert frame.annotations is not None
        notes = replace(rows_of(frame.annotations, keep), **changes)
        made = replace(frame, token=f"{name}_{time_us}", timestamp_us=time_us, cameras=views, annotations=notes)
        out.append(replace(made, scene_token=name, scene_name=name))
    return out


def rows_of(notes: Annotations, rows: tuple[int, ...]) -> Annotations:
    own: dict[str, Any] = {}
    for name, values in vars(notes).items():
        own[name] = values[list(rows)] if isinstance(values, np.ndarray) else [values[i] for i in rows if values]
    return Annotations(**own)


def two(version: str, root: Path, first: list[Frame]) -> Path:
    """A split of a segment and, after it by name, the whole drive. Returns its folder."""
    WRITERS[version]([*first, *drive(num_frames=4)], root / "validation")
    return root / "validation"


def names_of(frames: list[Frame], scene: str) -> list[list[str] | None]:
    chosen = [frame for frame in frames if frame.scene_name == scene]
    return [None if frame.annotations is None else frame.annotations.names for frame in chosen]


def test_what_no_camera_sees_does_not_count_in_a_segment_where_none_sees_any(version: str, tmp_path: Path) -> None:
    two(version, tmp_path, segment(FIRST, keep=(4,)))
    frames = read_waymo(tmp_path)
    assert names_of(frames, FIRST) == [[]] * 4
    assert names_of(frames, CONTEXT) == [["vehicle", "pedestrian", "sign", "cyclist"]] * 4
    assert len(ground_truths(frames[:4])) == 0 and len(ground_truths(frames)) == 16
    everything = read_waymo(tmp_path, camera_only=False)
    assert names_of(everything, FIRST) == [["vehicle"]] * 4
    assert len(ground_truths(everything)) == 16


def test_a_segment_without_objects_is_labelled_where_others_are(version: str, tmp_path: Path) -> None:
    two(version, tmp_path, segment(FIRST, keep=()))
    frames = read_waymo(tmp_path)
    assert names_of(frames, FIRST) == [[]] * 4
    assert len(ground_truths(frames)) == 16
    assert names_of(read_waymo(tmp_path, max_segments=1), FIRST) == [None if version == "v1" else []] * 4


def test_labels_of_older_files_keep_the_boxes_of_the_lidars_time(
    messages: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    forget_warnings()
    [path] = write_waymo_v1(drive(num_frames=1), tmp_path / "validation")
    message = messages.Frame.FromString(path.read_bytes()[12:-4])
    for label in message.laser_labels:
        for name in ("camera_synced_box", "most_visible_camera_name", "num_top_lidar_points_in_box"):
            label.ClearField(name)
    message.laser_labels[1].num_lidar_points_in_box = 0
    message.laser_labels[2].detection_difficulty_level = 0  # of 5 points
    path.write_bytes(record(message.SerializeToString()))
    [frame] = read_waymo(tmp_path)
    assert frame.annotations is not None and frame.annotations.most_visible_cameras is None
    assert frame.annotations.names == ["vehicle", "sign", "cyclist", "vehicle"]
    assert frame.annotations.num_top_lidar_points is not None and frame.annotations.difficulty is not None
    assert frame.annotations.num_top_lidar_points.tolist() == [-1] * 4
    assert frame.annotations.num_lidar_points.tolist() == [200, 5, 90, 30]
    assert frame.annotations.difficulty.tolist() == [1, 2, 1, 1]
    assert "4 of 5 objects have no camera-synced box (the set states none" in caplog.text
    assert "1 objects without LiDAR points (the set states none of the top one)" in caplog.text


# ------------------------------------------------------------------------------------------------------------ v2


@pytest.mark.parametrize("component", ["lidar_box", "lidar_camera_synced_box"])
def test_a_segment_that_lacks_labels_of_its_split_is_refused(parquet: Any, tmp_path: Path, component: str) -> None:
    folder = two("v2", tmp_path, segment(FIRST))
    (folder / component / f"{FIRST}.parquet").unlink()
    with pytest.raises(DataError, match=rf"segment {FIRST} has no {component}/{FIRST}\.parquet, but the split has lab"):
        read_waymo(tmp_path)


def test_boxes_alone_are_refused(parquet: Any, tmp_path: Path) -> None:
    write_waymo_v2(drive(num_frames=1), tmp_path / "validation")
    (tmp_path / "validation" / "lidar_camera_synced_box" / f"{CONTEXT}.parquet").unlink()
    with pytest.raises(DataError, match=r"has no lidar_camera_synced_box/.*fetch it"):
        read_waymo(tmp_path)


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("component", list(SCHEMAS))
def test_a_file_of_another_segment_is_refused(parquet: Any, tmp_path: Path, component: str, statistics: bool) -> None:
    """Its times fit none of the segment, or all."""
    for delay_us in (10**9, 0):
        folder = two("v2", tmp_path, segment(FIRST, delay_us))
        path, other = (folder / component / f"{name}.parquet" for name in (FIRST, CONTEXT))
        parquet.write_table(parquet.read_table(other), path, write_statistics=statistics)
        with pytest.raises(DataError, match=rf"{component}/{FIRST}\.parquet: holds segment {CONTEXT}; name the file"):
            read_waymo(tmp_path)


def test_a_parquet_file_is_no_root(parquet: Any, tmp_path: Path) -> None:
    paths = write_waymo_v2(drive(num_frames=1), tmp_path)
    for options in ({}, {"version": "v2"}):
        with pytest.raises(ConfigError, match=r"is a file, and v2 .* give the folder of the split, or the root"):
            read_waymo(paths[0], **options)


# ------------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("same_scene", [True, False])
def test_frames_without_labels_among_labelled_ones_are_not_written(
    version: str, tmp_path: Path, same_scene: bool
) -> None:
    frames = drive(num_frames=4) if same_scene else [*segment(FIRST), *drive(num_frames=4)]
    frames[-1] = replace(frames[-1], annotations=None)
    with pytest.raises(DataError, match=rf"sample {frames[-1].token}: has no annotations \(1 frames have none\)"):
        WRITERS[version](frames, tmp_path)
    assert not list(tmp_path.rglob("*.*"))


def test_a_segment_is_replaced_whole_or_not_at_all(version: str, tmp_path: Path) -> None:
    frames = drive(num_frames=2)
    before = {path: path.read_bytes() for path in WRITERS[version](frames, tmp_path)}
    assert len(before) == (1 if version == "v1" else len(SCHEMAS))
    twins = replace(frames[1].annotations, instance_tokens=list("aacde"))  # type: ignore[type-var]
    broken = replace(frames[1].cameras[2], encoded=None, image_path=str(tmp_path / "none.jpg"))
    for wrong in (
        replace(frames[1], annotations=twins),
        replace(frames[1], cameras=(*frames[1].cameras[:2], broken, *frames[1].cameras[3:])),
    ):
        with pytest.raises(DataError):
            WRITERS[version]([replace(frames[0], conditions={}), wrong], tmp_path)
        with pytest.raises(DataError):
            WRITERS[version]([frames[0], wrong], tmp_path / "new")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


def test_points_of_the_top_lidar_are_not_made_up(version: str, tmp_path: Path) -> None:
    """Unknown stays unknown, and points of all LiDARs count."""
    points = np.array([200, 0, 5, 90, 30])
    unknown = segment(FIRST, num_top_lidar_points=None, num_lidar_points=points)
    WRITERS[version](unknown, tmp_path / "validation")
    for frame in read_waymo(tmp_path):
        assert frame.annotations is not None and frame.annotations.num_top_lidar_points is not None
        assert frame.annotations.names == ["vehicle", "sign", "cyclist"]
        assert frame.annotations.num_top_lidar_points.tolist() == [-1, -1, -1]
        assert frame.annotations.num_lidar_points.tolist() == [200, 5, 90]


def test_in_a_set_that_states_them_an_object_without_top_points_has_none(version: str, tmp_path: Path) -> None:
    """As the official tools read a field that is not set."""
    two(version, tmp_path, segment(FIRST, num_top_lidar_points=np.array([190, -1, 4, 80, 25])))
    frames = read_waymo(tmp_path)
    assert names_of(frames, FIRST) == [["vehicle", "sign", "cyclist"]] * 4
    kept = read_waymo(tmp_path, camera_only=False)[0].annotations
    assert kept is not None and kept.num_top_lidar_points is not None
    assert kept.num_top_lidar_points.tolist() == [190, 0, 4, 80, 25]
