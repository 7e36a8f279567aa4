"""What border checks refuse in frames of any reader, what they pass, and what their messages say."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from drivestack.core.errors import ConfigError, DataError
from drivestack.core.frames import Annotations, CameraView, Frame
from drivestack.core.once import forget_warnings
from drivestack.data_tools.readers.checks import check_frames
from drivestack.data_tools.readers.registry import DataSource
from drivestack.geometry import CameraModel, invert_pose, matrix_to_quaternion, pose, quaternion_to_matrix, rotation_z

FORWARD = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # ego from a camera that looks ahead
CAMERA = CameraModel(np.array([[60.0, 0, 40], [0, 60, 30], [0, 0, 1]]), 80, 60)
STEP_US = 500_000


def labels(global_from_ego: np.ndarray, yaw: float, speed: float = 8.0) -> Annotations:
    """Eight cars around the car that drive with it, and a pedestrian."""
    ahead = np.array([[6.0 + 5 * i, (-1) ** i * 4.0, 0.8] for i in range(8)] + [[9.0, 6.0, 0.9]])
    sizes = [[4.5, 1.9, 1.6]] * 8 + [[0.7, 0.6, 1.8]]
    velocity = np.array([[speed, 0.0]] * 8 + [[np.nan, np.nan]])
    names = ["car"] * 8 + ["pedestrian"]
    return Annotations.of_boxes(
        names, ahead, sizes, np.zeros(9), velocity_mps=velocity, global_from_frame=global_from_ego
    )


def drive(count: int = 8, origin=(600.0, 1600.0, 30.0), speed: float = 8.0, turn: float = 0.05) -> list[Frame]:
    """A car with three cameras that drives in a bend, with labels, linked in time."""
    frames, place = [], np.array(origin)
    for i in range(count):
        yaw = 0.9 + turn * i
        global_from_ego = pose(rotation_z(yaw), place)
        place = place + [speed * 0.5 * np.cos(yaw), speed * 0.5 * np.sin(yaw), 0.05]
        time_us = 1_600_000_000_000_000 + STEP_US * i
        views = tuple(
            CameraView(
                f"CAM_{k}",
                CAMERA,
                pose(rotation_z(angle) @ FORWARD, [1.5, 0.2, 1.5]),
                global_from_ego,
                time_us,
                "x.jpg",
            )
            for k, angle in enumerate((0.0, 2.0, -2.0))
        )
        frames.append(
            Frame(
                token=f"t{i}",
                scene_token="s",
                scene_name="scene-1",
                timestamp_us=time_us,
                cameras=views,
                global_from_ego=global_from_ego,
                annotations=labels(global_from_ego, yaw),
                prev_token=f"t{i - 1}" if i else "",
                next_token=f"t{i + 1}" if i + 1 < count else "",
            )
        )
    return frames


def with_times(frames: list[Frame], change) -> list[Frame]:
    return [replace(frame, timestamp_us=change(frame.timestamp_us)) for frame in frames]


def with_boxes(frames: list[Frame], change) -> list[Frame]:
    return [replace(frame, annotations=change(frame.annotations, frame)) for frame in frames]


def with_poses(frames: list[Frame], change) -> list[Frame]:
    return [replace(frame, global_from_ego=change(frame.global_from_ego)) for frame in frames]


def with_mountings(frames: list[Frame], change) -> list[Frame]:
    moved = lambda view: replace(view, ego_from_camera=change(view.ego_from_camera))
    return [replace(frame, cameras=tuple(map(moved, frame.cameras))) for frame in frames]


def test_a_plausible_drive_passes_wherever_it_is():
    check_frames(drive())
    check_frames(drive(origin=(388_096.25, 3_948_996.5, 120.0)))  # UTM
    check_frames(drive(origin=(0.0, 0.0, 0.0), speed=0.0))  # parked
    check_frames(drive(origin=(0.0, 0.0, 0.0), speed=-3.0))  # backwards
    check_frames(drive()[::3])  # some of its frames: no neighbours
    check_frames(drive()[:1])
    check_frames([])


def test_one_odd_box_is_no_convention():
    def change(notes: Annotations, frame: Frame) -> Annotations:
        size = notes.size_lwh_m.copy()
        size[0] = [1.0, 2.0, 1.5]
        return replace(notes, size_lwh_m=size)

    check_frames(with_boxes(drive(), change))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t // 10**6, "have the same time .* look like seconds: convert"),
        (lambda t: t / 1e6, r"are 5e-07 s apart .* look like seconds"),
        (lambda t: t // 1000, r"are 0.0005 s apart .* look like milliseconds"),
        (lambda t: t * 1000, r"are 500 s apart .* look like nanoseconds"),
        (lambda t: (t - 1_600_000_000_000_000) / 1e6, ".* look like seconds"),  # from the begin of the drive
        (lambda t: 5, "have the same time"),
        (lambda t: -t, "are -0.5 s apart"),
    ],
)
def test_times_of_another_unit_are_named(change, words):
    with pytest.raises(DataError, match="scene scene-1: samples t0 and t1 " + words):
        check_frames(with_times(drive(), change))


def test_a_pause_within_a_scene_is_named():
    frames = drive()
    late = [replace(f, timestamp_us=f.timestamp_us + 40_000_000) if i > 4 else f for i, f in enumerate(frames)]
    with pytest.raises(DataError, match=r"samples t4 and t5 are 40.5 s apart .* make two scenes"):
        check_frames(late)


def test_speeds_of_the_car_and_of_objects():
    with pytest.raises(DataError, match=r"the car moves at \S+ m/s from sample t0 to t1"):
        check_frames(drive(speed=300.0))
    fast = lambda notes, frame: replace(notes, velocity_global_mps=notes.velocity_global_mps * 1000)
    with pytest.raises(DataError, match=r"sample t0, object 0 \(car\): moves at 8e\+03 m/s"):
        check_frames(with_boxes(drive(), fast))


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf, 450.0])
def test_sizes(value):
    def change(notes: Annotations, frame: Frame) -> Annotations:
        size = notes.size_lwh_m.copy()
        size[8, 1] = value
        return replace(notes, size_lwh_m=size)

    with pytest.raises(DataError, match=r"sample t0, object 8 \(pedestrian\): .*size"):
        check_frames(with_boxes(drive(), change))


def test_conventions_of_boxes_are_named():
    swapped = lambda notes, frame: replace(notes, size_lwh_m=notes.size_lwh_m[:, [1, 0, 2]])
    with pytest.raises(DataError, match=r"vehicles are wider than long .* exchanged"):
        check_frames(with_boxes(drive(), swapped))
    across = lambda notes, frame: replace(notes, rotation_global=notes.rotation_global @ rotation_z(np.pi / 2))
    with pytest.raises(DataError, match="vehicles move across their headings"):
        check_frames(with_boxes(drive(), across))
    local = lambda notes, frame: replace(
        notes, centre_global_m=(notes.centre_global_m - frame.global_from_ego[:3, 3]) @ frame.global_from_ego[:3, :3]
    )
    with pytest.raises(DataError, match="boxes look to be in the frame of the car or LiDAR"):
        check_frames(with_boxes(drive(), local))
    utm = lambda notes, frame: replace(notes, centre_global_m=notes.centre_global_m + [388_096.0, 3_948_996.0, 0])
    with pytest.raises(DataError, match=r"from the car, over 1000; boxes and poses .* one global frame"):
        check_frames(with_boxes(drive(), utm))
    under = lambda notes, frame: replace(notes, centre_global_m=notes.centre_global_m - [0, 0, 1.84])
    with pytest.raises(DataError, match=r"centres at -1\.0 m over the EGO origin.* frame of the LiDAR"):
        check_frames(with_boxes(drive(), under))


def test_unknown_velocities_are_fine():
    unknown = lambda notes, frame: replace(notes, velocity_global_mps=np.full((9, 2), np.nan))
    check_frames(with_boxes(drive(), unknown))


def other_order(matrix: np.ndarray) -> np.ndarray:
    """A pose whose quaternion was written x y z w and read w x y z."""
    return pose(quaternion_to_matrix(matrix_to_quaternion(matrix[:3, :3])[[1, 2, 3, 0]]), matrix[:3, 3])


def test_quaternions_of_another_order_are_named():
    with pytest.raises(DataError, match=r"sample t\d: pose global_from_ego tilts the car by .* x y z w: write w x y z"):
        check_frames(with_poses(drive(), other_order))
    twisted = lambda notes, frame: replace(
        notes, rotation_global=np.stack([other_order(pose(r, [0, 0, 0]))[:3, :3] for r in notes.rotation_global])
    )
    with pytest.raises(DataError, match=r"boxes do not stand upright; .* quaternions as w x y z"):
        check_frames(with_boxes(drive(turn=0.4), twisted))


def test_an_ego_frame_with_other_axes_is_named():
    with pytest.raises(DataError, match="pose global_from_ego tilts the car by 180 degrees: give poses"):
        check_frames(with_poses(drive(), lambda p: p @ pose(np.diag([1.0, -1, -1]), [0, 0, 0])))
    frames = [replace(f, annotations=None) for f in drive()]
    with pytest.raises(DataError, match="the car moves across its x axis; EGO is x ahead"):
        check_frames(with_poses(frames, lambda p: p @ pose(rotation_z(np.pi / 2), [0, 0, 0])))


def test_mountings():
    with pytest.raises(DataError, match=r"sample t0: the poses of its cameras are inverted \(camera_from_ego\)"):
        check_frames(with_mountings(drive(), invert_pose))
    millimetres = lambda p: pose(p[:3, :3], p[:3, 3] * 1000)
    with pytest.raises(DataError, match=r"sample t0, camera CAM_0 \(x.jpg\): ego_from_camera lies .* give metres"):
        check_frames(with_mountings(drive(), millimetres))


def test_what_may_be_odd_is_warned_of_once(caplog):
    turned = with_mountings(drive(), lambda p: p @ pose(rotation_z(np.pi), [0, 0, 0]))
    turned = [replace(f, token=f"upside down {f.token}", prev_token="", next_token="") for f in turned]
    check_frames(turned)
    check_frames(turned)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["sample upside down t0"]


@pytest.mark.parametrize("name", ["../../../EVIL", "/etc/passwd", "a\\b", "..", "a\0b", "x" * 300])
def test_names_that_would_leave_their_folder(name):
    frame = drive(1)[0]
    with pytest.raises(DataError, match="cannot name a file"):
        check_frames([replace(frame, token=name)])
    with pytest.raises(DataError, match="cannot name a file"):
        check_frames([replace(frame, scene_name=name)])
    with pytest.raises(DataError, match="cannot name a file"):
        check_frames([replace(frame, cameras=(replace(frame.cameras[0], name=name),))])


def test_parts_of_openlane_tokens_are_names():
    check_frames([replace(drive(1)[0], token="val/00001/123", scene_token="val/00001")])
    with pytest.raises(DataError, match="cannot name a file"):
        check_frames([replace(drive(1)[0], token="val/../123")])


def test_arrays_of_labels_are_equally_long():
    shorter = lambda notes, frame: replace(notes, names=notes.names[:-1])
    with pytest.raises(DataError, match=r"sample t0: 8 names of objects, but centre_global_m has shape \[9, 3\]"):
        check_frames(with_boxes(drive(), shorter))
    with pytest.raises(DataError, match="9 names of objects, but 2 categories"):
        check_frames(with_boxes(drive(), lambda notes, frame: replace(notes, categories=["a", "b"])))


def test_own_readers_are_held_to_the_same():
    unlinked = lambda root: [
        replace(f, prev_token="", next_token="", timestamp_us=f.timestamp_us // 1000) for f in drive()
    ]
    with pytest.raises(DataError, match="these look like milliseconds"):
        DataSource(unlinked, "somewhere").read()


def test_all_frames_of_a_benchmark_are_checked_in_seconds():
    some = drive()
    many = [
        replace(f, token=f"{k}-{f.token}", scene_token=str(k), prev_token=f.prev_token and f"{k}-{f.prev_token}")
        for k in range(125)
        for f in some
    ]
    begin = time.process_time()
    check_frames(many)
    assert time.process_time() - begin < 3.0  # 1,000 frames of 9 boxes; measured 0.1 s


@pytest.mark.parametrize("root", [10**30, ["data", None], {"a": 1}])
def test_a_root_that_is_no_path_is_refused(root) -> None:
    with pytest.raises(ConfigError, match=r"root .* is no path"):
        DataSource("nuscenes", root, {"version": "v1.0-mini", "split": "mini_val"}).read()


def test_a_single_fast_track_in_a_large_set_is_warned_of(caplog):
    frames = drive(count=160, turn=0.0)

    def with_speed(speed_mps: float) -> list[Frame]:
        notes = frames[0].annotations
        assert notes is not None
        velocity = notes.velocity_global_mps.copy()
        velocity[0] = speed_mps, 0
        return [replace(frames[0], annotations=replace(notes, velocity_global_mps=velocity)), *frames[1:]]

    forget_warnings()
    check_frames(with_speed(150.0))
    assert "150 m/s, over 100 (1 of 1440 objects" in caplog.text
    with pytest.raises(DataError, match=r"5e\+03 m/s, over 100; give m/s"):
        check_frames(with_speed(5000.0))
