"""A camera of one's own: its lens by name and coefficients, or as a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from drivestack.core.errors import DataError
from drivestack.core.rig import Camera, Rig
from drivestack.geometry import brown_conrady, double_sphere, f_theta, kannala_brandt, mei

K = [[300.0, 0, 320], [0, 300.0, 200], [0, 0, 1]]
SIZE = (640, 400)
POINTS = np.random.default_rng(0).uniform(-1, 1, (50, 3)) * [3, 2, 1] + [0, 0, 3]
MODELS = {
    ("brown_conrady", (-0.2, 0.05, 1e-3, 2e-3, 0.01)): lambda c: brown_conrady(K, *SIZE, c),
    ("kannala_brandt", (0.02, -0.01, 0.003, 0.0)): lambda c: kannala_brandt(K, *SIZE, c),
    ("mei", (1.2, -0.1, 0.02, 1e-4, 1e-4)): lambda c: mei(K, *SIZE, c[0], c[1:]),
    ("double_sphere", (-0.2, 0.6)): lambda c: double_sphere(K, *SIZE, *c),
}


@pytest.mark.parametrize(("lens", "coefficients"), list(MODELS))
def test_a_lens_by_name_reaches_the_frames(lens: str, coefficients: tuple[float, ...]) -> None:
    model = MODELS[lens, coefficients](coefficients)
    wanted, _ = model.project(POINTS)
    row: dict[str, Any] = {"intrinsics": K, "ego_from_camera": np.eye(4).tolist(), "size_px": list(SIZE)}
    named = Camera(**row, lens=lens, coefficients=list(coefficients))  # as a JSON file has it
    for camera in (named, Camera(model, np.eye(4))):
        frame = Rig({"front": camera}).frame({"front": "a.jpg"})
        np.testing.assert_array_equal(frame.cameras[0].camera.project(POINTS)[0], wanted)
        assert camera.size_px is not None and tuple(camera.size_px) == SIZE
    plain, _ = Camera(**row).model.project(POINTS)
    assert np.nanmax(np.abs(plain - wanted)) > 1


def test_a_camera_model_of_any_lens() -> None:
    model = f_theta(*SIZE, (320, 200), forward=[0.0, 310.0, 0.0, -4.0])
    frame = Rig({"front": (model, np.eye(4))}).frame(["a.jpg"])
    assert frame.cameras[0].camera is model


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"lens": "magic"}, "lens 'magic': choose from brown_conrady, kannala_brandt"),
        ({"lens": "kannala_brandt", "coefficients": [0.1]}, r"lens kannala_brandt has 4 coefficients, got \[0.1\]"),
        ({"lens": "mei", "coefficients": [1.0, 0, 0]}, "lens mei has 5 coefficients"),
        ({"coefficients": [0.1, 0, 0, 0]}, "coefficients need the name of a lens"),
        ({"size_px": None}, "size_px is missing"),
        ({"intrinsics": kannala_brandt(K, *SIZE, [0] * 4), "lens": "mei"}, "has its own size and lens"),
        ({"intrinsics": kannala_brandt(K, *SIZE, [0] * 4), "size_px": (1, 2)}, "has its own size and lens"),
    ],
)
def test_lenses_that_cannot_be_used(changed: dict, says: str) -> None:
    row = {"intrinsics": K, "ego_from_camera": np.eye(4), "size_px": SIZE}
    with pytest.raises(ValueError, match=says):
        Camera(**row | changed)
    with pytest.raises(DataError, match="camera front: "):
        whole = {"lens": "", "coefficients": ()} | row | changed
        Rig({"front": tuple(whole[n] for n in ("intrinsics", "ego_from_camera", "size_px", "lens", "coefficients"))})
