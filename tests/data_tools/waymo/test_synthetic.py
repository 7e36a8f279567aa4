"""The synthetic world written as Waymo v1 and v2 shows the same as its nuScenes tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivestack.cli.main import main
from drivestack.core.frames import Frame
from drivestack.data_tools.clips.images import load_image
from drivestack.data_tools.readers.nuscenes.reader import read_nuscenes
from drivestack.data_tools.readers.waymo.reader import read_waymo
from drivestack.data_tools.synthetic.files.waymo_rows import CAMERA_NUMBER, CLASSES, camera_number
from drivestack.data_tools.synthetic.sensing.sensors import camera_rig
from drivestack.geometry import invert_pose, transform_points


@pytest.fixture(scope="module")
def root(messages: Any, parquet: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("also") / "streets"
    size = ["--scenes", "1", "--keyframes", "2", "--image-width", "160", "--workers", "1", "--labels"]
    assert main(["synthesize", str(folder), "--split", "val", *size, "--also", "waymo_v1", "waymo_v2"]) == 0
    return folder


@pytest.fixture(scope="module")
def frames(root: Path) -> list[Frame]:
    return read_nuscenes(root, "v1.0-trainval", "val")


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_frames_are_the_same(root: Path, frames: list[Frame], version: str) -> None:
    back = read_waymo(root / f"waymo_{version}", "val", camera_only=False)
    assert len(back) == len(frames) == 2
    around = np.random.default_rng(0).uniform([-30, -30, 0], [30, 30, 3], (1000, 3))
    for own, other in zip(frames, back):
        assert other.timestamp_us == own.timestamp_us
        np.testing.assert_allclose(other.global_from_ego, own.global_from_ego, atol=1e-9)
        views = {camera_number(view.name): view for view in own.cameras}
        assert len(views) == len(other.cameras) == 6
        for view in other.cameras:
            its = views[CAMERA_NUMBER[view.name]]
            np.testing.assert_array_equal(load_image(view, ""), load_image(its, ""))
            seen = [
                v.camera.project(transform_points(invert_pose(v.global_from_camera) @ f.global_from_ego, around))[0]
                for v, f in ((view, other), (its, own))
            ]
            np.testing.assert_allclose(*seen, atol=0.01)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_boxes_are_the_same_but_those_without_type(root: Path, frames: list[Frame], version: str) -> None:
    back = read_waymo(root / f"waymo_{version}", "val", camera_only=False)
    for own, other in zip(frames, back):
        assert own.annotations is not None and other.annotations is not None
        kept = [i for i, name in enumerate(own.annotations.names) if name in CLASSES]
        assert 5 < len(kept) < len(own.annotations)
        assert other.annotations.names == [CLASSES[own.annotations.names[i]] for i in kept]
        boxes = own.annotations.boxes_in(invert_pose(own.global_from_ego))[kept]
        np.testing.assert_allclose(other.annotations.boxes_in(invert_pose(other.global_from_ego)), boxes, atol=1e-6)
        assert other.annotations.instance_tokens == [own.annotations.instance_tokens[i] for i in kept]
        points = own.annotations.num_lidar_points[kept]
        np.testing.assert_array_equal(other.annotations.num_lidar_points, points)
        assert other.annotations.num_top_lidar_points is not None
        assert (other.annotations.num_top_lidar_points == -1).all()  # nuScenes' frames do not know it


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_objects_with_pixels_have_a_camera(root: Path, frames: list[Frame], version: str) -> None:
    """Six cameras look around: whatever is near and hit by the LiDAR is in the image of the camera that is named."""
    for frame in read_waymo(root / f"waymo_{version}", "val"):
        notes = frame.annotations
        assert notes is not None and notes.most_visible_cameras is not None and len(notes) > 4
        views = {view.name: view for view in frame.cameras}
        for name, centre in zip(notes.most_visible_cameras, notes.centre_global_m):
            _, depth = views[name].camera.project(transform_points(invert_pose(views[name].global_from_camera), centre))
            assert depth > 0


def test_waymos_own_rig_keeps_its_lenses_and_sizes(messages: Any, tmp_path: Path) -> None:
    root = tmp_path / "streets"
    size = ["--scenes", "1", "--keyframes", "1", "--image-width", "192", "--workers", "1", "--labels"]
    made = ["synthesize", str(root), "--split", "val", *size, "--rig", "waymo", "--also", "waymo_v1", "waymo_v2"]
    assert main(made) == 0
    rig = camera_rig(192, "waymo")
    for version in ("v1", "v2"):
        [frame] = read_waymo(root / f"waymo_{version}")
        assert [view.image_size_px for view in frame.cameras] == [(192, 128)] * 3 + [(192, 89)] * 2
        for view, camera in zip(frame.cameras, rig, strict=True):
            assert view.name == camera.name and view.camera.lens == camera.camera.lens is not None
            np.testing.assert_allclose(view.camera.intrinsics, camera.camera.intrinsics, atol=1e-9)
            np.testing.assert_allclose(view.ego_from_camera, camera.ego_from_camera, atol=1e-9)
            assert load_image(view, "").std() > 10
        notes = frame.annotations
        assert notes is not None and len(notes) > 0
        centre = transform_points(invert_pose(frame.global_from_ego), notes.centre_global_m)
        assert (np.abs(np.arctan2(centre[:, 1], centre[:, 0])) < np.deg2rad(125)).all()  # nothing looks back
