"""Images inside larger files: read, and refused in one line."""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass, replace

import numpy as np
import pytest
from PIL import Image

from drivestack.core.errors import DataError
from drivestack.core.frames import CameraView
from drivestack.data_tools.clips.images import load_image
from drivestack.geometry import CameraModel


@dataclass(frozen=True)
class Inside:
    data: bytes
    source: str = "drive.log, image 3"

    def read(self) -> bytes:
        if self.data == b"broken":
            raise OSError("its chunk is damaged")
        return self.data


def view_of(data: bytes) -> CameraView:
    camera = CameraModel(np.diag([10.0, 10.0, 1.0]), 8, 6)
    return CameraView("front", camera, np.eye(4), np.eye(4), 0, encoded=Inside(data))


def test_an_image_inside_a_larger_file_is_read_and_travels_to_other_processes() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    view = pickle.loads(pickle.dumps(view_of(file.getvalue())))
    assert np.array_equal(load_image(view, "a")[:, :, ::-1], pixels)


@pytest.mark.parametrize(("data", "says"), [(b"", "empty"), (b"broken", "chunk is damaged"), (b"text", "readable")])
def test_an_image_that_cannot_be_read_names_sample_camera_and_place(data: bytes, says: str) -> None:
    with pytest.raises(DataError, match=rf"sample a, camera front: drive\.log, image 3: .*{says}"):
        load_image(view_of(data), "a")


def test_an_image_of_another_size_than_its_calibration_is_refused() -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 7)).save(file, "png")
    with pytest.raises(DataError, match="8x7 pixels but its calibration is for 8x6"):
        load_image(replace(view_of(b""), encoded=Inside(file.getvalue())), "a")
