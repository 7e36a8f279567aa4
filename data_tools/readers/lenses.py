"""What a calibration states beyond a pinhole: made into a lens, and reported where it is not used.

Coefficients lie in one of DISTORTION_FIELDS, the model in one of MODEL_FIELDS:

    brown_conrady (also: plumb_bob, rational_polynomial, opencv, radtan, pinhole, or no model stated)
                     OpenCV's k1 k2 p1 p2 [k3 [k4 k5 k6 [s1 s2 s3 s4]]]: 4, 5, 8 or 12 numbers, or by these names
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
_SYNONYMS = {"t1": "p1", "t2": "p2"}
"""ROS's names of the tangential coefficients."""


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
        kind, limit_rad = _MODELS.get(stated), fields.get(LIMIT_FIELD)
        found: dict[str, NDArray[np.float64]] = {}
        for field in DISTORTION_FIELDS:
            try:
                values = _numbers(fields.get(field), kind)
            except ValueError as error:
                self._keep(name, camera, kind, (), f"{field}: {error}")
                return camera
            if values is None or (kind == "brown_conrady" and not values.any()):
                continue
            if not any(_equal(values, other) for other in found.values()):
                found[field] = values
        if kind == "brown_conrady" and not found:
            return camera
        if kind is not None and len(found) == 1 and self.lens == "used":
            ((field, values),) = found.items()
            try:
                with np.errstate(all="ignore"):  # of numbers that no lens has
                    made = _with_lens(camera, kind, values, limit_rad)
                    self._check(name, made, field)
            except ValueError as error:
                self._keep(name, camera, kind, found.values(), f"{field}: {error}", limit_rad)
                return camera
            return made
        listed = [f"{field} {[float(f'{v:.4g}') for v in values]}" for field, values in found.items()]
        what = " and ".join(listed) + " disagree" * (len(listed) > 1)
        if kind is None or not found:
            what = f"lens model {stated!r}" + (f", {what}" if found else " without coefficients" if kind else "")
        self._keep(name, camera, kind, found.values(), what, limit_rad)
        return camera

    def _keep(
        self,
        name: str,
        camera: CameraModel,
        kind: str | None,
        coefficients: Iterable[NDArray[np.float64]],
        what: str,
        limit_rad: Any = None,
    ) -> None:
        """Notes why a lens is left out. coefficients: those that it may have, none or several where it is not known."""
        shifts = [np.nan]
        for values in coefficients:
            if kind == "brown_conrady" and len(values) == 3:  # as those mean it who state k1 k2 k3
                values = np.array([*values[:2], 0, 0, values[2]])
            try:
                with np.errstate(all="ignore"):
                    shifts.append(corner_shift_px(_with_lens(camera, kind or "", values, limit_rad)))
            except ValueError:  # no such lens
                continue
        moved_px = float(np.fmax.reduce(shifts))
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
            if np.isposinf(moved_px):
                size = ", which sees nothing at a corner of its image"
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
    """Coefficients as a flat array; None for anything that is none, for a field of that name may hold anything.

    Raises ValueError for coefficients by names that the model does not have.
    """
    if isinstance(value, Mapping):
        return _named_numbers(value, kind) if value and kind is not None else None
    return _finite(value)


def _named_numbers(value: Mapping[Any, Any], kind: str) -> NDArray[np.float64]:
    order = _ORDER.get(kind)
    if order is None:
        raise ValueError(f"give a list, as {kind} has its coefficients")
    if unknown := [str(key)[:20] for key in value if _SYNONYMS.get(key, key) not in order]:
        listed = f"{', '.join(unknown[:5])} {'is' if len(unknown) == 1 else 'are'} none of {', '.join(order)}"
        raise ValueError(listed + (", and t1, t2 for p1, p2" if kind == "brown_conrady" else ""))
    if twice := [f"{name} and {key}" for key, name in _SYNONYMS.items() if key in value and name in value]:
        raise ValueError(f"{twice[0]} are the same coefficient")
    named = {_SYNONYMS.get(key, key): number for key, number in value.items()}
    last = max(order.index(key) + 1 for key in named)
    count = min(count for count in (4, 5, 8, 12) if count >= last)
    values = _finite([named.get(key, 0.0) for key in order[:count]])
    if values is None:
        raise ValueError("its values are no finite numbers")
    return values


def _finite(value: Any) -> NDArray[np.float64] | None:
    try:
        values = np.asarray(value, dtype=np.float64).ravel()
    except (TypeError, ValueError, OverflowError):
        return None
    return values if 0 < values.size <= 14 and np.all(np.isfinite(values)) else None


def _equal(a: NDArray[np.float64], b: NDArray[np.float64]) -> bool:
    """Whether two fields state the same; those that one lacks are zero."""
    both = np.zeros((2, 14))
    both[0, : len(a)], both[1, : len(b)] = a, b
    return np.array_equal(both[0], both[1])


def corner_shift_px(camera: CameraModel) -> float:
    """How far the lens moves the image corner that it moves most, against a pinhole; inf where it does not see one."""
    corners = np.array([[0, 0], [1, 0], [0, 1], [1, 1]]) * [camera.width_px, camera.height_px]
    rays = camera.pinhole.unproject(corners)
    moved = camera.project(rays)[0] - camera.pinhole.project(rays)[0]
    return float(np.nan_to_num(np.hypot(*moved.T), nan=np.inf).max())
