"""Wrong calibration on purpose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from drivestack.core.errors import ConfigError
from drivestack.data_tools.clips.perturb import perturb_calibration
from support.toy_pictures import toy_frame


def test_perturbed_calibration_moves_the_cameras_and_keeps_the_images(tmp_path: Path) -> None:
    frame = toy_frame(tmp_path)
    (turned,) = perturb_calibration([frame], "yaw:90")
    before, after = frame.cameras[0], turned.cameras[0]
    axis = after.ego_from_camera[:3, 2]
    np.testing.assert_allclose(axis, [0, 1, 0], atol=1e-9)  # the front camera is now said to look to the left
    np.testing.assert_allclose(after.global_from_camera, frame.global_from_ego @ after.ego_from_camera, atol=1e-9)
    assert after.image_path == before.image_path
    (shuffled,) = perturb_calibration([frame], "shuffle")
    for i, view in enumerate(shuffled.cameras):
        other = frame.cameras[(i + 1) % 6]
        np.testing.assert_array_equal(view.global_from_camera, other.global_from_camera)
    for wrong in ("mix", "yaw:far", "pitch:3"):
        with pytest.raises(ConfigError, match="shuffle"):
            perturb_calibration([frame], wrong)
