"""Info files of mmdet3d's layout from frames; its own code reads them in tests/openmmlab/test_mmdet3d.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drivestack.compat.mmdet3d import ATTRIBUTES, CLASSES, write_infos
from drivestack.core.errors import DataError
from drivestack.core.frames import Frame
from drivestack.core.pickles import load_pickle
from drivestack.data_tools.labels.mono_targets import corners_in_camera
from drivestack.data_tools.readers.nuscenes.info_pickle import read_info_pickle
from drivestack.data_tools.readers.nuscenes.reader import read_nuscenes
from drivestack.geometry import CameraModel, brown_conrady, mei, transform_points
from support.tiny_nuscenes import write_tiny_nuscenes


@pytest.fixture
def frames(tmp_path: Path) -> list[Frame]:
    write_tiny_nuscenes(tmp_path / "set")
    return read_nuscenes(tmp_path / "set", version="v1.0-trainval", split="val")


def test_infos_read_back_are_the_frames(frames: list[Frame], tmp_path: Path) -> None:
    write_infos(frames, tmp_path / "infos.pkl")
    again = read_info_pickle(tmp_path / "infos.pkl", tmp_path / "set", image_size_px=(64, 36))
    for ours, read in zip(frames, again, strict=True):
        assert (ours.token, ours.scene_token, ours.timestamp_us) == (read.token, read.scene_token, read.timestamp_us)
        np.testing.assert_allclose(read.global_from_ego, ours.global_from_ego, atol=1e-9)
        np.testing.assert_allclose(read.bev_boxes(), ours.bev_boxes(), atol=1e-6)
        assert read.annotations.names == ours.annotations.names
        for a, b in zip(ours.cameras, read.cameras, strict=True):
            assert (a.name, a.image_size_px, a.timestamp_us) == (b.name, b.image_size_px, b.timestamp_us)
            assert Path(a.image_path) == Path(b.image_path)
            np.testing.assert_allclose(ours.image_from_bev(a), read.image_from_bev(b), atol=1e-6)


def test_labels_of_a_camera(frames: list[Frame], tmp_path: Path) -> None:
    """The corners by mmdet3d's convention of camera boxes are those of the labels, and so is the box around them."""
    write_infos(frames, tmp_path / "infos.pkl")
    content = load_pickle(tmp_path / "infos.pkl")
    assert content["metainfo"]["categories"] == {name: i for i, name in enumerate(CLASSES)}
    whole = 0
    for frame, entry in zip(frames, content["data_list"]):
        (view,) = frame.cameras
        labels, camera_from_global = frame.annotations, np.linalg.inv(view.global_from_camera)
        centres = transform_points(camera_from_global, labels.centre_global_m)
        in_sight = [found["bbox_label"] for found in entry["cam_instances"][view.name]]
        assert len(set(in_sight)) == len(in_sight) > 1  # the set has one object of each class
        for found in entry["cam_instances"][view.name]:
            i = labels.names.index(CLASSES[found["bbox_label"]])
            np.testing.assert_allclose(found["bbox_3d"][:3], centres[i])
            length, height, width, turn = found["bbox_3d"][3:]
            along = np.array([np.cos(turn), 0, -np.sin(turn)]) * length / 2  # turned about y, which points down
            across, up = np.array([np.sin(turn), 0, np.cos(turn)]) * width / 2, np.array([0, height / 2, 0])
            corners = np.array([[a, b, c] for a in (1, -1) for b in (1, -1) for c in (1, -1)]) @ [along, across, up]
            rotation = camera_from_global[:3, :3] @ labels.rotation_global[i : i + 1]
            theirs = corners_in_camera(np.zeros((1, 3)), rotation, labels.size_lwh_m[i : i + 1])[0]
            np.testing.assert_allclose(np.sort(corners, 0), np.sort(theirs, 0), atol=1e-9)
            (u, v), depth = (values[0] for values in view.camera.project(centres[i : i + 1]))
            np.testing.assert_allclose([*found["center_2d"], found["depth"]], [u, v, depth])
            velocity = camera_from_global[:3, :3] @ [*labels.velocity_global_mps[i], 0]
            np.testing.assert_allclose(found["velocity"], velocity[[0, 2]])
            assert ATTRIBUTES[found["attr_label"]] == labels.attributes[i]
            pixels, depths = view.camera.project(corners + centres[i])
            if (depths > 0).all() and (pixels > 0).all() and (pixels < view.image_size_px).all():
                np.testing.assert_allclose(found["bbox"], [*pixels.min(0), *pixels.max(0)], atol=1e-6)
                whole += 1
            x1, y1, x2, y2 = found["bbox"]
            assert 0 <= x1 < x2 <= view.image_size_px[0] and 0 <= y1 < y2 <= view.image_size_px[1]
    assert whole


def test_boxes_in_images_go_through_the_lens(
    frames: list[Frame], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def with_camera(frame: Frame, camera: CameraModel) -> Frame:
        return replace(frame, cameras=(replace(frame.cameras[0], camera=camera),))

    frame = frames[0]
    own = frame.cameras[0].camera
    bent = brown_conrady(own.intrinsics, own.width_px, own.height_px, (-0.25, 0.05, 0.0, 0.0))
    write_infos([with_camera(frame, bent)], tmp_path / "bent.pkl")
    assert "mmdet3d's models do not know" in caplog.text
    write_infos([frame], tmp_path / "straight.pkl")
    found, straight = (
        load_pickle(tmp_path / f"{name}.pkl")["data_list"][0]["cam_instances"][frame.cameras[0].name]
        for name in ("bent", "straight")
    )
    assert found and straight and found != straight
    for box in found:
        uv, _ = bent.project(np.array(box["bbox_3d"][:3]))
        np.testing.assert_allclose(box["center_2d"], uv)
        left, top, right, bottom = box["bbox"]
        assert 0 <= left < right <= own.width_px and 0 <= top < bottom <= own.height_px
    (again,) = read_info_pickle(tmp_path / "bent.pkl", tmp_path / "set", image_size_px=(64, 36))
    np.testing.assert_array_equal(again.cameras[0].camera.row, bent.row)
    with pytest.raises(DataError, match=r"camera .*: a lens mei cannot be stated"):
        write_infos([with_camera(frame, mei(own.intrinsics, 64, 36, 1.1))], tmp_path / "mei.pkl")


def test_what_cannot_be_written_is_named(frames: list[Frame], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no frames to write"):
        write_infos([], tmp_path / "infos.pkl")
    (view,) = frames[0].cameras
    in_memory = replace(view, image_path="", image=np.zeros((36, 64, 3), np.uint8))
    with pytest.raises(DataError, match=r"keyframe sample0: camera CAM_FRONT \(image in memory\): mmdet3d reads files"):
        write_infos([replace(frames[0], cameras=(in_memory,))], tmp_path / "infos.pkl")
    assert not (tmp_path / "infos.pkl").exists()


def test_frames_without_labels_and_images_elsewhere(frames: list[Frame], tmp_path: Path) -> None:
    (view,) = frames[0].cameras
    elsewhere = replace(view, image_path=str(tmp_path / "pictures" / "0.png"))
    write_infos(
        [replace(frames[0], annotations=None, cameras=(elsewhere,))], tmp_path / "infos.pkl", version="v1.0-test"
    )
    content = load_pickle(tmp_path / "infos.pkl")
    (entry,) = content["data_list"]
    assert content["metainfo"]["version"] == "v1.0-test" and not {"instances", "cam_instances"} & entry.keys()
    assert entry["images"]["CAM_FRONT"]["img_path"] == str(tmp_path / "pictures" / "0.png")
