"""One synthetic world in six formats: every reader gives the same frames, with pinholes and with distorted cameras."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from drivestack.cli.main import main
from drivestack.core.errors import DataError
from drivestack.core.frames import CameraView, Frame
from drivestack.data_tools.clips.images import load_image
from drivestack.data_tools.readers.registry import DataSource
from drivestack.data_tools.synthetic import synthesize
from drivestack.data_tools.synthetic.files.other_formats import write_other_formats
from drivestack.data_tools.synthetic.files.waymo_rows import CLASSES as WAYMO_CLASSES
from drivestack.geometry import invert_pose, transform_points

NEEDS = {"waymo_v1": "waymo_open_dataset", "mcap": "mcap_ros2"}
SOURCES: dict[str, Callable[[Path, str], DataSource]] = {
    "waymo_v1": lambda root, _: DataSource("waymo", root / "waymo_v1", {"split": "val", "camera_only": False}),
    "waymo_v2": lambda root, _: DataSource("waymo", root / "waymo_v2", {"split": "val", "camera_only": False}),
    "argoverse2": lambda root, _: DataSource("argoverse2_sensor", root / "argoverse2", {"split": "val"}),
    "py123d": lambda root, _: DataSource("py123d", root / "py123d", {"split": "val"}),
    "mcap": lambda root, scene: DataSource(
        "mcap", root / "mcap/val" / f"{scene}.mcap", {"boxes": str(root / "mcap/val" / f"{scene}.boxes.json")}
    ),
}
CASES = [
    *(("nuscenes", form) for form in ("waymo_v1", "waymo_v2", "py123d", "mcap")),
    *(("distorted", form) for form in ("waymo_v1", "waymo_v2", "py123d", "mcap")),
    *(("waymo", form) for form in ("waymo_v1", "waymo_v2")),
    ("argoverse2", "argoverse2"),
    ("fisheye", "mcap"),
]
REFUSED = [
    ("distorted", "argoverse2", "ring camera|lens"),  # published undistorted
    *(("fisheye", form, "lens") for form in ("waymo_v1", "waymo_v2", "py123d")),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, list[Frame]]]:
    made: dict[str, tuple[Path, list[Frame]]] = {}

    def of(rig: str) -> tuple[Path, list[Frame]]:
        if rig not in made:
            root = tmp_path_factory.mktemp("formats") / rig
            sizes = {"num_scenes": 1, "keyframes_per_scene": 2, "seed": 5, "image_width_px": 160}
            synthesize(root, split="val", rig=rig, labels=(), workers=1, progress=False, **sizes)
            source = DataSource("nuscenes", root, {"version": "v1.0-trainval", "split": "val"})
            made[rig] = root, source.read()
        return made[rig]

    return of


def available(form: str) -> None:
    if form in NEEDS and importlib.util.find_spec(NEEDS[form]) is None:
        if form.startswith("waymo") and os.environ.get("DRIVESTACK_REQUIRE_WAYMO"):
            pytest.fail(f"{form} needs {NEEDS[form]}")
        pytest.skip(f"{form} needs {NEEDS[form]}")


@pytest.mark.parametrize(("rig", "form"), CASES)
def test_the_same_frames_come_back(world: Callable[[str], tuple[Path, list[Frame]]], rig: str, form: str) -> None:
    available(form)
    root, frames = world(rig)
    write_other_formats(root, ["val"], [form])
    back = SOURCES[form](root, frames[0].scene_name).read()
    assert len(back) == len(frames) == 2
    around = np.random.default_rng(0).uniform([-30, -30, 0], [30, 30, 3], (1000, 3))
    for own, other in zip(frames, back):
        assert other.timestamp_us == own.timestamp_us
        np.testing.assert_allclose(other.global_from_ego, own.global_from_ego, atol=1e-9, rtol=0)
        assert len(other.cameras) == len(own.cameras) >= 5
        for view in own.cameras:
            its = partner(view, other)
            assert (its.camera.lens is None) == (view.camera.lens is None)
            np.testing.assert_allclose(its.global_from_camera, view.global_from_camera, atol=1e-9, rtol=0)
            seen = [
                v.camera.project(transform_points(invert_pose(v.global_from_camera) @ f.global_from_ego, around))[0]
                for v, f in ((its, other), (view, own))
            ]
            np.testing.assert_allclose(*seen, atol=0.01, rtol=0)
            assert np.array_equal(load_image(its, ""), load_image(view, ""))
        compare_boxes(own, other, set(WAYMO_CLASSES) if form.startswith("waymo") else None)


@pytest.mark.parametrize(("rig", "form", "says"), REFUSED)
def test_a_format_refuses_cameras_that_it_cannot_hold(
    world: Callable[[str], tuple[Path, list[Frame]]], rig: str, form: str, says: str
) -> None:
    available(form)
    with pytest.raises(DataError, match=says):
        write_other_formats(world(rig)[0], ["val"], [form])


def partner(view: CameraView, other: Frame) -> CameraView:
    """The other frame's camera at the same place: formats have names of their own."""
    poses = np.array([v.global_from_camera for v in other.cameras])
    return other.cameras[int(np.abs(poses - view.global_from_camera).sum((1, 2)).argmin())]


def compare_boxes(own: Frame, other: Frame, classes: set[str] | None) -> None:
    """classes: those that the format has types for, None: all."""
    assert own.annotations is not None and other.annotations is not None
    kept = [i for i, name in enumerate(own.annotations.names) if name and (classes is None or name in classes)]
    ours = own.annotations.boxes_in(invert_pose(own.global_from_ego))[kept]
    theirs = other.annotations.boxes_in(invert_pose(other.global_from_ego))
    named = np.array([bool(name) for name in other.annotations.names])
    theirs = theirs[named]
    assert len(ours) == len(theirs) > 5
    order = [int(np.abs(theirs[:, :3] - box[:3]).sum(1).argmin()) for box in ours]
    assert sorted(order) == list(range(len(ours)))
    turn = np.abs((ours[:, 6] - theirs[order, 6] + np.pi) % (2 * np.pi) - np.pi)
    np.testing.assert_allclose(theirs[order, :6], ours[:, :6], atol=1e-6, rtol=0)
    assert turn.max() < 1e-6


@pytest.mark.parametrize(
    ("rig", "form", "says"), [("nuscenes", "argoverse2", "use rig argoverse2"), ("fisheye", "py123d", "lens of rig")]
)
def test_what_a_format_cannot_hold_is_said_before_streets_are_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rig: str, form: str, says: str
) -> None:
    assert main(["synthesize", str(tmp_path / "out"), "--rig", rig, "--also", form]) == 2
    assert says in capsys.readouterr().err and not (tmp_path / "out").exists()
