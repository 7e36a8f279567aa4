"""What a calibration states beyond a pinhole: reported, because cameras are taken as pinholes.

Brown-Conrady coefficients as OpenCV orders them: k1 k2 p1 p2 [k3 [k4 k5 k6]]; three are k1 k2 k3 (Argoverse 2).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...geometry import CameraModel

logger = logging.getLogger("drivestack")

DISTORTION_FIELDS = ("camera_distortion", "distortion", "distortion_coefficients", "dist_coeffs", "cam_distortion")
MODEL_FIELDS = ("camera_model", "distortion_model", "projection_model", "lens_model")
_PINHOLES = ("", "none", "pinhole", "plumb_bob", "perspective", "opencv", "radtan", "brown_conrady")


class LensNotes:
    """Collects what the calibrations of a set state beyond a pinhole, and reports it once."""

    def __init__(self, where: str) -> None:
        self.where = where
        self._worst: dict[str, tuple[float, str]] = {}
        self._unknown: dict[str, str] = {}

    def add(self, name: str, camera: CameraModel, fields: Mapping[str, Any], known: Iterable[str] = ()) -> None:
        """Of one calibration: fields as the file has them; known: those that the reader uses itself."""
        model = next((str(fields[f]).strip().lower() for f in MODEL_FIELDS if isinstance(fields.get(f), str)), "")
        for field in DISTORTION_FIELDS:
            values = _numbers(fields.get(field))
            if values is not None and np.any(values != 0):
                moved_px = corner_shift_px(camera, values, "fisheye" in model)
                self._keep(name, moved_px, f"{field} {np.round(values, 4).tolist()}")
        if model not in _PINHOLES:
            self._keep(name, np.nan, f"lens model {model!r}")
        used = {*known, *DISTORTION_FIELDS, *MODEL_FIELDS}
        for field in fields:
            if field not in used:
                self._unknown.setdefault(str(field)[:60], name)

    def _keep(self, name: str, moved_px: float, what: str) -> None:
        if name not in self._worst or moved_px > self._worst[name][0]:
            self._worst[name] = moved_px, what

    def report(self) -> None:
        """One line for distortion, one for fields that no reader knows; nothing where there is neither."""
        if self._worst:
            worst = max(self._worst, key=lambda camera: np.nan_to_num(self._worst[camera][0], nan=np.inf))
            moved_px, what = self._worst[worst]
            size = f", which moves a corner of its image by {moved_px:.0f} pixels" if np.isfinite(moved_px) else ""
            others = f" and {len(self._worst) - 1} other cameras" if len(self._worst) > 1 else ""
            logger.warning(
                "%s: camera %s%s: lens distortion is left out (%s%s): pinhole images are expected; undistort the "
                "images and give their new intrinsics",
                *(self.where, worst, others, what, size),
            )
        if self._unknown:
            listed = ", ".join(f"{field} (camera {camera})" for field, camera in list(self._unknown.items())[:5])
            logger.warning("%s: calibration fields that are not used: %s", self.where, listed)


def _numbers(value: Any) -> NDArray[np.float64] | None:
    """Coefficients as a flat array; None for anything that is none, for a field of that name may hold anything."""
    if isinstance(value, Mapping):
        value = [value[key] for key in ("k1", "k2", "p1", "p2", "k3") if key in value]
    try:
        values = np.asarray(value, dtype=np.float64).ravel()
    except (TypeError, ValueError, OverflowError):
        return None
    return values if 0 < values.size <= 14 and np.all(np.isfinite(values)) else None


def corner_shift_px(camera: CameraModel, coefficients: NDArray[np.float64], fisheye: bool = False) -> float:
    """How far the lens moves the image corner that it moves most, against a pinhole; NaN for unknown models.

    coefficients: 3 (k1 k2 k3), 4, 5 or 8 of Brown-Conrady, or 4 of OpenCV's fisheye model (fisheye).
    """
    width, height = camera.width_px, camera.height_px
    corners = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]], np.float64)
    x, y, _ = np.linalg.inv(camera.intrinsics) @ corners.T
    radius2 = x * x + y * y
    k = np.zeros(8)
    if fisheye and len(coefficients) == 4:
        radius = np.sqrt(radius2)
        angle = np.arctan(radius)
        powers = angle ** np.array([[2], [4], [6], [8]])
        factor = angle * (1 + coefficients @ powers) / np.maximum(radius, 1e-12)
    elif len(coefficients) in (3, 4, 5, 8):
        k[[0, 1, 4] if len(coefficients) == 3 else slice(len(coefficients))] = coefficients
        factor = (1 + radius2 * (k[0] + radius2 * (k[1] + radius2 * k[4]))) / (
            1 + radius2 * (k[5] + radius2 * (k[6] + radius2 * k[7]))
        )
    else:
        return float("nan")
    dx = x * (factor - 1) + 2 * k[2] * x * y + k[3] * (radius2 + 2 * x * x)
    dy = y * (factor - 1) + k[2] * (radius2 + 2 * y * y) + 2 * k[3] * x * y
    return float(np.hypot(dx * camera.intrinsics[0, 0], dy * camera.intrinsics[1, 1]).max())
