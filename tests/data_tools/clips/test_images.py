"""Each way an image file can be wrong has a message with sample, camera, path and fix."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from drivestack.core.errors import DataError
from drivestack.core.frames import CameraView
from drivestack.data_tools.clips.images import load_image
from drivestack.geometry import PinholeCamera


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (36, 64, 3), dtype=np.uint8))


def view(path, size=(64, 36)) -> CameraView:
    return CameraView("CAM_LEFT", PinholeCamera(np.eye(3), *size), np.eye(4), np.eye(4), 0, str(path))


def check(path, problem: str, size=(64, 36)) -> None:
    with pytest.raises(DataError, match=problem) as caught:
        load_image(view(path, size), "token-7")
    text = str(caught.value)
    assert "token-7" in text and "CAM_LEFT" in text and str(path) in text and ";" in text and "\n" not in text


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_pixels_are_pillows_in_bgr(tmp_path, picture, suffix):
    path = tmp_path / f"a.{suffix}"
    picture.save(path)
    expected = np.asarray(Image.open(path))[..., ::-1]
    np.testing.assert_array_equal(load_image(view(path), ""), expected)


def test_grey_images_become_three_channels(tmp_path, picture):
    path = tmp_path / "a.png"
    picture.convert("L").save(path)
    assert load_image(view(path), "").shape == (36, 64, 3)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.98])
def test_truncated(tmp_path, picture, suffix, share):
    path = tmp_path / f"a.{suffix}"
    picture.save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    check(path, r"image is (truncated|not a readable image) \(\d+ bytes\)")


def test_missing_empty_unreadable_foreign_and_wrong_size(tmp_path, picture):
    check(tmp_path / "none.jpg", "image is missing")
    empty = tmp_path / "empty.jpg"
    empty.touch()
    check(empty, "image is empty")
    check(tmp_path, "image cannot be read")  # a folder
    text = tmp_path / "text.jpg"
    text.write_text("<html>404</html>")
    check(text, "not a readable image")
    fake = tmp_path / "fake.jpg"
    fake.write_bytes(b"\xff\xd8" + b"garbage" * 9 + b"\xff\xd9")
    check(fake, "not a readable image")
    small = tmp_path / "small.jpg"
    picture.resize((32, 18)).save(small)
    check(small, "image is 32x18 pixels but its calibration is for 64x36")
