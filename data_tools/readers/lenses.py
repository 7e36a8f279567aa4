"""What a calibration states beyond a pinhole: made into a lens, and reported where it is not used.

Coefficients lie in one of DISTORTION_FIELDS, the model in one of MODEL_FIELDS:

    brown_conrady (also: plumb_bob, rational_polynomial, opencv, radtan, pinhole, or no model stated)
                     OpenCV's k1 k2 p1 p2 [k3 [k4 k5 k6 [s1 s2 s3 s4]]]: 4, 5, 8 or 12 numbers
    kannala_brandt (also: equidistant, fisheye, opencv_fisheye)    k1 k2 k3 k4, OpenCV's fisheye
    f_theta, f_theta_backward, double_sphere
                     as geometry.lenses lists them, the matrix being that of the equivalent pinhole

``camera_max_angle_rad``: beyond it nothing is seen; where it is missing, the angle at which the lens folds back.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ...core.errors import ConfigError
from ...geometry import CameraModel, Lens, brown_conrady
from ...geometry.lenses import fold_angle

logger = logging.getLogger("drivestack")

LensUse = Literal["used", "ignored"]
"""An option of readers: cameras with the lenses that the files state, or, to compare, as pinholes."""

DISTORTION_FIELDS = ("camera_distortion", "distortion", "distortion_coefficients", "dist_coeffs", "cam_distortion")
MODEL_FIELDS = ("camera_model", "distortion_model", "projection_model", "lens_model")
LIMIT_FIELD = "camera_max_angle_rad"
LENS_FIELDS = (*DISTORTION_FIELDS, *MODEL_FIELDS, LIMIT_FIELD)
_MODELS = {
    **dict.fromkeys(
        ("", "none", "pinhole", "plumb_bob", "rational_polynomial", "perspective", "opencv", "radtan", "brown_conrady"),
        "brown_conrady",
    ),
    **dict.fromkeys(("kannala_brandt", "equidistant", "fisheye", "opencv_fisheye"), "kannala_brandt"),
    **{kind: kind for kind in ("f_theta", "f_theta_backward", "double_sphere")},
}
_ORDER = {
    "brown_conrady": ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6", "s1", "s2", "s3", "s4"),
    "kannala_brandt": ("k1", "k2", "k3", "k4"),
}


def lens_fields(camera: CameraModel) -> dict[str, Any]:
    """What a calibration that LensNotes reads states of a camera's lens: nothing for a pinhole.

    Raises ValueError for a lens that no table states.
    """
    lens = camera.lens
    if lens is None:
        return {}
    if lens.kind not in _MODELS:
        raise ValueError(f"a lens {lens.kind} cannot be stated by coefficients beside a matrix")
    values = list(lens.coefficients)
    if lens.kind == "brown_conrady":
        used = max((i + 1 for i, value in enumerate(values) if value), default=0)
        values = values[: next(count for count in (5, 8, 12) if used <= count)]
    fields: dict[str, Any] = {"camera_model": lens.kind, "camera_distortion": values}
    if lens.limit_rad < fold_angle(lens.kind, lens.coefficients):
        fields[LIMIT_FIELD] = lens.limit_rad
    return fields


class LensNotes:
    """Makes lenses of what the calibrations of a set state, and reports once what is not used.

    lens: "ignored" takes all cameras as pinholes, and reports that too. undistorted: the set's images are published
    without the distortion that its files still state: it is not to be applied, and nothing is wrong with that.
    Raises ConfigError for another ``lens``.
    """

    def __init__(self, where: str, lens: str = "used", undistorted: bool = False) -> None:
        if lens not in get_args(LensUse):
            raise ConfigError(f"lens {lens!r}: choose from {', '.join(get_args(LensUse))}")
        self.where, self.lens, self.undistorted = where, lens, undistorted
        self._worst: dict[str, tuple[float, str]] = {}
        self._unknown: dict[str, str] = {}
        self._narrow: dict[str, str] = {}

    def add(self, name: str, camera: CameraModel, fields: Mapping[str, Any], known: Iterable[str] = ()) -> CameraModel:
        """The camera with its lens. camera: as a pinhole; fields: its calibration as the file has it; known: those that
        the reader uses itself."""
        used = {*known, *LENS_FIELDS}
        for field in fields:
            if field not in used:
                self._unknown.setdefault(str(field)[:60], name)
        if self.undistorted:
            return camera
        stated = next((str(fields[f]).strip().lower() for f in MODEL_FIELDS if isinstance(fields.get(f), str)), "")
        kind = _MODELS.get(stated)
        found = {
            field: values for field in DISTORTION_FIELDS if (values := _numbers(fields.get(field), kind)) is not None
        }
        found = {field: values for field, values in found.items() if kind != "brown_conrady" or np.any(values != 0)}
        if kind == "brown_conrady" and not found:
            return camera
        if kind is not None and len(found) == 1 and self.lens == "used":
            ((field, values),) = found.items()
            try:
                with np.errstate(all="ignore"):  # of numbers that no lens has
                    made = _with_lens(camera, kind, values, fields.get(LIMIT_FIELD))
                    self._check(name, made, field)
            except ValueError as error:
                self._keep(name, camera, values, kind, f"{field}: {error}")
                return camera
            return made
        for field, values in found.items():
            self._keep(name, camera, values, kind, f"{field} {[float(f'{v:.4g}') for v in values]}")
        if kind is None or not found:
            what = f"lens model {stated!r}" + ("" if kind is None else " without coefficients")
            self._keep(name, camera, np.zeros(0), kind, what)
        return camera

    def _keep(self, name: str, camera: CameraModel, values: NDArray[np.float64], kind: str | None, what: str) -> None:
        with np.errstate(all="ignore"):
            moved_px = corner_shift_px(camera, values, kind == "kannala_brandt")
        if name not in self._worst or moved_px > self._worst[name][0]:
            self._worst[name] = moved_px, what

    def _check(self, name: str, camera: CameraModel, field: str) -> None:
        """Coefficients in another order or of another model often end the image before its edges."""
        if name not in self._narrow:
            width, height = camera.width_px, camera.height_px
            sides = np.array([[0, height / 2], [width, height / 2], [width / 2, 0], [width / 2, height]])
            blind = (
                camera.lens is not None and camera.lens.kind == "brown_conrady" and np.isnan(camera.unproject(sides))
            )
            self._narrow[name] = field if np.any(blind) else ""

    def report(self) -> None:
        """A line each for lenses that are left out, those that end within their image, and fields that are not used."""
        if self._worst:
            worst = max(self._worst, key=lambda camera: np.nan_to_num(self._worst[camera][0], nan=np.inf))
            moved_px, what = self._worst[worst]
            size = f", which moves a corner of its image by {moved_px:.0f} pixels" if np.isfinite(moved_px) else ""
            others = f" and {len(self._worst) - 1} other cameras" if len(self._worst) > 1 else ""
            fix = (
                "as the option lens=ignored says"
                if self.lens == "ignored"
                else "undistort the images and give their new intrinsics, or state a model and its coefficients as "
                "OpenCV orders them"
            )
            logger.warning(
                "%s: camera %s%s: lens distortion is left out (%s%s): %s", *(self.where, worst, others, what, size, fix)
            )
        if blind := {name: field for name, field in self._narrow.items() if field}:
            logger.warning(
                "%s: %s of camera %s: its lens ends before the edge of its image; are the coefficients in OpenCV's "
                "order k1 k2 p1 p2 k3?",
                *(self.where, next(iter(blind.values())), ", ".join(blind)),
            )
        if self._unknown:
            listed = ", ".join(f"{field} (camera {camera})" for field, camera in list(self._unknown.items())[:5])
            logger.warning("%s: calibration fields that are not used: %s", self.where, listed)


def _with_lens(camera: CameraModel, kind: str, values: NDArray[np.float64], limit_rad: Any) -> CameraModel:
    """Raises ValueError for coefficients that the model cannot have."""
    if kind == "brown_conrady":
        lens = brown_conrady(camera.intrinsics, camera.width_px, camera.height_px, values.tolist()).lens
    elif kind == "kannala_brandt" and len(values) != 4:
        raise ValueError(f"a fisheye has 4 coefficients, got {len(values)}")
    else:
        lens = Lens(kind, tuple(values.tolist()))
    if lens is not None and isinstance(limit_rad, (int, float)):
        lens = replace(lens, max_angle_rad=float(limit_rad))
    return replace(camera, lens=lens)


def _numbers(value: Any, kind: str | None) -> NDArray[np.float64] | None:
    """Coefficients as a flat array; None for anything that is none, for a field of that name may hold anything."""
    if isinstance(value, Mapping):  # by their names
        order = _ORDER.get(kind or "", _ORDER["brown_conrady"])
        last = max((i + 1 for i, key in enumerate(order) if key in value), default=0)
        last = min((count for count in (4, 5, 8, 12) if count >= last), default=last) if last else 0
        value = [value.get(key, 0.0) for key in order[:last]]
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
