"""Published info layouts become the frames they were made from; anything but data in a pickle is refused."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from drivestack.core.errors import DataError
from drivestack.core.frames import Frame
from drivestack.data_tools.readers.nuscenes.info_pickle import load_pickle, read_info_pickle
from drivestack.data_tools.readers.nuscenes.reader import read_nuscenes
from drivestack.geometry import invert_pose, matrix_to_quaternion

SIZE = (64, 36)


@pytest.fixture(scope="module")
def frames(tiny_root) -> list[Frame]:
    return read_nuscenes(tiny_root, "v1.0-mini", "mini_train")


def parts(pose) -> tuple[list[float], list[float]]:
    return matrix_to_quaternion(pose[:3, :3]).tolist(), pose[:3, 3].tolist()


def bevformer_info(frame: Frame) -> dict:
    """As BEVFormer's converter writes it (spec: bevformer.md section 2.1)."""
    boxes, notes = frame.bev_boxes(), frame.annotations
    cams = {}
    for view in frame.cameras:
        # The split of global_from_camera into ego pose and mounting is free: what counts is the product.
        rotation, translation = parts(view.global_from_camera)
        cams[view.name] = {
            "data_path": "./data/nuscenes/" + "/".join(Path(view.image_path).parts[-3:]),
            "type": view.name,
            "sample_data_token": view.sample_data_token,
            "sensor2ego_rotation": [1, 0, 0, 0],
            "sensor2ego_translation": [0, 0, 0],
            "ego2global_rotation": rotation,
            "ego2global_translation": translation,
            "timestamp": view.timestamp_us,
            "sensor2lidar_rotation": frame.bev_from_camera(view)[:3, :3],
            "sensor2lidar_translation": frame.bev_from_camera(view)[:3, 3],
            "cam_intrinsic": view.camera.intrinsics,
        }
    lidar_rotation, lidar_translation = parts(frame.ego_from_bev)
    ego_rotation, ego_translation = parts(frame.global_from_ego)
    return {
        "lidar_path": frame.lidar_path,
        "token": frame.token,
        "prev": frame.prev_token,
        "next": frame.next_token,
        "can_bus": np.arange(18.0),
        "occ_gt_path": f"gts/{frame.token}/labels.npz",
        "frame_idx": 0,
        "sweeps": [],
        "scene_token": frame.scene_token,
        "timestamp": frame.timestamp_us,
        "lidar2ego_rotation": lidar_rotation,
        "lidar2ego_translation": lidar_translation,
        "ego2global_rotation": ego_rotation,
        "ego2global_translation": ego_translation,
        "cams": cams,
        "gt_boxes": np.concatenate([boxes[:, :3], boxes[:, [4, 3, 5]], -boxes[:, 6:7] - np.pi / 2], 1),
        "gt_names": np.array([name or "animal" for name in notes.names]),
        "gt_velocity": boxes[:, 7:],
        "num_lidar_pts": notes.num_lidar_points,
        "num_radar_pts": notes.num_radar_points,
        "valid_flag": np.ones(len(boxes), bool),
    }


def mmdet3d_info(frame: Frame) -> dict:
    boxes, notes = frame.bev_boxes(), frame.annotations
    return {
        "token": frame.token,
        "timestamp": frame.timestamp_us / 1e6,
        "ego2global": frame.global_from_ego.tolist(),
        "images": {
            view.name: {
                "img_path": Path(view.image_path).name,
                "cam2img": view.camera.intrinsics.tolist(),
                "sample_data_token": view.sample_data_token,
                "timestamp": view.timestamp_us / 1e6,
                "lidar2cam": invert_pose(frame.bev_from_camera(view)).tolist(),
            }
            for view in frame.cameras
        },
        "lidar_points": {"lidar_path": f"drive__{frame.token}.bin", "lidar2ego": frame.ego_from_bev.tolist()},
        "instances": [
            {
                "bbox_label_3d": {"car": 0, "pedestrian": 7, "": -1}[name],
                "bbox_3d": box[:7].tolist(),
                "velocity": box[7:].tolist(),
                "num_lidar_pts": np.int64(lidar),
                "num_radar_pts": np.int64(radar),
            }
            for name, box, lidar, radar in zip(notes.names, boxes, notes.num_lidar_points, notes.num_radar_points)
        ],
    }


LAYOUTS = {
    "bevformer": lambda frames: {"infos": [bevformer_info(f) for f in frames], "metadata": {"version": "v1.0-mini"}},
    "mmdet3d": lambda frames: {
        "data_list": [mmdet3d_info(f) for f in frames],
        "metainfo": {"categories": {"car": 0, "pedestrian": 7}},
    },
}


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_infos_become_the_frames_they_were_made_from(tmp_path, tiny_root, frames, layout, protocol):
    path = tmp_path / "infos.pkl"
    own = frames[:4] if layout == "mmdet3d" else frames  # that layout has no scenes
    shuffled = [own[i] for i in np.random.default_rng(0).permutation(len(own))]
    path.write_bytes(pickle.dumps(LAYOUTS[layout](shuffled), protocol))
    read = read_info_pickle(path, tiny_root, SIZE)
    assert [f.token for f in read] == [f.token for f in own]
    for ours, frame in zip(read, own):
        assert (ours.prev_token, ours.next_token) == (frame.prev_token, frame.next_token)
        assert ours.timestamp_us == frame.timestamp_us
        if layout == "bevformer":
            assert ours.occupancy_path == str(tiny_root / "gts" / frame.token / "labels.npz")
            np.testing.assert_array_equal(ours.can_signals, np.arange(7.0, 16.0))
        np.testing.assert_allclose(ours.global_from_bev, frame.global_from_bev, atol=1e-9)
        np.testing.assert_allclose(ours.bev_boxes(), frame.bev_boxes(), atol=1e-9, equal_nan=True)
        np.testing.assert_array_equal(ours.annotations.num_lidar_points, frame.annotations.num_lidar_points)
        assert ours.annotations.names == frame.annotations.names
        for view, expected in zip(ours.cameras, frame.cameras):
            assert (view.name, view.image_path) == (expected.name, expected.image_path)
            assert view.timestamp_us == expected.timestamp_us
            np.testing.assert_allclose(ours.bev_from_camera(view), frame.bev_from_camera(expected), atol=1e-9)
            np.testing.assert_allclose(view.global_from_camera, expected.global_from_camera, atol=1e-9)
            np.testing.assert_allclose(view.camera.intrinsics, expected.camera.intrinsics)


def test_a_pause_in_a_drive_starts_a_scene_where_the_file_names_none(tmp_path, tiny_root, frames):
    infos = [mmdet3d_info(f) for f in frames[:4]]
    for info in infos:
        info["lidar_points"]["lidar_path"] = "drive-a__LIDAR_TOP__1.pcd.bin"
    infos[2]["timestamp"] += 60
    infos[3]["timestamp"] += 60
    path = tmp_path / "infos.pkl"
    path.write_bytes(pickle.dumps({"data_list": infos, "metainfo": {}}))
    read = read_info_pickle(path, tiny_root, SIZE)
    assert [f.next_token for f in read] == ["scene-0061-1", "", "scene-0061-3", ""]
    assert len({f.scene_token for f in read}) == 2


class Evil:
    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_in_a_pickle_is_refused_by_name_and_not_run(tmp_path, protocol):
    proof = tmp_path / "proof"
    path = tmp_path / "infos.pkl"
    path.write_bytes(pickle.dumps({"infos": [Evil(os.system, f"touch {proof}")]}, protocol))
    with pytest.raises(DataError, match=r"infos\.pkl: refused to unpickle: it names (posix|nt)\.system"):
        load_pickle(path)
    assert not proof.exists()


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (Evil(eval, "1"), r"builtins\.eval"),
        (Evil(getattr, dict, "get"), r"builtins\.getattr"),
        (OrderedDict(a=1), r"collections\.OrderedDict"),
        (Path("x"), "pathlib"),
        (np.random.default_rng(0), r"numpy\.random"),
        (np.array([Evil(os.system, "true")], dtype=object), "system"),
    ],
)
def test_nothing_else_is_allowed_either(tmp_path, content, name):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=name):
        load_pickle(path)


def test_numpy_and_containers_come_through(tmp_path):
    content = {
        "scalars": [np.bool_(True), np.int64(3), np.float32(0.5), np.str_("a"), 1 + 2j],
        "sets": ({1, 2}, frozenset("ab"), bytearray(b"x")),
        "arrays": [np.arange(6).reshape(2, 3), np.array(["a", "bc"]), np.zeros(0, bool), np.array([None, "x"])],
    }
    path = tmp_path / "x.pkl"
    for protocol in (0, 2, 4, 5):
        path.write_bytes(pickle.dumps(content, protocol))
        read = load_pickle(path)
        assert read["scalars"] == content["scalars"] and read["sets"] == content["sets"]
        for a, b in zip(read["arrays"], content["arrays"]):
            np.testing.assert_array_equal(a, b)


def test_missing_truncated_and_foreign_files_are_named(tmp_path, frames, tiny_root):
    path = tmp_path / "infos.pkl"
    check = lambda match: pytest.raises(DataError, match=match)
    with check(r"infos\.pkl: cannot be read"):
        read_info_pickle(path, tiny_root)
    whole = pickle.dumps(LAYOUTS["bevformer"](frames))
    for length in (0, 1, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with check(r"infos\.pkl: (broken|refused)"):
            read_info_pickle(path, tiny_root)
    path.write_bytes(pickle.dumps([1, 2]))
    with check("neither mmdet3d 1.1 infos"):
        read_info_pickle(path, tiny_root)
    kitti = dict(metainfo=dict(dataset="kitti"), data_list=[dict(sample_idx=0, images={}, lidar_points={})])
    path.write_bytes(pickle.dumps(kitti))
    with check("infos of kitti, without token, ego2global, timestamp: only those"):
        read_info_pickle(path, tiny_root)
    path.write_bytes(pickle.dumps({"infos": []}))
    with check("holds no samples"):
        read_info_pickle(path, tiny_root)
    infos = LAYOUTS["bevformer"](frames)
    del infos["infos"][2]["cams"]["CAM_BACK"]["cam_intrinsic"]
    path.write_bytes(pickle.dumps(infos))
    with check("sample scene-0061-2: unusable entry .*cam_intrinsic"):
        read_info_pickle(path, tiny_root)
