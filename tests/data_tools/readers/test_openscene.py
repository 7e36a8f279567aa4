"""OpenScene's pickles: read as its converter means them, and never run."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drivestack.core.errors import DataError
from drivestack.core.frames import Frame
from drivestack.data_tools.clips.images import load_image
from drivestack.data_tools.readers.logs.openscene import AXLE_HEIGHT_M, log_files, read_openscene
from drivestack.data_tools.readers.registry import DataSource
from drivestack.geometry import invert_pose, matrix_to_quaternion, pose, rotation_z, yaw_of
from support.moving_rig import BROWN, PINHOLE, furthest_px, moving_frames

CATEGORIES = ["vehicle", "pedestrian", "bicycle", "traffic_cone"]
CHANNELS = {"CAM_FRONT": "CAM_F0", "CAM_LEFT": "CAM_L0", "CAM_RIGHT": "CAM_R0"}
LOG = "2021.05.12.22.00.38_veh-35_01008_01518"
EGO_FROM_LIDAR = pose(rotation_z(0.02), [0.0, 0, 0])  # the identity in the data; turned here to see that it counts


def frames_of() -> list[Frame]:
    """Cameras have the times of their samples."""
    made = []
    for frame in moving_frames([BROWN, BROWN, PINHOLE], CATEGORIES):
        now = {"timestamp_us": frame.timestamp_us, "global_from_ego": frame.global_from_ego}
        made.append(replace(frame, cameras=tuple(replace(view, **now) for view in frame.cameras)))
    return made


def sample(frame: Frame, images: Path | None, labels: bool = True) -> dict:
    """An entry as OpenScene's converter writes it: its frame of the car is at the rear axle."""
    global_from_axle = frame.global_from_ego @ pose(np.eye(3), [0, 0, AXLE_HEIGHT_M])
    quaternion = matrix_to_quaternion(global_from_axle[:3, :3])
    acceleration, rate, velocity = np.split(frame.can_signals, 3)
    cams = {}
    for view in frame.cameras:
        channel = CHANNELS[view.name]
        name = f"{LOG}/{channel}/{frame.token[-4:]}.png"
        mounted = pose(np.eye(3), [0, 0, -AXLE_HEIGHT_M]) @ view.ego_from_camera
        lens = view.camera.lens
        cams[channel] = {
            "data_path": name,
            "sensor2lidar_rotation": mounted[:3, :3],
            "sensor2lidar_translation": mounted[:3, 3],
            "cam_intrinsic": view.camera.intrinsics,
            "distortion": np.array(lens.coefficients[:5]) if lens else np.zeros(5),
        }
        if images is not None:
            (images / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(view.image).save(images / name)
    notes = frame.annotations
    upright = (notes.centre_global_m - global_from_axle[:3, 3]) @ global_from_axle[:3, :3]
    yaw = yaw_of(notes.rotation_global) - yaw_of(global_from_axle[:3, :3])
    fast = np.concatenate([notes.velocity_global_mps, np.zeros((len(notes), 1))], 1)
    entry = {
        "token": frame.token,
        "frame_idx": 0,
        "timestamp": frame.timestamp_us,
        "log_name": LOG,
        "scene_name": "log-0001-scene-0001",
        "scene_token": frame.scene_token,
        "map_location": "us-nv-las-vegas-strip",
        "roadblock_ids": ["67037"],
        "can_bus": np.concatenate([global_from_axle[:3, 3], quaternion, acceleration, velocity, rate, [0, 0]]),
        "lidar2ego_translation": np.zeros(3),
        "lidar2ego_rotation": matrix_to_quaternion(EGO_FROM_LIDAR[:3, :3]).tolist(),
        "ego2global_translation": global_from_axle[:3, 3],
        "ego2global_rotation": quaternion,
        "driving_command": np.array([0, 1, 0, 0]),
        "traffic_lights": [(4711, np.bool_(True))],
        "cams": cams,
        "sample_prev": None,
    }
    if labels:
        entry["anns"] = {
            "gt_boxes": np.concatenate([upright, notes.size_lwh_m, yaw[:, None]], 1),
            "gt_names": np.array(CATEGORIES),
            "gt_velocity_3d": fast @ global_from_axle[:3, :3] @ EGO_FROM_LIDAR[:3, :3],
            "instance_tokens": [f"box{i}" for i in range(len(notes))],
            "track_tokens": notes.instance_tokens,
        }
    return entry


def write(root: Path, entries: Sequence[dict], folder: str = "navsim_logs", protocol: int = 5) -> Path:
    path = root / folder / "mini" / f"{LOG}.pkl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(list(entries), protocol))
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("openscene")
    write(root, [sample(frame, root / "sensor_blobs" / "mini") for frame in frames_of()])
    return root


def test_a_log_is_read_as_its_converter_means_it(root: Path) -> None:
    frames, read = frames_of(), DataSource("openscene", root, {"split": "mini"}).read()
    assert [f.token for f in read] == [f.token for f in frames]
    for ours, theirs in zip(frames, read):
        assert np.abs(ours.global_from_ego - theirs.global_from_ego).max() < 1e-9
        assert np.allclose(ours.can_signals, theirs.can_signals, atol=0)
        assert [v.name for v in theirs.cameras] == ["CAM_F0", "CAM_L0", "CAM_R0"]
        for mine, other in zip(ours.cameras, theirs.cameras):
            assert np.abs(mine.ego_from_camera - other.ego_from_camera).max() < 1e-9
            assert (mine.camera.lens is None) == (other.camera.lens is None)
            assert furthest_px(ours, theirs, mine.name, other.name) < 1e-3
            assert np.array_equal(load_image(other, theirs.token)[:, :, ::-1], mine.image)
        for name in ("centre_global_m", "rotation_global", "size_lwh_m", "velocity_global_mps"):
            assert np.abs(getattr(ours.annotations, name) - getattr(theirs.annotations, name)).max() < 1e-6, name
        assert theirs.annotations.names == theirs.annotations.categories == CATEGORIES
        assert theirs.annotations.instance_tokens == ours.annotations.instance_tokens
        assert theirs.annotations.num_lidar_points.tolist() == [3] * 4
    assert read[1].prev_token == read[0].token


@pytest.mark.parametrize("protocol", [2, 4])
def test_other_places_protocols_and_options(protocol: int, root: Path, tmp_path: Path) -> None:
    entries = [sample(frame, None, labels=False) for frame in frames_of()]
    path = write(tmp_path, entries, "meta_datas", protocol)
    options = {"images": root / "sensor_blobs" / "mini"}
    assert all(frame.annotations is None for frame in read_openscene(tmp_path, "mini", **options))
    assert len(read_openscene(path, **options)) == len(read_openscene(path.parent, logs=LOG, **options)) == 4
    assert len(read_openscene(tmp_path, stride=3, image_size_px=(64, 48))) == 2
    raised = read_openscene(tmp_path, ego_height_m=0, image_size_px=(64, 48))[0]
    lifted = frames_of()[0].global_from_ego @ pose(np.eye(3), [0, 0, AXLE_HEIGHT_M])
    assert np.allclose(invert_pose(lifted) @ raised.global_from_ego, np.eye(4))
    renamed = read_openscene(root, classes={"vehicle": "car"})[0].annotations
    assert renamed.names == ["car", "", "", ""] and renamed.categories == CATEGORIES


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hacked",)


class Evaluates:
    def __reduce__(self):
        return eval, ("__import__('os').mkdir('hacked')",)


@pytest.mark.parametrize(("thing", "named"), [(Hostile(), "posix.system"), (Evaluates(), "builtins.eval")])
def test_hostile_pickles_are_refused_and_not_run(
    thing: object, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    entry = sample(frames_of()[0], None) | {"roadblock_ids": thing}
    write(tmp_path, [entry])
    with pytest.raises(DataError, match=rf"\.pkl: refused to unpickle: it names {named}"):
        read_openscene(tmp_path)
    assert not (tmp_path / "hacked").exists()


def changed(**fields) -> list[dict]:
    return [sample(frames_of()[0], None) | fields]


def without(*fields: str) -> list[dict]:
    return [{key: value for key, value in changed()[0].items() if key not in fields}]


def camera_with(**fields) -> list[dict]:
    entry = changed()[0]
    entry["cams"]["CAM_L0"] |= fields
    return [entry]


BROKEN = [
    ({"infos": []}, "holds dict, no list of samples"),
    ([], "holds no samples"),
    (without("token"), "sample number 0: KeyError: 'token'"),
    (without("ego2global_rotation"), "KeyError: 'ego2global_rotation'"),
    (changed(ego2global_rotation=np.zeros(4)), "ValueError: quaternion of zero"),
    (changed(scene_token=[1]), r"TypeError: tokens and names are texts, not '\[1\]'"),
    (changed(timestamp=1e30), "its timestamp is no time"),
    (changed(cams={}), "no camera"),
    (changed(anns={"gt_boxes": np.zeros((3, 7)), "gt_names": ["car"]}), "cannot reshape"),
    (camera_with(distortion=np.ones(7)), "Brown-Conrady distortion has 4, 5, 8 or 12"),
    (camera_with(cam_intrinsic=np.zeros((3, 3))), "not a pinhole matrix"),
    (camera_with(data_path=7), "cannot be the path of a file"),
]


@pytest.mark.parametrize(("content", "says"), BROKEN)
def test_what_is_wrong_is_said_in_one_line(content, says: str, tmp_path: Path) -> None:
    path = tmp_path / "log.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=says) as error:
        read_openscene(path, image_size_px=(64, 48))
    assert "\n" not in str(error.value)


def test_a_split_that_is_not_there_is_no_other(root: Path, tmp_path: Path) -> None:
    path = write(tmp_path, [sample(frames_of()[0], None)])
    loose = tmp_path / "navsim_logs" / "a.pkl"
    loose.write_bytes(path.read_bytes())
    px = {"image_size_px": (64, 48)}
    for folder in (loose.parent, tmp_path):
        with pytest.raises(DataError, match=r"no navsim_logs/tset/\*\.pkl or meta_datas/tset/\*\.pkl.*; it has .*mini"):
            read_openscene(folder, "tset", **px)
    assert [p.name for p in log_files(loose.parent, "mini")] == [f"{LOG}.pkl"]  # <root>/<split>
    assert [p.name for p in log_files(path.parent, "mini")] == [f"{LOG}.pkl"]  # root is the split's folder
    (tmp_path / "own").mkdir()
    shutil.copy(path, tmp_path / "own" / "a.pkl")
    assert [p.name for p in log_files(tmp_path / "own", "")] == ["a.pkl"]
    with pytest.raises(DataError, match="no navsim_logs/mini"):
        log_files(tmp_path / "own", "mini")


def test_logs_are_checked_where_the_root_is_one_file(tmp_path: Path) -> None:
    path = write(tmp_path, [sample(frames_of()[0], None)])
    px = {"image_size_px": (64, 48)}
    assert len(read_openscene(path, logs=LOG, **px)) == 1
    for logs in ("other", f"{LOG},other"):
        with pytest.raises(DataError, match=rf"no other\.pkl; it has {LOG}"):
            read_openscene(path, logs=logs, **px)


def test_the_images_of_a_log_are_found_from_wherever_the_root_is(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = root / "navsim_logs" / "mini" / f"{LOG}.pkl"
    monkeypatch.chdir(path.parent)
    for start in (root, path.parent, path, Path("."), Path(path.name), Path("../.."), Path("../mini")):
        for frame in read_openscene(start):
            assert all(Path(view.image_path).is_file() for view in frame.cameras)
    assert not caplog.records
    own = tmp_path / "own"
    write(own, [sample(frames_of()[0], own / "sensor_blobs" / "mini")]).rename(own / "a.pkl")
    for start in (own, own / "a.pkl"):
        assert Path(read_openscene(start)[0].cameras[0].image_path).is_file()
    assert not caplog.records
    shutil.rmtree(own / "sensor_blobs")
    read_openscene(own / "a.pkl", image_size_px=(64, 48))
    (record,) = caplog.records
    where = tmp_path / "sensor_blobs" / "own"
    assert (
        record.getMessage()
        == f"{where}: no such folder, but the images of {own} should be there; give the option images"
    )


def test_folders_logs_and_images_that_are_not_there(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no navsim_logs/trainval/\*\.pkl or meta_datas/trainval"):
        read_openscene(tmp_path, "trainval")
    with pytest.raises(DataError, match=rf"no other\.pkl; it has {LOG} and 0 others"):
        read_openscene(root, logs="other")
    write(tmp_path, [sample(frames_of()[0], None)])
    with pytest.raises(DataError, match=r"camera CAM_F0: .*size of the image is unknown.*option image_size_px"):
        read_openscene(tmp_path)
    path = tmp_path / "cut.pkl"
    path.write_bytes(pickle.dumps([1])[:-3])
    with pytest.raises(DataError, match=r"cut\.pkl: broken"):
        read_openscene(path)
