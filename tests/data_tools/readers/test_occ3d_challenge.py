"""The occupancy challenge's annotations.json gives the frames that nuScenes' own tables give."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from drivestack.core.errors import DataError
from drivestack.core.labels import OccupancyLabels
from drivestack.data_tools.clips.clip_dataset import ClipDataset
from drivestack.data_tools.clips.collate import collate_clips
from drivestack.data_tools.labels.files import occupancy_file, write_occupancy
from drivestack.data_tools.readers.nuscenes.occ3d_challenge import EGO_FROM_LIDAR, read_challenge
from drivestack.data_tools.readers.nuscenes.reader import read_nuscenes
from drivestack.geometry import matrix_to_quaternion

VERSION = "annotations.json"


def record(pose_matrix) -> dict:
    return {"translation": pose_matrix[:3, 3].tolist(), "rotation": matrix_to_quaternion(pose_matrix[:3, :3]).tolist()}


@pytest.fixture(scope="module")
def frames(tiny_root):
    return read_nuscenes(tiny_root, "v1.0-mini", "mini_train")


def content(frames) -> dict:
    """What the challenge's file says of these frames; keyframes in no order, prev and next the wrong way round."""
    scenes: dict = {}
    for frame in reversed(frames):
        cameras = {
            f"token-{view.name}" if frame is frames[0] else view.name: {
                "img_path": f"{view.name}/{Path(view.image_path).name}",
                "intrinsic": view.camera.intrinsics.tolist(),
                # as nuScenes has it: the camera on the car, and the car at the camera's time; here the two in one
                "extrinsic": record(np.linalg.inv(frame.global_from_ego) @ view.global_from_camera),
                "ego_pose": record(frame.global_from_ego) | {"timestamp": view.timestamp_us},
            }
            for view in frame.cameras
        }
        scenes.setdefault(frame.scene_name, {})[frame.token] = {
            "timestamp": str(frame.timestamp_us),
            "camera_sensor": cameras,
            "ego_pose": record(frame.global_from_ego),
            "gt_path": f"gts/{frame.scene_name}/{frame.token}/labels.npz",
            "next": frame.prev_token,
            "prev": frame.next_token,
        }
    names = sorted(scenes)
    return {"train_split": names[:1], "val_split": names[1:], "scene_infos": scenes}


@pytest.fixture
def root(tmp_path, frames, tiny_root) -> Path:
    (tmp_path / VERSION).write_text(json.dumps(content(frames)))
    shutil.copytree(tiny_root / "samples", tmp_path / "imgs")
    return tmp_path


def change(root: Path, edit) -> None:
    stored = json.loads((root / VERSION).read_text())
    edit(stored)
    (root / VERSION).write_text(json.dumps(stored))


def test_frames_are_those_of_the_tables(root, frames):
    found = read_challenge(root, "train") + read_challenge(root, "val")
    assert [f.token for f in found] == [f.token for f in frames]
    for one, other in zip(found, frames):
        assert (one.scene_name, one.timestamp_us) == (other.scene_name, other.timestamp_us)
        assert (one.prev_token, one.next_token) == (other.prev_token, other.next_token)
        assert one.annotations is None and one.occupancy_path.endswith(f"{one.token}/labels.npz")
        np.testing.assert_allclose(one.global_from_ego, other.global_from_ego, atol=1e-9)
        assert [view.name for view in one.cameras] == [view.name for view in other.cameras]
        for a, b in zip(one.cameras, other.cameras):
            assert Path(a.image_path).is_file() and a.timestamp_us == b.timestamp_us
            np.testing.assert_allclose(a.camera.intrinsics, b.camera.intrinsics)
            np.testing.assert_allclose(a.global_from_camera, b.global_from_camera, atol=1e-9)
            ego_from_camera = EGO_FROM_LIDAR @ one.bev_from_camera(a)
            np.testing.assert_allclose(ego_from_camera, other.ego_from_bev @ other.bev_from_camera(b), atol=1e-9)


def test_a_clip_dataset_reads_it(root):
    assert len(ClipDataset(classes=["car"], source=dict(reader="occ3d_challenge", root=root, split="val"))) == 4
    frames = read_challenge(root, "val", image_size_px=(64, 36))
    voxels = np.full((200, 200, 16), 17, np.uint8)
    voxels[:, :, 3] = 4
    seen = np.ones(voxels.shape, bool)
    write_occupancy(occupancy_file(root, frames[1].scene_name, frames[1].token), OccupancyLabels(voxels, seen, seen))
    image = {"train_heights_px": (32,), "test_height_px": 32}
    dataset = ClipDataset(
        classes=["car"], frames=frames, camera_names=["CAM_FRONT"], frame_offsets=(-1, 0), image=image, occupancy=True
    )
    batch = collate_clips([dataset[1]])
    assert batch.frame_valid.all() and batch.images[0, 0].any() and batch.gt_boxes == [None]
    assert (batch.occupancy[0].semantics[:, :, 3] == 4).all()
    with pytest.raises(DataError, match=r"labels\.npz: no such label file"):
        dataset[2]


def test_a_test_set_has_neither_lists_nor_labels(root, frames):
    def edit(stored):
        del stored["train_split"], stored["val_split"]
        for scene in stored["scene_infos"].values():
            for entry in scene.values():
                del entry["gt_path"]

    change(root, edit)
    found = read_challenge(root, "test")
    assert len(found) == len(frames) and not any(frame.occupancy_path for frame in found)
    with pytest.raises(DataError, match="none of its 2 scenes belongs to split 'val'"):
        read_challenge(root, "val")


def test_what_cannot_be_read_is_said(root, tmp_path):
    with pytest.raises(DataError, match=r"nowhere/annotations\.json: cannot be read"):
        read_challenge(tmp_path / "nowhere", "val")
    with pytest.raises(DataError, match="unknown split 'mini_val'; use train, val or test"):
        read_challenge(root, "mini_val")
    scene = sorted(json.loads((root / VERSION).read_text())["scene_infos"])[0]

    def drop_pose(stored):
        next(iter(stored["scene_infos"][scene].values())).pop("ego_pose")

    change(root, drop_pose)
    with pytest.raises(DataError, match=rf"sample \S+ \(scene {scene}\): unusable entry: KeyError: 'ego_pose'"):
        read_challenge(root, "train")
    (root / VERSION).write_text("{]")
    with pytest.raises(DataError, match="not valid JSON"):
        read_challenge(root, "train")
    (root / VERSION).write_text("[]")
    with pytest.raises(DataError, match="has no scene_infos"):
        read_challenge(root, "train")
