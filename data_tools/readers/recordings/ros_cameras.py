"""ROS's CameraInfo to a CameraModel.

``k`` and ``d`` describe the raw image of the whole sensor, ``p`` the rectified one; a region of interest moves the
principal point, binning divides the matrix. Definition: sensor_msgs/msg/CameraInfo and REP 104.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....core.errors import DataError
from ....core.once import warn_once
from ....geometry import CameraModel, brown_conrady, kannala_brandt, pose

_BROWN = {"plumb_bob": (0, 4, 5), "rational_polynomial": (0, 4, 5, 8, 12, 14), "thin_prism": (0, 12, 14)}
"""distortion_model -> how many coefficients it may have."""
_FISHEYE = ("equidistant", "fisheye")


def is_rectified_topic(topic: str) -> bool:
    """Whether a topic's name says that its images are rectified: image_rect, image_rect_color, rectified, ..."""
    return re.search(r"(^|[/_])rect(ified)?([/_]|$)", topic) is not None


def camera_of(info: Any, rectified: bool, where: str) -> CameraModel:
    """The camera of images as a CameraInfo describes them; rectified: they are undistorted, so that ``p`` holds.

    Raises DataError naming ``where`` for a camera that is not calibrated, or a distortion that is not known.
    """
    matrix = np.array(info.p, np.float64).reshape(3, 4)[:, :3] if rectified else np.array(info.k, np.float64)
    matrix = matrix.reshape(3, 3)
    if matrix[0, 0] == 0:
        name = "P[0]" if rectified else "K[0]"
        raise DataError(f"{where}: the camera is not calibrated ({name} is 0); calibrate it, or leave its topic out")
    roi = info.roi
    size = np.array([roi.width or info.width, roi.height or info.height])
    binning = np.array([info.binning_x or 1, info.binning_y or 1])
    if (size % binning).any():
        warn_once(f"{where}: {size.tolist()} pixels are no multiple of the binning {binning.tolist()}: rounded down")
    width, height = (size // binning).tolist()
    matrix[:2, 2] -= roi.x_offset, roi.y_offset
    matrix[:2] /= binning[:, None]
    if rectified and any(info.p[i] for i in (3, 7, 11)):
        warn_once(
            f"{where}: P has a fourth column, as the second camera of a stereo pair: the frame of the image is taken "
            "as this camera's own, and the column left out"
        )
    try:
        return _with_lens(info, matrix, width, height, rectified)
    except ValueError as error:
        raise DataError(f"{where}: {error}; correct the CameraInfo, or leave its topic out") from None


def _with_lens(info: Any, matrix: NDArray[np.float64], width: int, height: int, rectified: bool) -> CameraModel:
    model, values = info.distortion_model.strip().lower(), [float(value) for value in info.d]
    if rectified or (model in ("", "none") and not any(values)):
        return CameraModel(matrix, width, height)
    if model in _FISHEYE:
        if len(values) != 4:
            raise ValueError(f"distortion model {model!r} has 4 coefficients, D has {len(values)}")
        return kannala_brandt(matrix, width, height, values)
    if model not in _BROWN:
        known = ", ".join([*_BROWN, *_FISHEYE])
        raise ValueError(f"distortion model {info.distortion_model!r} with D {values} is not one of {known}")
    if not any(values):
        return CameraModel(matrix, width, height)
    if len(values) not in _BROWN[model]:
        raise ValueError(f"distortion model {model!r} has {_BROWN[model]} coefficients, D has {len(values)}")
    return brown_conrady(matrix, width, height, values)


def raw_from_rectified(info: Any) -> NDArray[np.float64]:
    """[4, 4]: how the camera is turned by rectification (``r``, rectified from raw)."""
    turn = np.array(info.r, np.float64).reshape(3, 3)
    return pose(turn.T, np.zeros(3)) if turn.any() else np.eye(4)
