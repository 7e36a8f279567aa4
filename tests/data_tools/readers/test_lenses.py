"""What calibrations state of lenses becomes the lens; what cannot be used is named."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivestack.core.errors import ConfigError
from drivestack.data_tools.readers.lenses import LENS_FIELDS, LensNotes, lens_fields
from drivestack.data_tools.readers.nuscenes.occ3d_challenge import read_challenge
from drivestack.data_tools.readers.nuscenes.reader import read_nuscenes
from drivestack.geometry import (
    CameraModel,
    Lens,
    brown_conrady,
    cylinder,
    double_sphere,
    f_theta,
    kannala_brandt,
    mei,
)

K = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
PINHOLE = CameraModel(K, 640, 480)


def read(fields: dict[str, Any], caplog: pytest.LogCaptureFixture, **options: Any) -> tuple[Lens | None, str]:
    """The lens made of these fields, and what was said."""
    caplog.clear()
    notes = LensNotes("set", **options)
    with caplog.at_level(logging.INFO):
        camera = notes.add("CAM", PINHOLE, fields, ("known",))
        notes.report()
    assert np.array_equal(camera.intrinsics, K)
    return camera.lens, caplog.text


BROWN = brown_conrady(K, 640, 480, (-0.2, 0.05, 0.001, -0.002, 0.01)).lens
FISHEYE = kannala_brandt(K, 640, 480, (-0.02, 0.004, -0.001, 0.0002)).lens


@pytest.mark.parametrize(
    ("fields", "lens"),
    [
        ({}, None),
        ({"camera_distortion": [0, 0, 0, 0, 0]}, None),
        ({"camera_distortion": []}, None),
        ({"camera_distortion": None, "known": 3}, None),
        ({"camera_distortion": [-0.2, 0.05, 0.001, -0.002, 0.01]}, BROWN),
        ({"distortion": [[-0.2, 0.05, 0.001, -0.002, 0.01]], "distortion_model": "plumb_bob"}, BROWN),
        ({"distortion": {"k1": -0.2, "k2": 0.05, "p1": 0.001, "p2": -0.002, "k3": 0.01}}, BROWN),
        ({"distortion": {"k1": -0.2, "k2": 0.05, "t1": 0.001, "t2": -0.002, "k3": 0.01}}, BROWN),  # ROS's names
        (
            {"camera_distortion": [-0.2, 0.05, 0.001, -0.002, 0.01], "distortion": (-0.2, 0.05, 1e-3, -2e-3, 0.01)},
            BROWN,
        ),
        (
            {
                "camera_distortion": [-0.2, 0.05, 0.001, -0.002, 0.01, 0, 0, 0],
                "dist_coeffs": {"k1": -0.2, "k2": 0.05, "p1": 0.001, "p2": -0.002, "k3": 0.01},
            },
            BROWN,
        ),
        ({"distortion": {}}, None),
        ({"dist_coeffs": np.array([-0.2, 0.05, 0.001, -0.002, 0.01, 0, 0, 0]), "camera_model": "OpenCV"}, BROWN),
        ({"camera_distortion": [-0.2, 0.05, 0.001, -0.002, 0.01] + [0] * 9}, BROWN),  # 14, not tilted
        ({"camera_distortion": [-0.02, 0.004, -0.001, 0.0002], "camera_model": "fisheye"}, FISHEYE),
        ({"camera_distortion": [-0.02, 0.004, -0.001, 0.0002], "lens_model": "equidistant"}, FISHEYE),
        ({"distortion": {"k1": -0.02, "k2": 0.004, "k3": -0.001, "k4": 0.0002}, "camera_model": "fisheye"}, FISHEYE),
        ({"camera_distortion": [0, 0, 0, 0], "camera_model": "kannala_brandt"}, Lens("kannala_brandt")),
    ],
)
def test_lenses_as_files_state_them(
    fields: dict[str, Any], lens: Lens | None, caplog: pytest.LogCaptureFixture
) -> None:
    assert read(fields, caplog) == (lens, "")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"camera_distortion": [0.1, 0.2, 0.3]}, "4, 5, 8 or 12 coefficients"),  # k1 k2 k3, or what?
        ({"camera_distortion": [0.1] * 14}, "4, 5, 8 or 12 coefficients"),  # a tilted sensor
        ({"camera_distortion": [0.1, 0.2, 0.3], "camera_model": "fisheye"}, "a fisheye has 4 coefficients, got 3"),
        ({"camera_distortion": [0.1, 0.2], "camera_model": "banana"}, "camera_distortion [0.1, 0.2]"),
        ({"camera_model": "mei", "xi": 1.2}, "lens model 'mei'"),
        ({"camera_model": "fisheye"}, "lens model 'fisheye' without coefficients"),
        (
            {"camera_distortion": [0.1] * 5, "distortion": [0.2] * 4},
            "camera_distortion [0.1, 0.1, 0.1, 0.1, 0.1] and distortion [0.2, 0.2, 0.2, 0.2] disagree",
        ),  # which of them?
        ({"distortion": {"k1": -0.2, "k2": 0.05, "q1": 0.001, "q2": 0}}, "distortion: q1, q2 are none of k1, k2, p1"),
        (
            {"distortion": {"k1": -0.2, "p1": 0.05}, "camera_model": "fisheye"},
            "distortion: p1 is none of k1, k2, k3, k4",
        ),
        ({"distortion": {"k1": -0.2, "t1": 0.05, "p1": 0.1}}, "distortion: p1 and t1 are the same coefficient"),
        ({"distortion": {"k1": -0.2, "k3": None}}, "distortion: its values are no finite numbers"),
        ({"distortion": {"xi": -0.2, "alpha": 0.5}, "camera_model": "double_sphere"}, "distortion: give a list"),
        ({"distortion": {"xi": -0.2}, "camera_model": "banana"}, "lens model 'banana'"),
        ({"camera_distortion": [0.1] * 4, "camera_model": "banana"}, "lens model 'banana', camera_distortion [0.1"),
    ],
)
def test_what_cannot_be_used_is_left_out_and_named(
    fields: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    lens, text = read(fields, caplog)
    assert lens is None and "camera CAM: lens distortion is left out" in text and said in text


def test_options_and_sets_of_undistorted_images(caplog: pytest.LogCaptureFixture) -> None:
    fields = {"camera_distortion": [-0.2, 0.05, 0.001, -0.002, 0.01]}
    lens, text = read(fields, caplog, lens="ignored")
    assert lens is None and "which moves a corner of its image by" in text and "option lens=ignored" in text
    assert read(fields, caplog, undistorted=True) == (None, "")
    with pytest.raises(ConfigError, match="lens 'banana': choose from used, ignored"):
        LensNotes("set", lens="banana")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"camera_distortion": [-0.2, 0.05, 0.001, -0.002, 0.01]}, "moves a corner of its image by 44 pixels"),
        ({"camera_distortion": [-0.2, 0.05, 0.001, -0.002, 0.01] + [0] * 3 + [0.05, 0, 0, 0]}, "by 55 pixels"),
        ({"camera_distortion": [-0.02, 0.004, -0.001, 2e-4], "camera_model": "fisheye"}, "by 65 pixels"),
        ({"camera_distortion": [-0.29, 0.57], "camera_model": "double_sphere"}, "by 66 pixels"),
        ({"camera_distortion": [-0.9, 0, 0, 0]}, "which sees nothing at a corner of its image"),
        ({"camera_distortion": [-0.2, 0, 0, 0], "camera_max_angle_rad": 0.5}, "which sees nothing at a corner"),
    ],
)
def test_how_far_a_lens_that_is_left_out_moves_a_corner(
    fields: dict[str, Any], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    used, _ = read(fields, caplog)
    _, text = read(fields, caplog, lens="ignored")
    assert says in text
    corners = np.array([[0, 0], [640, 0], [0, 480], [640, 480]], float)
    there = CameraModel(K, 640, 480, used).project(PINHOLE.unproject(corners))[0]
    moved = np.linalg.norm(there - corners, axis=1).max()
    assert "nothing" in says if np.isnan(moved) else f"by {moved:.0f} pixels" in says


def test_a_lens_that_ends_within_its_image_is_doubted(caplog: pytest.LogCaptureFixture) -> None:
    lens, text = read({"camera_distortion": [-0.9, 0.0, 0.0, 0.0]}, caplog)
    assert lens is not None and "camera_distortion of camera CAM: its lens ends before the edge" in text


@pytest.mark.parametrize(
    "camera",
    [
        PINHOLE,
        brown_conrady(K, 640, 480, (-0.2, 0.05, 0.001, -0.002)),
        brown_conrady(K, 640, 480, (0.9, 0.35, 0.0004, -0.0003, 0.011, 1.2, 0.6, 0.07)),
        brown_conrady(K, 640, 480, (0.9, 0.35, 0.0004, -0.0003, 0.011, 1.2, 0.6, 0.07, 6e-4, -1e-4, 5e-4, 2e-4)),
        kannala_brandt(K, 640, 480, (-0.02, 0.004, -0.001, 0.0002)),
        f_theta(640, 480, (320, 240), [0, 300.0, -3.0, 2.0], max_angle_rad=1.1),
        f_theta(640, 480, (320, 240), backward=[0, 0.003, 1e-7]),
        double_sphere(K, 640, 480, -0.29, 0.57),
    ],
    ids=lambda camera: camera.lens.kind if camera.lens else "pinhole",
)
def test_what_is_written_is_read(camera: CameraModel, caplog: pytest.LogCaptureFixture) -> None:
    fields = json.loads(json.dumps(lens_fields(camera)))
    notes = LensNotes("set")
    made = notes.add("CAM", camera.pinhole, fields)
    notes.report()
    assert np.array_equal(made.row, camera.row) and not caplog.records
    assert len(fields.get("camera_distortion", [])) in (0, 2, 4, 5, 7, 8, 12)


def test_lenses_that_a_table_cannot_state_are_refused() -> None:
    for camera in (mei(K, 640, 480, 1.2, (0.1,)), cylinder(640, 480, 2.0)):
        with pytest.raises(ValueError, match="cannot be stated"):
            lens_fields(camera)


@pytest.mark.filterwarnings("error")
def test_fields_may_hold_anything() -> None:
    rng, made = np.random.default_rng(0), 0
    odd = [0, 1e-3, -0.3, 5, -1e300, 1e308, math.nan, math.inf, "x", None, True]
    for _ in range(400):
        counts = [0, 2, 3, 4, 5, 7, 8, 12, 14, 20]
        numbers = (rng.normal(size=rng.choice(counts)) * 10 ** rng.uniform(-4, 6)).tolist()
        mixed = [odd[i] for i in rng.integers(0, len(odd), rng.choice(counts))]
        values: list[Any] = [numbers, numbers, mixed, {"k1": 0.1, "k9": "a", "k3": None}, [[1, 2], [3]], b"x", 3, None]
        fields = {str(rng.choice(LENS_FIELDS)): values[rng.integers(len(values))] for _ in range(2)}
        fields["camera_model"] = ["", "fisheye", "f_theta", "f_theta_backward", "double_sphere", "zz", 3][
            rng.integers(7)
        ]
        if rng.random() < 0.2:
            fields["camera_max_angle_rad"] = [-1, 0, 1.0, math.nan, 1e9, "x"][rng.integers(6)]
        notes = LensNotes("set")
        made += notes.add("CAM", PINHOLE, fields).lens is not None
        notes.report()
    assert made > 20


# ---------------------------------------------------------------------------------------------------------- in tables


def test_tables_with_distortion_as_t4_has_it(own_root: Path, edit_table: Any, caplog: pytest.LogCaptureFixture) -> None:
    def distort(rows: list[dict]) -> None:
        for row in rows:
            row["camera_distortion"] = [-0.2, 0.05, 0.001, -0.002, 0.01] if "FRONT" in row["token"] else [0.0] * 5

    edit_table("calibrated_sensor", distort)
    frames = read_nuscenes(own_root, "v1.0-mini", "mini_train")
    lenses = {view.name: view.camera.lens for frame in frames for view in frame.cameras}
    assert lenses == {"CAM_FRONT": BROWN, "CAM_BACK": None} and not caplog.records


def test_the_challenge_file_with_distortion(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    at = {"rotation": [1.0, 0, 0, 0], "translation": [0.0, 0, 1.5]}
    upright = {"rotation": [0.5, -0.5, 0.5, -0.5], "translation": [1.0, 0, 1.5]}
    camera = {"img_path": "CAM_FRONT/a.jpg", "intrinsic": K.tolist(), "extrinsic": upright, "ego_pose": at}
    camera["distortion"] = [-0.2, 0.05, 0.001, -0.002, 0.01]
    entry = {"timestamp": "1600000000000000", "camera_sensor": {"CAM_FRONT": camera}, "ego_pose": at}
    (tmp_path / "annotations.json").write_text(json.dumps({"scene_infos": {"s": {"t": entry}}}))
    (frame,) = read_challenge(tmp_path, "test", image_size_px=(640, 480))
    assert frame.cameras[0].camera.lens == BROWN and not caplog.records
