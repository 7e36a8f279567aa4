"""Which camera is which: by name, whatever the order in which a frame lists them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from drivestack.core.cameras import (
    CAMERA_ORDER,
    RING_ORDER,
    cameras_of,
    check_camera_names,
    embedding_rows,
    front_camera,
    in_published_order,
)
from drivestack.core.errors import ConfigError
from drivestack.core.frames import Frame
from drivestack.core.rig import Camera, Rig


def axis(yaw_deg: float, pitch_deg: float = 0.0) -> np.ndarray:
    yaw, pitch = np.radians([yaw_deg, pitch_deg])
    return np.array([np.cos(pitch) * np.cos(yaw), np.cos(pitch) * np.sin(yaw), np.sin(pitch)])


def test_nuscenes_names_come_in_the_order_of_published_models_and_others_as_they_come():
    assert in_published_order(sorted(CAMERA_ORDER)) == CAMERA_ORDER
    assert in_published_order(["roof", "CAM_BACK", "CAM_FRONT", "roof", "left"]) == (
        "CAM_FRONT", "CAM_BACK", "roof", "left",
    )  # fmt: skip


def test_embeddings_of_six_go_by_name_and_others_by_position():
    assert embedding_rows(CAMERA_ORDER, 6) == (0, 1, 2, 3, 4, 5)
    assert embedding_rows(["CAM_BACK", "CAM_FRONT", "CAM_BACK_RIGHT"], 6) == (3, 0, 5)
    assert embedding_rows(["CAM_BACK", "CAM_FRONT"], 2) == (0, 1)
    assert embedding_rows(["CAM_BACK", "left"], 6) == (0, 1)
    assert embedding_rows(["ring_side_left", "ring_front_center"], 7) == (5, 0)
    assert embedding_rows(["ring_side_left", "ring_front_center"], 6) == (0, 1)


def test_the_order_of_a_set_does_not_depend_on_the_frame_that_comes_first():
    def frame(*names: str) -> Frame:
        return cast(Frame, SimpleNamespace(cameras=[SimpleNamespace(name=name) for name in names]))

    rings = [frame(*RING_ORDER[2:]), frame(*RING_ORDER)]
    assert cameras_of(rings) == cameras_of(rings[::-1]) == RING_ORDER
    own = [frame("left", "right"), frame("front", "left", "right")]
    assert cameras_of(own) == cameras_of(own[::-1]) == ("front", "left", "right")


@pytest.mark.parametrize(
    ("axes", "front"),
    [
        ({"CAM_BACK": axis(180), "CAM_FRONT": axis(0)}, "CAM_FRONT"),
        ({"ring_side_left": axis(90), "ring_front_left": axis(45), "ring_front_center": axis(1)}, "ring_front_center"),
        ({"REAR": axis(180), "FRONT": axis(0)}, "FRONT"),
        ({"CAM_FRONT": axis(180), "CAM_BACK": axis(0)}, "CAM_FRONT"),  # a wrong calibration changes no names
        ({"a": axis(100), "b": axis(-20), "c": axis(30)}, "b"),
        ({"wide": axis(0.4), "tele": axis(0.1), "left": axis(60)}, "wide"),  # both look ahead: the first
        ({"a": axis(0, -44)}, "a"),
        ({"down": axis(0, -80), "side": axis(50)}, None),
        ({}, None),
    ],
)
def test_the_front_camera_goes_by_name_then_by_its_optical_axis(axes, front):
    assert front_camera(axes) == front


def test_a_rig_knows_its_front_camera_whatever_its_order():
    def camera(yaw_deg: float) -> Camera:
        forward, up = axis(yaw_deg), np.array([0.0, 0.0, 1.0])
        pose = np.eye(4)
        pose[:3, :3] = np.stack([np.cross(forward, up), -up, forward], 1)
        return Camera(np.array([[50.0, 0, 32], [0, 50, 16], [0, 0, 1]]), pose, (64, 32))

    assert Rig({"heck": camera(180), "links": camera(60), "bug": camera(-3)}).front == "bug"
    assert Rig({"heck": camera(180), "links": camera(60)}).front is None


def test_names_that_no_frame_has_are_refused_with_those_that_exist():
    check_camera_names(["b"], ["a", "b"])
    with pytest.raises(ConfigError, match=r"no frame has a camera 'c'; there are a, b:"):
        check_camera_names(["a", "c"], ["a", "b"])
    with pytest.raises(ConfigError, match="'a' is named twice"):
        check_camera_names(["a", "a"], ["a", "b"])
